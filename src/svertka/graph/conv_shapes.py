"""The sizes of the convolutions in a network."""

from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv_geometry import ConvShape
from svertka.errors import SvertkaError, UsageError
from svertka.graph.summary import copy_to_meta
from svertka.graph.trace_errors import cannot_be_traced


def find_conv_shapes(network: nn.Module, shape: tuple[int, ...]) -> dict[str, ConvShape]:
    """Return layer name -> sizes, for each nn.Conv2d that runs in inference, in order.

    Nothing is computed and `network` is not changed. Padding of any mode counts as zeros; uneven padding is counted as
    part of the input.

    Args:
        network: any nn.Module.
        shape: of its input, (N, C, H, W).

    Raises:
        UsageError: the network cannot be traced with such an input.
    """
    found: dict[str, ConvShape] = {}
    twin = copy_to_meta(network).eval()

    def watch(name: str, layer: nn.Conv2d) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # (left, right, top, bottom); "same" padding may be uneven.
            left, right, top, bottom = layer._reversed_padding_repeated_twice
            uneven = (left != right) or (top != bottom)
            batch, channels, height, width = inputs[0].shape
            size = (height + top + bottom, width + left + right) if uneven else (height, width)
            padding = (0, 0) if uneven else (top, left)
            settings: Any = (layer.stride, padding, layer.dilation, layer.groups)
            found[name] = ConvShape.of((batch, channels, *size), layer.weight.shape, *settings)

        layer.register_forward_pre_hook(note)

    for name, layer in twin.named_modules():
        if isinstance(layer, nn.Conv2d):
            watch(name, layer)
    try:
        with torch.inference_mode(), torch.device("meta"):
            twin(torch.empty(shape))
    except SvertkaError:
        raise
    except Exception as error:  # a network may raise anything
        raise UsageError(cannot_be_traced(network, shape, error)) from error
    return found
