"""Whether changed feature maps leave images right, computed by a compiled part of a network.

If the network ends in a 1×1 convolution, as SqueezeNet does, the scores of few classes are computed first: those of the
label and of the classes that came next before the change. An image that one of these makes wrong needs no others.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from svertka.compiler.optimize import Optimized, optimize

COMPETITORS = 16  # classes that are compared with the label first
MIN_CLASSES = 4 * COMPETITORS  # with fewer, all scores are computed at once
CHANNELWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten)
CHANNELWISE_FUNCTIONS = (torch.relu, F.relu, F.dropout, F.adaptive_avg_pool2d, F.avg_pool2d, torch.flatten)
CHANNELWISE_METHODS = ("relu", "relu_", "mean", "flatten", "contiguous")


class CompiledReplay:
    """A compiled part of a network, from feature maps to scores.

    Args:
        suffix: Returns scores (N, K) of feature maps (N, C, H, W).
        maps: Typical feature maps, float32, on the CPU.
        batch_size: Maps that are computed at a time. Smaller batches are padded, since each size needs its own memory.

    Raises:
        UsageError: `suffix` cannot be compiled.
    """

    def __init__(self, suffix: fx.GraphModule, maps: Tensor, batch_size: int) -> None:
        self._batch_size = batch_size
        self._body: Optimized | None = None
        self._head: nn.Conv2d | None = None
        head = _find_head(suffix)
        if head is None:
            self._body = optimize(suffix, self._pad(maps))
            return
        (before,) = head.all_input_nodes
        self._head = cast(nn.Conv2d, suffix.get_submodule(str(head.target)))
        self._tail = _part(suffix, head, None)
        if before.op != "placeholder":
            self._body = optimize(_part(suffix, None, before), self._pad(maps))

    def are_right(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Return whether the label of each image has the highest score, (N,) bool.

        Args:
            maps: (N, C, H, W) float32.
            classes: (N, 1 + M) int64: the label, and other classes that probably have high scores.
        """
        if self._body is not None:
            maps = torch.cat([self._body(self._pad(some))[: len(some)] for some in torch.split(maps, self._batch_size)])
        if self._head is None:
            return maps.argmax(1) == classes[:, 0]
        scores = self._scores_of(self._head, maps, classes)
        right = scores[:, 1:].amax(1) <= scores[:, 0]
        if right.any():
            right[right.clone()] = self._tail(self._head(maps[right])).argmax(1) == classes[right, 0]
        return right

    def _scores_of(self, head: nn.Conv2d, maps: Tensor, classes: Tensor) -> Tensor:
        """Return the scores of some classes of each image, in the shape of `classes`."""
        count, channels, height, width = maps.shape
        pixels = maps.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        weights = head.weight[:, :, 0, 0][classes]
        scores = torch.bmm(pixels, weights.transpose(1, 2))
        if head.bias is not None:
            scores += head.bias[classes][:, None]
        found: Tensor = self._tail(scores.transpose(1, 2).reshape(*classes.shape, height, width))
        return found

    def _pad(self, maps: Tensor) -> Tensor:
        """Return maps with copies of the last one up to the batch size."""
        missing = self._batch_size - len(maps)
        return torch.cat([maps, maps[-1:].expand(missing, *maps.shape[1:])]) if missing else maps


def choose_competitors(scores: Tensor, labels: Tensor, count: int = COMPETITORS) -> Tensor:
    """Return the label of each image, and the classes with the highest scores besides it, (N, 1 + M) int64.

    Args:
        scores: (N, K).
        labels: (N,) int64.
        count: M, if there are so many other classes.
    """
    others = scores.scatter(1, labels[:, None], -torch.inf)
    return torch.cat([labels[:, None], others.topk(min(count, scores.shape[1] - 1), 1).indices], 1)


def _find_head(suffix: fx.GraphModule) -> fx.Node | None:
    """Return the 1×1 convolution whose channels are the classes; None if the suffix does not end with one."""
    *_, output = suffix.graph.nodes
    node: object = output.args[0]
    while isinstance(node, fx.Node) and len(node.users) == 1:
        module = suffix.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            plain = (module.kernel_size, module.stride, module.padding, module.groups) == ((1, 1), (1, 1), (0, 0), 1)
            return node if plain and module.out_channels >= MIN_CLASSES else None
        is_channelwise = (
            isinstance(module, CHANNELWISE_MODULES)
            or node.target in CHANNELWISE_FUNCTIONS
            or (node.op == "call_method" and node.target in CHANNELWISE_METHODS)
        )
        if not is_channelwise or len(node.all_input_nodes) != 1:
            return None
        (node,) = node.all_input_nodes
    return None


def _part(suffix: fx.GraphModule, after: fx.Node | None, until: fx.Node | None) -> fx.GraphModule:
    """Return the part of a network after a node, or from its input on, until a node, or its end."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    nodes = list(suffix.graph.nodes)
    if after is not None:
        copies[after] = graph.placeholder("maps")
        nodes = nodes[nodes.index(after) + 1 :]
    for node in nodes:
        copied = copies[node] = graph.node_copy(node, copies.__getitem__)
        if node is until:
            graph.output(copied)
            break
    return fx.GraphModule(suffix, graph)
