"""A network as a graph whose layers can be changed, and of which only the part after the change is computed again."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.fx_trace import SHAPE, trace_to_fx
from svertka.graph.network_copy import copy_network
from svertka.inspection.activations import (
    INFERENCE_NO_OPS,
    NORM_KINDS,
    convolution_names,
    is_activation_kind,
    list_layers,
)

Values = Mapping[fx.Node, Any]

IN_PLACE_OPERATORS = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """A layer whose units can be changed.

    Attributes:
        name: Name of the convolution.
        node: The node whose output is changed: its activation function, where one follows.
        num_units: Channels.
        dependents: The nodes that depend on `node`, in order.
        frontier: The nodes whose values the dependents read besides, and that depend on the image.
    """

    name: str
    node: fx.Node
    num_units: int
    dependents: Sequence[fx.Node]
    frontier: Sequence[fx.Node]


class ReplayedGraph:
    """The graph of a network in evaluation mode, without operations in place.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).
        layers: Names of convolutions; None for all.

    Attributes:
        layers: The layers in the order in which they run.
        bytes_per_image: Memory of all values of one image.

    Raises:
        UsageError: The network makes decisions based on values; or a layer is not a convolution of the network.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], layers: Sequence[str] | None = None) -> None:
        graph = trace_to_fx(network, shape)
        twin = copy_network(network).eval().requires_grad_(False)
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in twin.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        for node in graph.nodes:
            _replace_in_place(node)
        self.module = fx.GraphModule(twin, graph)
        self._nodes = list(self.module.graph.nodes)
        self._of_image = _depend_on([next(node for node in self._nodes if node.op == "placeholder")])
        self.layers = list(self._find_layers(network, shape, layers))
        sizes = [torch.Size(node.meta[SHAPE]).numel() for node in self._of_image if node.meta.get(SHAPE)]
        self.bytes_per_image = 4 * sum(sizes)

    def _find_layers(
        self, network: nn.Module, shape: tuple[int, ...], wanted: Sequence[str] | None
    ) -> Iterator[UnitLayer]:
        called = {str(node.target): node for node in reversed(self._nodes) if node.op == "call_module"}
        names = [name for name in convolution_names(list_layers(network, shape)) if name in called]
        if unknown := set(wanted or ()) - set(names):
            raise UsageError(
                f"layer={min(unknown)} is not a convolution that is a module of the network; use "
                f"{' or '.join(names[-3:])}"
            )
        for name in names:
            if wanted is not None and name not in wanted:
                continue
            node = self._follow(called[name])
            dependents = [one for one in self._nodes if one in _depend_on([node]) and one is not node]
            inputs = dict.fromkeys(one for each in dependents for one in each.all_input_nodes)
            frontier = [one for one in inputs if one not in dependents and one is not node and one in self._of_image]
            yield UnitLayer(name, node, node.meta[SHAPE][1], dependents, frontier)

    def _follow(self, node: fx.Node) -> fx.Node:
        """Return the activation function after a convolution, or the batch norm; else the convolution."""
        found = node
        while len(node.users) == 1:
            (reader,) = node.users
            kind = self._kind(reader)
            if reader.meta.get(SHAPE) != node.meta[SHAPE] or not (
                is_activation_kind(kind) or kind in NORM_KINDS + INFERENCE_NO_OPS
            ):
                break
            node = reader
            found = found if kind in INFERENCE_NO_OPS else node
            if is_activation_kind(kind):
                break
        return found

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.module.get_submodule(str(node.target))).__name__
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")

    def run(self, images: Tensor, keep: Sequence[fx.Node] = (), *, gradients: bool = False) -> tuple[Tensor, Values]:
        """Return the scores of images, and the values of the nodes `keep`.

        Args:
            images: (N, C, H, W).
            keep: Nodes whose values are returned.
            gradients: Whether the values keep their gradients after a backward pass.
        """
        values: dict[fx.Node, Any] = {}
        interpreter = _Keeping(self.module, values, set(keep), gradients)
        return _scores(interpreter.run(images.contiguous(memory_format=torch.channels_last))), values

    def replay(self, layer: UnitLayer, changed: Tensor, values: Mapping[fx.Node, Any], images: Tensor) -> Tensor:
        """Return the scores if a layer had other outputs.

        Args:
            layer: The layer.
            changed: (n, C, H, W), the outputs.
            values: Values of the layer's frontier, from `run`.
            images: (n,) int64, the image in `values` to which each output belongs.
        """
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        interpreter.env = {one: take_images(values[one], images) for one in layer.frontier}
        interpreter.env[layer.node] = changed
        left = {one: sum(user in set(layer.dependents) for user in one.users) for one in self._nodes}
        result: Any = None
        for node in layer.dependents:
            for one in node.all_input_nodes:
                if one not in interpreter.env:  # a parameter, or what is computed from parameters alone
                    interpreter.env[one] = self._constant(one, interpreter)
            result = interpreter.env[node] = interpreter.run_node(node)
            for one in node.all_input_nodes:
                left[one] -= 1
                if not left[one]:
                    del interpreter.env[one]
        return _scores(result)

    def _constant(self, node: fx.Node, interpreter: fx.Interpreter) -> Any:
        for one in node.all_input_nodes:
            if one not in interpreter.env:
                interpreter.env[one] = self._constant(one, interpreter)
        return interpreter.run_node(node)


class _Keeping(fx.Interpreter):
    """An interpreter that keeps values of some nodes."""

    def __init__(self, module: fx.GraphModule, values: dict[fx.Node, Any], keep: set[fx.Node], gradients: bool) -> None:
        super().__init__(module)
        self._values, self._keep, self._gradients = values, keep, gradients

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._keep:
            if self._gradients and result.requires_grad:
                result.retain_grad()
            elif self._gradients:
                result.requires_grad_()
            self._values[n] = result
        return result


def take_images(values: Tensor, images: Tensor) -> Tensor:
    """Return a copy of the values of some images, in channels-last order if they are maps."""
    taken = values[images]
    return taken.contiguous(memory_format=torch.channels_last) if taken.ndim == 4 else taken


def _scores(output: Any) -> Tensor:
    """Return the first tensor of what a network returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def _depend_on(nodes: Sequence[fx.Node]) -> dict[fx.Node, None]:
    """Return the nodes that depend on any of `nodes`, and these."""
    found, waiting = dict.fromkeys(nodes), list(nodes)
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found[user] = None
                waiting.append(user)
    return found


def _replace_in_place(node: fx.Node) -> None:
    """Make an operation return a new value."""
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        node.target = str(node.target)[:-1]
    if node.op == "call_function":
        node.target = IN_PLACE_OPERATORS.get(node.target, node.target)  # type: ignore[arg-type]
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and hasattr(torch, name[:-1]):
            node.target = getattr(torch, name[:-1])
