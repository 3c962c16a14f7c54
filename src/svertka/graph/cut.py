"""Cuts of a network into a prefix and a rest, at any point where a single tensor connects the two."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.fx_trace import SHAPE, trace_to_fx

MAX_LISTED_STAGES = 12  # stages listed in an error message


@dataclass(frozen=True)
class SameShapeStage:
    """Consecutive layers whose outputs have the same shape, such as conv4_x of ResNet.

    The head, which computes the scores, is the last stage. A stage begins with dropout, if there is any before its
    first parameters, and ends with layers without parameters. Its input is therefore small and deterministic.

    Attributes:
        name: Name of the first module, such as "layer4" or "features.24".
        parameters: Number of trainable parameters.
        shape: Shape of the output for one image, (C, H, W) or (C,).
        given: Shape of the input for one image.
    """

    name: str
    parameters: int
    shape: tuple[int, ...]
    given: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PrefixAndRest:
    """The two parts of a network, which share its modules. In inference, `rest(prefix(x))` equals `network(x)`.

    Attributes:
        prefix: None if nothing precedes the cut.
        rest: The remaining layers.
        shape: Shape of the tensor between the two, for one image.
    """

    prefix: fx.GraphModule | None
    rest: fx.GraphModule
    shape: tuple[int, ...]


def find_stages(network: nn.Module, shape: tuple[int, ...]) -> list[SameShapeStage]:
    """Return the stages of `network` from the input to the head; one stage if it cannot be cut.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network cannot be traced.
    """
    return CuttableGraph(network, shape).stages


def cut_network(network: nn.Module, before: str, shape: tuple[int, ...]) -> PrefixAndRest:
    """Cut `network` in two, so that the second part begins with the stage or module called `before`.

    Neither part contains auxiliary classifiers, which only run in training.

    Args:
        network: Any nn.Module.
        before: Name of a stage or module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: There is no such stage or module, more than one tensor flows into it, or the network cannot be
            traced.
    """
    return CuttableGraph(network, shape).at(before)


class CuttableGraph:
    """The graph of a network with all places where it can be cut.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network cannot be traced.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self.network, self.graph = network, trace_to_fx(network, shape)
        self.nodes = [node for node in self.graph.nodes if node.op not in ("get_attr", "output")]
        self.modules = dict(network.named_modules())
        self.places = sorted(self._places())  # 0: before the first node

    def _places(self) -> Iterator[int]:
        """Yield each position in the graph after which nodes depend only on the last node before it."""
        order = {node: number for number, node in enumerate(self.nodes)}
        end = len(self.nodes)
        last_use = {
            node: max((order.get(user, end) for user in node.users), default=order[node]) for node in self.nodes
        }
        needed_until = -1  # last node that reads a value from before the previous node
        for number, node in enumerate(self.nodes):
            if needed_until <= number and node.meta[SHAPE] is not None and number + 1 < end:
                yield number + 1
            needed_until = max(needed_until, last_use[node])

    @property
    def stages(self) -> list[SameShapeStage]:
        """The stages of the network, as `find_stages` returns them."""
        return [stage for stage, _ in self._begun]

    @cached_property
    def _begun(self) -> list[tuple[SameShapeStage, int]]:
        """The stages, each with the place where it begins."""
        begins = self._beginnings()
        found = []
        for begin, end in zip(begins, [*begins[1:], len(self.nodes)], strict=True):
            nodes = self.nodes[begin:end]
            learning = {id(one): one for node in nodes for one in self._parameters(node)}
            found.append(
                (
                    SameShapeStage(
                        name=self._name(begin, end),
                        parameters=sum(one.numel() for one in learning.values()),
                        shape=nodes[-1].meta[SHAPE][1:],
                        given=self.nodes[max(begin, 1) - 1].meta[SHAPE][1:],
                    ),
                    begin,
                )
            )
        return found

    def _beginnings(self) -> list[int]:
        """Return the places at which stages begin."""
        places = [place for place in self.places if not self._in_block(place)]
        pieces = list(zip(places, [*places[1:], len(self.nodes)], strict=True))
        begins: list[int] = []
        shape: tuple[int, ...] | None = None  # of the stage's output; None before the stage has parameters
        last = max((number for number, piece in enumerate(pieces) if self._learns(*piece)), default=0)
        waiting: int | None = None  # start of dropout that precedes the next parameters
        for number, (begin, end) in enumerate(pieces):
            if not self._learns(begin, end):
                if waiting is None and self._is_random(begin, end):
                    waiting = begin
                continue
            output = self.nodes[end - 1].meta[SHAPE]
            if not begins or output != shape or number == last:
                begins.append(begin if waiting is None else waiting)
            shape, waiting = output, None
        begins = begins or [0]
        begins[0] = 0
        return begins

    def _in_block(self, place: int) -> bool:
        """Return whether the place is inside a module other than nn.Sequential, such as a residual block."""
        common = set(_around(self.nodes[place - 1])) & set(_around(self.nodes[place])) - {""}
        return any(type(self.modules[path]) is not nn.Sequential for path in common)

    def _learns(self, begin: int, end: int) -> bool:
        return any(self._parameters(node) for node in self.nodes[begin:end])

    def _is_random(self, begin: int, end: int) -> bool:
        called = (self.modules[str(node.target)] for node in self.nodes[begin:end] if node.op == "call_module")
        return any(isinstance(module, nn.modules.dropout._DropoutNd) for module in called)

    def _parameters(self, node: fx.Node) -> list[Tensor]:
        if node.op == "call_module":
            return list(self.modules[str(node.target)].parameters())
        read = [str(one.target) for one in node.all_input_nodes if one.op == "get_attr"]
        return [one for name, one in self.network.named_parameters() if name in read]

    def _name(self, begin: int, end: int) -> str:
        """Return the outermost module inside the stage that starts with its first trainable layer."""
        first = next((number for number in range(begin, end) if self._learns(number, number + 1)), begin)
        outside = {path for node in (*self.nodes[:begin], *self.nodes[end:]) for path in _around(node)}
        inside = [path for path in _around(self.nodes[first]) if path and path not in outside]
        node = self.nodes[first]
        return inside[0] if inside else str(node.target) if node.op == "call_module" else node.name

    def at(self, name: str) -> PrefixAndRest:
        """Return the two parts before the stage or module called `name`, as `cut_network` does."""
        named = {stage.name: begin for stage, begin in self._begun}
        place = named.get(name)
        if place is None:
            place = next((number for number, node in enumerate(self.nodes) if name in _around(node)), None)
        there = list(named)
        listed = ", ".join(
            there
            if len(there) <= MAX_LISTED_STAGES
            else [*there[: MAX_LISTED_STAGES // 2], "…", *there[-MAX_LISTED_STAGES // 2 :]]
        )
        if place is None:
            raise UsageError(f"{type(self.network).__name__} has no stage {name}; it has {listed}")
        if place not in (0, 1, *self.places):
            raise UsageError(f"{name} cannot be cut off, since more than one tensor flows into it; cut at {listed}")
        return self.halves(place)

    def before_module(self, path: str) -> PrefixAndRest:
        """Return the two parts directly before the module at `path`, even if a stage of that name begins earlier.

        Raises:
            UsageError: It does not run, or more than one tensor flows into it.
        """
        place = next((number for number, node in enumerate(self.nodes) if path in _around(node)), None)
        if place is None or place not in (0, 1, *self.places):
            raise UsageError(f"{type(self.network).__name__} cannot be cut before {path}")
        return self.halves(place)

    def halves(self, place: int) -> PrefixAndRest:
        """Return the two parts at one of the `places`."""
        if place <= 1:
            whole = fx.GraphModule(self.network, self.graph)
            return PrefixAndRest(None, whole, self.nodes[0].meta[SHAPE][1:])
        between = self.nodes[place - 1]
        before, after = fx.Graph(), fx.Graph()
        made = self._copy(self.nodes[:place], before, {})
        before.output(made[between])
        outputs = self.graph.find_nodes(op="output")
        self._copy([*self.nodes[place:], *outputs], after, {between: after.placeholder("features")})
        return PrefixAndRest(
            fx.GraphModule(self.network, before), fx.GraphModule(self.network, after), between.meta[SHAPE][1:]
        )

    def _copy(self, nodes: list[fx.Node], graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """Append copies of `nodes` and of the tensors they read to `graph`; return `made` with these copies."""
        own = set(nodes)
        for node in self.graph.nodes:
            if node in own or (node.op == "get_attr" and not own.isdisjoint(node.users)):
                made[node] = graph.node_copy(node, made.__getitem__)
        return made


def _around(node: fx.Node) -> list[str]:
    """Return the paths of the modules in which `node` runs, outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
