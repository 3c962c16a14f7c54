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
def accelerate(model: Network) -> Network:
    """`model` itself, its convolutions now computed by `svertka.conv`, each with the algorithm fastest for it here.

    Any nn.Module, in training and inference. Parameters, state_dict, hooks, classes of layers, pickling and copies stay
    as they were; only rounding changes. Layers whose class computes a convolution in its own way are left alone.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward:
            setattr(layer, CONVOLVES, partial(_convolve, layer))
        elif isinstance(layer, nn.ConvTranspose2d) and type(layer).forward is nn.ConvTranspose2d.forward:
            setattr(layer, TRANSPOSES, partial(_transpose, layer))
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


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    settings: Any = (layer.stride, layer.padding, layer.padding_mode, layer.dilation, layer.groups)
    return conv2d(x, weight, bias, *settings)


def _transpose(layer: nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    if output_size is not None or x.dim() != 4:
        result: Tensor = nn.ConvTranspose2d.forward(layer, x, output_size)
        return result
    settings: Any = (layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    return conv_transpose2d(x, layer.weight, layer.bias, *settings)
