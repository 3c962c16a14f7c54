"""A network for pictures of any size: its dense layers become convolutions, and its means windows that slide."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from svertka.conv_geometry import Grid
from svertka.errors import UsageError
from svertka.graph.cut import cut_network
from svertka.graph.fx_trace import SHAPE, trace_to_fx
from svertka.graph.summary import trace

ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


class FullyConvolutional(nn.Module):
    """Class scores of a network at every position of its window in a picture, (N, K, H', W').

    `maps`: the network up to where its maps are flattened. `gather`: one vector of each window of them, as a map again.
    `vectors`: what the network does with such a vector. `window`, `stride`: height and width of what the network was
    built for, and the way from one position to the next, pixels: position (i, j) is about the crop whose first pixel is
    (i · stride, j · stride). Where the network pads its maps, a crop has zeros around it and the window has the
    picture: the scores differ then. In inference alone; its weights are the network's own, but for a dense layer behind
    a grid of means, which is a copy.
    """

    def __init__(
        self, maps: nn.Module, gather: nn.Module, vectors: nn.Module, window: tuple[int, int], stride: tuple[int, int]
    ) -> None:
        super().__init__()
        self.maps, self.gather, self.vectors = maps, gather, vectors
        self.window, self.stride = window, stride

    def forward(self, pictures: Tensor) -> Tensor:
        """The scores for pictures (N, C, H, W), none smaller than the window."""
        if any(side < least for side, least in zip(pictures.shape[2:], self.window, strict=True)):
            sizes = "×".join(map(str, pictures.shape[2:])), "×".join(map(str, self.window))
            raise UsageError(
                f"a picture of {sizes[0]} pixels is smaller than the network's window of {sizes[1]}; enlarge"
            )
        gathered = self.gather(self.maps(pictures)).permute(0, 2, 3, 1)
        scores: Tensor = self.vectors(gathered.flatten(0, 2))
        return scores.view(*gathered.shape[:3], -1).permute(0, 3, 1, 2)


def make_fully_convolutional(network: nn.Module, shape: tuple[int, ...]) -> FullyConvolutional:
    """`network`, which takes inputs of `shape`, (1, C, H, W), at every position of larger pictures.

    Raises:
        UsageError: it does not flatten its maps once (by nn.Flatten), or what it does before depends on their size.

    Source: Sermanet et al. 2013, "OverFeat", §3.5; Simonyan & Zisserman 2014, §3.2.
    """
    path, pool = _flattening(network, shape)
    halves = cut_network(network, path, shape)
    maps = nn.Identity() if halves.prefix is None else halves.prefix
    side = halves.shape[1], halves.shape[2]
    flattened = iter(halves.rest.graph.nodes)
    next(flattened)  # the maps
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
    """Where maps become vectors: the path of that layer, or of the adaptive pool before it, and this pool."""
    graph = trace_to_fx(network, shape)
    modules = dict(network.named_modules())
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    found = [node for node, module in called.items() if isinstance(module, nn.Flatten)]
    if len(found) != 1 or len(found[0].meta[SHAPE]) != 2 or len(found[0].all_input_nodes[0].meta[SHAPE]) != 4:
        raise UsageError(
            f"{type(network).__name__} has {len(found)} layers nn.Flatten; to take pictures of any size a network must "
            "make vectors of its maps by one such layer, (N, C, H, W) to (N, C · H · W)"
        )
    (flatten,) = found
    before = flatten.all_input_nodes[0]
    pool = called.get(before)
    if not isinstance(pool, ADAPTIVE):
        before, pool = flatten, None
    elsewhere = [node for node, module in called.items() if isinstance(module, ADAPTIVE) and node is not before]
    if elsewhere:
        raise UsageError(
            f"{type(network).__name__} cannot take pictures of any size: what {elsewhere[0].target} gives depends on "
            "the size of the whole picture"
        )
    return str(before.target), pool


def _skip(node: fx.Node) -> None:
    """Let those that read `node` read its only input instead."""
    node.replace_all_uses_with(node.all_input_nodes[0])


def _dense_layer(network: nn.Module, rest: fx.GraphModule, nodes: Iterator[fx.Node]) -> nn.Linear:
    """The dense layer that reads the flattened maps, taken out of `rest`, with dropout before it."""
    for node in nodes:
        layer = rest.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Dropout | nn.Linear):
            break
        _skip(node)
        if isinstance(layer, nn.Linear):
            return layer
    raise UsageError(
        f"{type(network).__name__} cannot take pictures of any size: no dense layer reads its flattened maps"
    )


def _convolution(layer: nn.Linear, pool: nn.Module | None, grid: tuple[int, int], shape: tuple[int, ...]) -> nn.Conv2d:
    """The convolution that gives, of maps of `shape`, (C, H, W), what `layer` gives of the flattened pool of them."""
    channels, height, width = shape
    weight = layer.weight.detach().view(-1, channels, *grid)
    if grid != (height, width):
        if not isinstance(pool, nn.AdaptiveAvgPool2d):
            raise UsageError(f"a dense layer behind {type(pool).__name__} is no convolution; use AdaptiveAvgPool2d")
        # A grid of means is linear: what it makes of each single pixel is its matrix, (H · W, cells).
        pixels = torch.eye(height * width).to(weight).view(-1, 1, height, width)
        means = F.adaptive_avg_pool2d(pixels, grid).flatten(1)
        weight = (weight.flatten(2) @ means.T).view(-1, *shape)
    with torch.device("meta"):
        made = nn.Conv2d(channels, layer.out_features, (height, width), bias=layer.bias is not None)
    made.weight, made.bias = nn.Parameter(weight), layer.bias
    return made


def _grid(pool: Any, side: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that an adaptive pool gives, of maps of `side`."""
    size = pool.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return rows or side[0], columns or side[1]


def output_strides(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Pixels of an input of `shape` between neighbours in the maps that `network` gives, down and across.

    Raises:
        UsageError: they are not evenly spaced.
    """
    down, across = output_grids(network, shape)
    if down is None or across is None:
        sides = "×".join(map(str, shape[2:]))
        raise UsageError(f"positions of a {sides} window are not evenly spaced in this network")
    return down.jump, across.jump


def output_grids(network: nn.Module, shape: tuple[int, ...]) -> tuple[Grid | None, Grid | None]:
    """Where the units of the maps that `network` gives look in an input of `shape`, down and across.

    None where they are not evenly spaced, or where all of them see the whole picture.
    """
    batch, channels, height, width = shape
    fields = trace(network, (batch, channels, 2 * height, 2 * width)).layers[-1].fields
    if len(fields) != 2:
        return None, None
    return fields[0].grid, fields[1].grid
