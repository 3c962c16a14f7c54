"""The fastest convolutions in any network, and out of it again."""

from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from svertka.arguments import check_types
from svertka.conv.functions import conv2d, conv_transpose2d

Network = TypeVar("Network", bound=nn.Module)
# What a layer calls for its convolution, as PyTorch names it: on each layer that is accelerated it is another function.
CONVOLVES, TRANSPOSES = "_conv_forward", "forward"


@check_types
def accelerate(model: Network, *, strict: bool = False) -> Network:
    """`model` itself, its convolutions now computed by `svertka.conv`, each with the algorithm fastest for it here.

    Any nn.Module, in training and inference. Parameters, state_dict, hooks, classes of layers, pickling and copies stay
    as they were; only rounding changes. Layers whose class computes a convolution in its own way are left alone.
    `strict`: only algorithms with which a NaN or a huge value changes no result but those that read it; see `conv2d`.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward:
            setattr(layer, CONVOLVES, partial(_convolve, layer, strict=strict))
        elif isinstance(layer, nn.ConvTranspose2d) and type(layer).forward is nn.ConvTranspose2d.forward:
            setattr(layer, TRANSPOSES, partial(_transpose, layer, strict=strict))
    return model


@check_types
def restore(model: Network) -> Network:
    """`model` itself, with PyTorch's own convolutions again."""
    for layer in model.modules():
        for name in (CONVOLVES, TRANSPOSES):
            ours = vars(layer).get(name)
            if isinstance(ours, partial) and ours.func in (_convolve, _transpose):
                delattr(layer, name)
    return model


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, strict: bool = False) -> Tensor:
    padding: Any = layer.padding
    return conv2d(
        x,
        weight,
        bias,
        stride=_both(layer.stride),
        padding=padding,
        padding_mode=layer.padding_mode,
        dilation=_both(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _transpose(
    layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None, *, strict: bool = False
) -> Tensor:
    if output_size is not None or x.dim() != 4:
        result: Tensor = nn.ConvTranspose2d.forward(layer, x, output_size)
        return result
    padding: Any = layer.padding
    return conv_transpose2d(
        x,
        layer.weight,
        layer.bias,
        stride=_both(layer.stride),
        padding=padding,
        output_padding=_both(layer.output_padding),
        dilation=_both(layer.dilation),
        groups=layer.groups,
        strict=strict,
    )


def _both(pair: tuple[int, ...]) -> tuple[int, int]:
    """Of PyTorch's settings, which have as many numbers as a layer has axes."""
    vertical, horizontal = pair
    return vertical, horizontal
