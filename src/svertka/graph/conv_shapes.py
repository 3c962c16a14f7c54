"""The convolutions in a network, with all their sizes."""

from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv_geometry import ConvShape
from svertka.graph.summary import copy_to_meta


def find_conv_shapes(network: nn.Module, shape: tuple[int, ...]) -> dict[str, ConvShape]:
    """Layer name → its sizes, for the nn.Conv2d that run in inference on an input of `shape`, (N, C, H, W), in order.

    Nothing is computed or changed. Padding counts as zeros, whatever it is; where it is uneven, as a larger input.
    """
    found: dict[str, ConvShape] = {}
    twin = copy_to_meta(network).eval()

    def watch(name: str, layer: nn.Conv2d) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # In PyTorch's own terms: (left, right, top, bottom), which "same" may make uneven.
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
    with torch.inference_mode(), torch.device("meta"):
        twin(torch.empty(shape))
    return found
