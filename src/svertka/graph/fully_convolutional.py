"""Conversion to a fully convolutional network, whose dense layers and global pooling slide over larger images."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.cut import cut_network
from svertka.graph.fx_trace import SHAPE, trace_to_fx
from svertka.graph.receptive_field import ReceptiveFieldGrid
from svertka.graph.summary import trace

ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


class FullyConvolutional(nn.Module):
    """A network that computes class scores at every window of an image, (N, K, H', W'). For inference only.

    The window at (i, j) is approximately the crop whose first pixel is (i · stride, j · stride). Scores differ from
    those of the crop if the network pads: a crop is surrounded by zeros, a window by the image. The weights are shared
    with the network, except for those of a dense layer behind adaptive pooling, which are a copy.

    Attributes:
        maps: The layers before the feature maps are flattened.
        gather: The layer that turns each window of feature maps into one vector, as a feature map.
        vectors: The layers after it, applied to each vector.
        window: Height and width of the network's original input, in pixels.
        stride: Distance between neighboring windows, in pixels.
    """

    def __init__(
        self, maps: nn.Module, gather: nn.Module, vectors: nn.Module, window: tuple[int, int], stride: tuple[int, int]
    ) -> None:
        super().__init__()
        self.maps, self.gather, self.vectors = maps, gather, vectors
        self.window, self.stride = window, stride

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, (N, K, H', W'), for images (N, C, H, W) at least as large as the window."""
        if any(side < least for side, least in zip(images.shape[2:], self.window, strict=True)):
            sizes = "×".join(map(str, images.shape[2:])), "×".join(map(str, self.window))
            raise UsageError(
                f"an image of {sizes[0]} pixels is smaller than the network's window of {sizes[1]}; enlarge"
            )
        gathered = self.gather(self.maps(images)).permute(0, 2, 3, 1)
        scores: Tensor = self.vectors(gathered.flatten(0, 2))
        return scores.view(*gathered.shape[:3], -1).permute(0, 3, 1, 2)


def make_fully_convolutional(network: nn.Module, shape: tuple[int, ...]) -> FullyConvolutional:
    """Return `network`, whose inputs have `shape`, as a network that is applied at every window of larger images.

    Args:
        network: Any nn.Module with a single nn.Flatten.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network does not flatten its feature maps exactly once, an earlier layer depends on their size,
            or the network cannot be traced.

    Source: Sermanet et al. 2013, "OverFeat", §3.5; Simonyan & Zisserman 2014, §3.2.
    """
    path, pool = _flattening(network, shape)
    halves = cut_network(network, path, shape)
    maps = nn.Identity() if halves.prefix is None else halves.prefix
    side = halves.shape[1], halves.shape[2]
    flattened = iter(halves.rest.graph.nodes)
    next(flattened)  # the feature maps
    for _ in range(1 if pool is None else 2):
        _skip(next(flattened))
    grid = side if pool is None else _grid(pool, side)
    gather: nn.Module
    if grid == side == (1, 1):
        gather = nn.Identity()
    elif grid == (1, 1):
        gather = (nn.AvgPool2d if isinstance(pool, nn.AdaptiveAvgPool2d) else nn.MaxPool2d)(side, stride=1)
    else:
        layer = _dense_layer(network, halves.rest, flattened)
        gather = _convolution(layer, pool, grid, halves.shape)
    halves.rest.graph.eliminate_dead_code()
    halves.rest.recompile()
    made = nn.Sequential(maps, gather)
    window = shape[2], shape[3]
    return FullyConvolutional(maps, gather, halves.rest, window, output_strides(made, shape)).eval()


