"""A network as a graph whose layers can be changed, and of which only the part after the change is computed again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from svertka.errors import SvertkaError, UsageError
from svertka.graph.fx_trace import SHAPE, trace_to_fx
from svertka.graph.network_copy import copy_network
from svertka.graph.trace_errors import first_line_of_error
from svertka.inspection.activations import (
    INFERENCE_NO_OPS,
    NORM_KINDS,
    convolution_names,
    is_activation_kind,
    list_layers,
)
from svertka.inspection.checked_forward_pass import call_network
from svertka.inspection.graph_dataflow import Dataflow, iter_tensors, take_images, trace_dataflow

# A value at a time: a node, and the last node after which its memory is unchanged until it is read.
Moment = tuple[fx.Node, fx.Node]
Values = Mapping[Moment, Any]


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """A layer whose units can be changed, and how the scores are computed from its output.

    Attributes:
        name: Name of the convolution.
        node: The node whose output is changed: its activation function, where one follows.
        cut: The node from which on the scores are computed: the concatenation that alone reads `node`, or `node`.
        first_channel: The channel of `cut` that is the first unit.
        num_units: Channels.
        frontier: The values that cross the cut: those computed without the layer that the replay reads, and when.
        copied: The nodes of the frontier whose memory the replay changes.
        steps: The nodes to compute, in order; for a node that is the same tensor as another, this one.
        released: The nodes that are not read after each step.
    """

    name: str
    node: fx.Node
    cut: fx.Node
    first_channel: int
    num_units: int
    frontier: Mapping[fx.Node, Moment]
    copied: frozenset[fx.Node]
    steps: Sequence[tuple[fx.Node, fx.Node | None]]
    released: Sequence[Sequence[fx.Node]]


class ReplayedGraph:
    """The graph of a network in evaluation mode.

    Operations in place stay as they are: a replay computes the nodes that read what was changed, directly or through
    shared memory, and gets copies of all other values as they were when the whole network read them.

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
        twin = copy_network(network).eval().requires_grad_(False)
        self.module = fx.GraphModule(twin, trace_to_fx(network, shape))
        self._nodes = list(self.module.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._flow, self._memory_format = _choose_memory_format(network, self.module.graph, shape)
        self.name = type(network).__name__
        if self._memory_format is torch.channels_last:
            twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._twin = twin
        self.layers = list(self._find_layers(network, shape, layers))
        self.bytes_per_image = max(1, round(sum(self._flow.num_bytes.values())))

    def _find_layers(
        self, network: nn.Module, shape: tuple[int, ...], wanted: Sequence[str] | None
    ) -> Iterator[UnitLayer]:
        called = {str(node.target): node for node in reversed(self._nodes) if node.op == "call_module"}
        names = [name for name in convolution_names(list_layers(network, shape)) if name in called]
        if unknown := set(wanted or ()) - set(names):
            raise UsageError(
                f"layer={min(unknown)} is not a convolution that is a module of the network; "
                + (f"use {' or '.join(names[-3:])}" if names else "it has none")
            )
        for name in names:
            if wanted is None or name in wanted:
                node = self._follow(called[name])
                cut, first_channel = self._find_cut(node)
                plan = _Replay(self._flow, self._nodes, cut, self.name).plan(name)
                yield UnitLayer(name, node, cut, first_channel, node.meta[SHAPE][1], *plan)

    def _find_cut(self, node: fx.Node) -> tuple[fx.Node, int]:
        """Return the concatenation of channels that alone reads a node, and the first channel of the node there.

        Without one, return the node itself.
        """
        blocks, later = self._flow.blocks, self._nodes[self._place[node] + 1 :]
        readers = [one for one in later if any(blocks[read] & blocks[node] for read in one.all_input_nodes)]
        if len(readers) != 1 or readers[0].target not in (torch.cat, torch.concat):
            return node, 0
        (cut,) = readers
        given = cut.args[0] if cut.args else None
        tensors = [one for one in given if isinstance(one, fx.Node)] if isinstance(given, list | tuple) else []
        axis = cut.kwargs.get("dim", cut.args[1] if len(cut.args) > 1 else 0)
        if axis not in (1, -3) or tensors.count(node) != 1:
            return node, 0
        return cut, sum(one.meta[SHAPE][1] for one in tensors[: tensors.index(node)])

    def _follow(self, node: fx.Node) -> fx.Node:
        """Return the activation function after a convolution, or the batch norm; else the convolution."""
        found = node
        while reader := min(node.users, key=self._place.__getitem__, default=None):
            in_place = self._flow.writes[reader] & self._flow.blocks[node]  # all other readers get the new values
            kind = self._kind(reader)
            if (len(node.users) > 1 and not in_place) or reader.meta.get(SHAPE) != node.meta[SHAPE]:
                break
            if not (is_activation_kind(kind) or kind in NORM_KINDS + INFERENCE_NO_OPS):
                break
            node = reader
            found = found if kind in INFERENCE_NO_OPS else node
            if is_activation_kind(kind):
                break
        return found

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.module.get_submodule(str(node.target))).__name__
        return (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")).rstrip("_")

    def run(self, images: Tensor, layers: Sequence[UnitLayer] = ()) -> tuple[Tensor, Values]:
        """Return the scores of images, and the values that replays from the layers read.

        Args:
            images: (N, C, H, W).
            layers: The layers.
        """
        moments = [one for layer in layers for one in ((layer.cut, layer.cut), *layer.frontier.values())]
        keeping = _Keeping(self.module, {one: self._flow.is_written_after(*one) for one in moments})
        scores = self._run(keeping, images)
        return scores, keeping.values

    def sum_activations(self, images: Tensor, layers: Sequence[UnitLayer]) -> "GradientPass":
        """Return the scores of images, and the sums of the layers' activations.

        Args:
            images: (N, C, H, W).
            layers: The layers.
        """
        with torch.no_grad():
            return self._differentiate(images, layers, lambda scores: scores[:, :0])

    def differentiate(
        self, images: Tensor, layers: Sequence[UnitLayer], objectives: Callable[[Tensor], Tensor]
    ) -> "GradientPass":
        """Return the scores of images, and the gradients of functions of the scores with respect to the layers.

        Args:
            images: (N, C, H, W).
            layers: The layers.
            objectives: Maps the scores (N, K) to (N, M), M numbers of each image.

        Returns:
            The scores; and the gradients, unless the network changes values in place that their computation needs.
        """
        with torch.enable_grad():
            try:
                return self._differentiate(images, layers, objectives)
            except (RuntimeError, UsageError) as error:
                if "inplace" not in str(error):
                    raise
        with torch.no_grad():  # the network runs, but has no gradients
            return self._differentiate(images, layers, objectives)

    def _differentiate(
        self, images: Tensor, layers: Sequence[UnitLayer], objectives: Callable[[Tensor], Tensor]
    ) -> "GradientPass":
        nodes = [layer.node for layer in layers]
        found = GradientPass(self.module, {node: self._flow.is_written_after(node, node) for node in nodes})
        found.scores = self._run(found, images)
        sums = objectives(found.scores).sum(0)
        if sums.requires_grad:
            for number, one in enumerate(sums):
                torch.autograd.backward(one, retain_graph=number < len(sums) - 1)
        found.release()
        return found

    def run_changed(self, layer: UnitLayer, images: Tensor, units: Tensor, constants: Tensor) -> Tensor:
        """Return the scores with the map of a unit of each image replaced, by a run of the whole graph.

        Args:
            layer: The layer.
            images: (N, C, H, W).
            units: (N,) int64, the unit of each image.
            constants: (N,), its new activation.
        """
        changing = _Changing(self.module, layer.node, units, constants)
        return self._run(changing, images)

    def run_network(self, images: Tensor) -> Tensor:
        """Return the scores that the network itself computes, not its graph."""
        return self._scores(call_network(self._twin, self._copy(images)), len(images))

    def bytes_per_replay(self, layer: UnitLayer) -> int:
        """Return the size of the largest value that a replay of one image computes."""
        return max(1, round(max(self._flow.num_bytes[node] for node in (layer.cut, *(one for one, _ in layer.steps)))))

    def bytes_of_replay(self, layer: UnitLayer) -> int:
        """Return the size of all values that a replay of one image computes."""
        return max(1, round(sum(self._flow.num_bytes[node] for node in (layer.cut, *(one for one, _ in layer.steps)))))

    def suffix(self, layer: UnitLayer) -> fx.GraphModule | None:
        """Return the network from a layer's cut to the scores as a module; None if it reads other values, too."""
        if layer.frontier or any(self._flow.writes[node] & self._flow.blocks[layer.cut] for node, _ in layer.steps):
            return None
        graph = fx.Graph()
        copies = {layer.cut: graph.placeholder("maps")}
        for node, same in layer.steps:
            copies[node] = graph.node_copy(node, copies.__getitem__) if same is None else copies[same]
        return fx.GraphModule(self.module, graph)

    def replay(self, layer: UnitLayer, changed: Tensor, values: Values, images: Tensor) -> Tensor:
        """Return the scores if a layer had other outputs.

        Args:
            layer: The layer.
            changed: (n, C, H, W), the outputs of its cut.
            values: The values of the layer's frontier, from `run`.
            images: (n,) int64, the image in `values` to which each output belongs.
        """
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        env = interpreter.env = {layer.cut: changed}
        for node, moment in layer.frontier.items():
            value = values[moment]
            if self._flow.kinds[node] == "per image":
                value = take_images(value, images)
            elif node in layer.copied:
                value = _copy_tensors(value)
            env[node] = value
        result: Any = None
        for (node, same), released in zip(layer.steps, layer.released, strict=True):
            result = env[node] = interpreter.run_node(node) if same is None else env[same]
            for one in released:
                del env[one]
        return self._scores(result, len(changed))

    def _run(self, interpreter: fx.Interpreter, images: Tensor) -> Tensor:
        """Return the scores of images.

        Raises:
            UsageError: The network fails.
        """
        try:
            return self._scores(interpreter.run(self._copy(images)), len(images))
        except (SvertkaError, MemoryError):
            raise
        except Exception as error:  # a network may raise anything
            raise UsageError(
                f"{self.name} cannot run on images {'×'.join(map(str, images.shape))}: {first_line_of_error(error)}"
            ) from error

    def _copy(self, images: Tensor) -> Tensor:
        """Return a copy of images, which the network may change."""
        return images.clone(memory_format=self._memory_format)

    def _scores(self, output: Any, count: int) -> Tensor:
        """Return the first tensor of what the network returns, (N, K).

        Raises:
            UsageError: It has another shape, or holds NaN.
        """
        scores = next(iter_tensors(output), None)
        if scores is not None and scores.ndim == 1 and count == 1:  # without the axis of images, as after squeeze()
            scores = scores[None]
        if scores is None or scores.ndim != 2 or len(scores) != count:
            shape = "no tensor" if scores is None else "×".join(map(str, scores.shape)) or "one number"
            raise UsageError(f"{self.name} returns {shape} for {count} images; it has to return scores (N, classes)")
        if scores.isnan().any():
            raise UsageError(f"{self.name} returns scores that are NaN; give a network whose scores are numbers")
        return scores


def _choose_memory_format(
    network: nn.Module, graph: fx.Graph, shape: tuple[int, ...]
) -> tuple[Dataflow, torch.memory_format]:
    """Return the dataflow of the graph, and the order of the axes in memory for which it holds.

    Channels-last maps are faster. A view of them does not exist, so `view` becomes `reshape`, which copies. This is the
    same only if nothing is written into memory that is shared with a view.
    """
    plain = trace_dataflow(network, graph, shape, torch.contiguous_format)
    if not plain.shares_only_whole_values:
        return plain, torch.contiguous_format
    views = [node for node in graph.nodes if node.op == "call_method" and node.target == "view"]
    for node in views:
        node.target = "reshape"
    try:
        faster = trace_dataflow(network, graph, shape, torch.channels_last)
    except UsageError:  # such as as_strided
        faster = None
    shared = {frozenset(nodes) for nodes in plain.written.values()}
    if faster and faster.shares_only_whole_values and shared == {frozenset(one) for one in faster.written.values()}:
        return faster, torch.channels_last
    for node in views:
        node.target = "view"
    return plain, torch.contiguous_format


class _Replay:
    """The plan of the replay from one layer.

    Args:
        flow: The dataflow of the graph.
        nodes: The nodes of the graph, in order.
        cut: The node whose output is changed.
        network: Name of the network.
    """

    def __init__(self, flow: Dataflow, nodes: Sequence[fx.Node], cut: fx.Node, network: str) -> None:
        self._flow, self._nodes, self._cut, self._network = flow, nodes, cut, network
        self._place = {node: place for place, node in enumerate(nodes)}
        self._changed = set(flow.blocks[cut])  # blocks that differ from the whole network's, or may
        self._replayed: set[fx.Node] = set()
        self._steps: dict[fx.Node, fx.Node | None] = {}
        self._frontier: dict[fx.Node, Moment] = {}
        self._first_read: dict[int, int] = {}  # place of the first replayed node that touches a block
        self._name = ""

    def plan(
        self, name: str
    ) -> tuple[
        Mapping[fx.Node, Moment],
        frozenset[fx.Node],
        Sequence[tuple[fx.Node, fx.Node | None]],
        Sequence[Sequence[fx.Node]],
    ]:
        """Return the frontier, the copied nodes, the steps and the released nodes of `UnitLayer`.

        Args:
            name: Name of the convolution.

        Raises:
            UsageError: The network changes values in place in such a way that they cannot be computed again.
        """
        self._name = name
        self._find_replayed()
        for node in sorted(self._replayed, key=self._place.__getitem__):
            self._steps[node] = None
            for one in node.all_input_nodes:
                self._provide(one, self._place[node])
        steps = sorted(self._steps.items(), key=lambda step: self._place[step[0]])
        last: dict[fx.Node, int] = {}
        for number, (node, same) in enumerate(steps):
            last.update(dict.fromkeys(node.all_input_nodes if same is None else [same], number))
        released: list[list[fx.Node]] = [[] for _ in steps]
        for node, number in last.items():
            released[number].append(node)
        copied = frozenset(node for node in self._frontier if self._flow.blocks[node] & self._changed)
        return self._frontier, copied, steps, released

    def _find_replayed(self) -> None:
        """Find the nodes after the cut that read what was changed, and those whose order with these matters."""
        flow = self._flow
        for place, node in enumerate(self._nodes):
            if place <= self._place[self._cut]:
                continue
            inputs = node.all_input_nodes
            touched = flow.writes[node].union(*(flow.blocks[one] for one in inputs))
            is_reached = touched & self._changed or self._cut in inputs or not self._replayed.isdisjoint(inputs)
            if not is_reached and node.op != "output":
                continue
            self._replayed.add(node)
            self._changed |= flow.blocks[node] | flow.writes[node]
            for block in touched:
                self._first_read.setdefault(block, place)
            self._changed |= {block for block in touched if flow.last_write(block) > place}

    def _provide(self, node: fx.Node, place: int) -> None:
        """Make sure that the value of a node exists when the node at `place` is computed."""
        if node is self._cut or node in self._steps or node in self._frontier or node in self._replayed:
            return
        flow = self._flow
        blocks = flow.blocks[node]
        if blocks & flow.blocks[self._cut] and flow.layouts[node] == flow.layouts[self._cut]:
            self._steps[node] = self._cut
        elif blocks & self._changed and (owner := self._owner(node)) is not None:
            if flow.layouts[node] and flow.layouts[node] == flow.layouts[owner]:
                self._steps[node] = owner
                self._provide(owner, place)
            else:
                self._compute(node, place)
        elif blocks & flow.blocks[self._cut]:
            raise self._error()
        elif flow.kinds[node] == "other":
            self._compute(node, place)
        else:
            self._frontier[node] = self._moment(node, place)

    def _owner(self, node: fx.Node) -> fx.Node | None:
        """Return the input with which a node shares memory."""
        blocks = self._flow.blocks
        return next((one for one in node.all_input_nodes if blocks[one] & blocks[node]), None)

    def _compute(self, node: fx.Node, place: int) -> None:
        """Compute a node before the cut again."""
        flow = self._flow
        is_view = flow.blocks[node] <= frozenset[int]().union(*(flow.blocks[one] for one in node.all_input_nodes))
        memory = flow.blocks[node].union(*(flow.blocks[one] for one in node.all_input_nodes))
        is_changed = any(flow.last_write(block) > self._place[node] for block in memory)
        if flow.writes[node] or (is_changed and not is_view):
            raise self._error()
        self._steps[node] = None
        for one in node.all_input_nodes:
            self._provide(one, place)

    def _moment(self, node: fx.Node, place: int) -> Moment:
        """Return when the value of a node is as it is read first by a replayed node."""
        flow = self._flow
        until = min([place, *(self._first_read[block] for block in flow.blocks[node] if block in self._first_read)])
        begin = self._place[node]
        writing = [one for one in self._nodes[begin + 1 : until] if flow.writes[one] & flow.blocks[node]]
        return node, writing[-1] if writing else node

    def _error(self) -> UsageError:
        return UsageError(
            f"{self._network} changes values in place, so that the scores cannot be computed again from layer="
            f"{self._name}; make new tensors there, or give other layers"
        )


class _Keeping(fx.Interpreter):
    """An interpreter that keeps values.

    Args:
        module: The graph.
        moments: What is kept, and whether it is copied.
    """

    def __init__(self, module: fx.GraphModule, moments: Mapping[Moment, bool]) -> None:
        super().__init__(module, garbage_collect_values=all(node is after for node, after in moments))
        self._copied = moments
        self._kept: dict[fx.Node, list[fx.Node]] = {}
        for node, after in moments:
            self._kept.setdefault(after, []).append(node)
        self.values: dict[Moment, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for node in self._kept.get(n, ()):
            value = result if node is n else self.env[node]
            self.values[node, n] = _copy_tensors(value) if self._copied[node, n] else value
        return result


class GradientPass(fx.Interpreter):
    """A run with gradients with respect to feature maps.

    Args:
        module: The graph.
        nodes: The nodes that return the maps, and whether these are changed in place later.

    Attributes:
        scores: The scores, (N, K).
        sums: The activations of each node's units, summed over images and positions, (units,) float64.
        num_positions: Images times positions of each node.
        gradients: Sums over the positions of each map's gradient, (N, units), for each objective; only of nodes that
            the objectives depend on in a differentiable way.
        products: The same of gradient times activation.
    """

    def __init__(self, module: fx.GraphModule, nodes: Mapping[fx.Node, bool]) -> None:
        super().__init__(module)
        self._copied = nodes
        self.scores = torch.empty(0)
        self.sums: dict[fx.Node, Tensor] = {}
        self.num_positions: dict[fx.Node, int] = {}
        self.gradients: dict[fx.Node, list[Tensor]] = {}
        self.products: dict[fx.Node, list[Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    def release(self) -> None:
        """Forget the maps, which the hooks refer to in a cycle."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.scores = self.scores.detach()

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and watch its gradient."""
        result = super().run_node(n)
        if n in self._copied:
            self._watch(n, result)
        return result

    def _watch(self, node: fx.Node, result: Tensor) -> None:
        is_differentiated = torch.is_grad_enabled()
        if is_differentiated and not result.requires_grad:  # a leaf must not be changed in place afterwards
            result.add_(torch.zeros((), dtype=result.dtype, device=result.device, requires_grad=True))
        maps = result.detach().clone() if self._copied[node] else result.detach()
        self.sums[node] = maps.sum((0, 2, 3), dtype=torch.float64).cpu()
        self.num_positions[node] = maps.numel() // maps.shape[1]

        def keep(gradient: Tensor) -> None:  # called with the gradient before any later change in place
            self.gradients.setdefault(node, []).append(gradient.sum((2, 3)).cpu())
            self.products.setdefault(node, []).append((gradient * maps).sum((2, 3)).cpu())

        if is_differentiated:
            self._hooks.append(result.register_hook(keep))  # type: ignore[no-untyped-call]


class _Changing(fx.Interpreter):
    """An interpreter that replaces the map of a unit of each image."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, units: Tensor, constants: Tensor) -> None:
        super().__init__(module)
        self._node, self._units, self._constants = node, units, constants

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n is self._node:
            replace_units(result, self._units, self._constants)
        return result


def replace_units(maps: Tensor, units: Tensor, constants: Tensor) -> None:
    """Replace the map of a unit of each image by a constant, in place.

    Args:
        maps: (n, C, H, W).
        units: (n,) int64.
        constants: (n,).
    """
    rows = torch.arange(len(units), device=maps.device)
    maps[rows, units.to(maps.device)] = constants.to(maps)[:, None, None]


def _copy_tensors(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_copy_tensors, value))
    return value.clone() if isinstance(value, Tensor) else value