def _flattening(network: nn.Module, shape: tuple[int, ...]) -> tuple[str, nn.Module | None]:
    """Return the path of the flattening layer, or of the adaptive pooling before it, and this pooling layer."""
    graph = trace_to_fx(network, shape)
    modules = dict(network.named_modules())
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    found = [node for node, module in called.items() if isinstance(module, nn.Flatten)]
    if len(found) != 1 or len(found[0].meta[SHAPE]) != 2 or len(found[0].all_input_nodes[0].meta[SHAPE]) != 4:
        raise UsageError(
            f"{type(network).__name__} has {len(found)} nn.Flatten layers; to take images of any size, a network must "
            "flatten its maps with exactly one such layer, (N, C, H, W) to (N, C · H · W)"
        )
    (flatten,) = found
    before = flatten.all_input_nodes[0]
    pool = called.get(before)
    if not isinstance(pool, ADAPTIVE):
        before, pool = flatten, None
    elsewhere = [node for node, module in called.items() if isinstance(module, ADAPTIVE) and node is not before]
    if elsewhere:
        raise UsageError(
            f"{type(network).__name__} cannot take images of any size: what {elsewhere[0].target} gives depends on "
            "the size of the whole image"
        )
    return str(before.target), pool


def _skip(node: fx.Node) -> None:
    """Replace `node` with its only input in all nodes that read it."""
    node.replace_all_uses_with(node.all_input_nodes[0])


def _dense_layer(network: nn.Module, rest: fx.GraphModule, nodes: Iterator[fx.Node]) -> nn.Linear:
    """Remove the first dense layer, and dropout before it, from `rest`. Return the dense layer."""
    for node in nodes:
        layer = rest.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Dropout | nn.Linear):
            break
        _skip(node)
        if isinstance(layer, nn.Linear):
            return layer
    raise UsageError(
        f"{type(network).__name__} cannot take images of any size: no dense layer reads its flattened maps"
    )


def _convolution(layer: nn.Linear, pool: nn.Module | None, grid: tuple[int, int], shape: tuple[int, ...]) -> nn.Conv2d:
    """Return the convolution equivalent to `pool`, flattening and `layer`, for feature maps of `shape`, (C, H, W)."""
    channels, height, width = shape
    weight = layer.weight.detach().view(-1, channels, *grid)
    if grid != (height, width):
        if not isinstance(pool, nn.AdaptiveAvgPool2d):
            raise UsageError(
                f"a dense layer behind {type(pool).__name__} cannot become a convolution; use AdaptiveAvgPool2d"
            )
        # Average pooling is linear: its outputs for single pixels are its matrix, (H · W, cells).
        pixels = torch.eye(height * width).to(weight).view(-1, 1, height, width)
        means = F.adaptive_avg_pool2d(pixels, grid).flatten(1)
        weight = (weight.flatten(2) @ means.T).view(-1, *shape)
    with torch.device("meta"):
        made = nn.Conv2d(channels, layer.out_features, (height, width), bias=layer.bias is not None)
    made.weight, made.bias = nn.Parameter(weight), layer.bias
    return made


def _grid(pool: Any, side: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of an adaptive pooling layer's output, for feature maps of `side`."""
    size = pool.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return rows or side[0], columns or side[1]


def output_strides(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the vertical and horizontal stride of the network's feature maps, in pixels of an input of `shape`.

    Raises:
        UsageError: The positions are not evenly spaced.
    """
    down, across = receptive_field_grids(network, shape)
    if down is None or across is None:
        sides = "×".join(map(str, shape[2:]))
        raise UsageError(f"positions of a {sides} window are not evenly spaced in this network")
    return down.jump, across.jump


def receptive_field_grids(
    network: nn.Module, shape: tuple[int, ...]
) -> tuple[ReceptiveFieldGrid | None, ReceptiveFieldGrid | None]:
    """Return the vertical and horizontal grid of the network's receptive fields, for an input of `shape`.

    A grid is None if the positions are not evenly spaced, or if each sees the whole image.
    """
    batch, channels, height, width = shape
    fields = trace(network, (batch, channels, 2 * height, 2 * width)).layers[-1].fields
    if len(fields) != 2:
        return None, None
    return fields[0].grid, fields[1].grid
