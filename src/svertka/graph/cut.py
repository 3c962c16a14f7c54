"""A network as prefix and rest: cut between two layers, wherever all that is computed flows through one tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.fx_trace import SHAPE, trace_to_fx

MAX_LISTED_STAGES = 12  # stages that a message names


@dataclass(frozen=True)
class Stage:
    """Layers one after the other whose outputs have the same shape, such as all of ResNet's conv4_x.

    `name`: of its first module, "layer4" or "features.24". `parameters`: numbers that it learns. `shape`: of one
    picture's output, (C, H, W) or (C,). `given`: of one picture's input. The head, which gives the scores, is the last.
    Of layers without parameters, dropout stands at the beginning of a stage, all others at the end of one: so what goes
    into a stage is as small as can be, and the same each time.
    """

    name: str
    parameters: int
    shape: tuple[int, ...]
    given: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Halves:
    """`rest(prefix(x))` is `network(x)` in inference; both hold modules and parameters of the network itself.

    `prefix` is None where nothing comes before the cut. `shape`: of what flows from one to the other for one picture.
    """

    prefix: fx.GraphModule | None
    rest: fx.GraphModule
    shape: tuple[int, ...]


def find_stages(network: nn.Module, shape: tuple[int, ...]) -> list[Stage]:
    """The stages of `network` for inputs of `shape`, (1, C, H, W), from the picture to the head; one, if it has no cut.

    Raises:
        UsageError: as for `symbolic.symbolic`.
    """
    return CutPoints(network, shape).stages


def cut_network(network: nn.Module, before: str, shape: tuple[int, ...]) -> Halves:
    """`network` in two, the second of which begins with the stage or module called `before`.

    Auxiliary classifiers, which only training has, are in neither half.

    Raises:
        UsageError: there is no such stage or module, or more than one tensor flows into it.
    """
    return CutPoints(network, shape).at(before)


class CutPoints:
    """The graph of a network, and the places in it through which one tensor flows: for several questions of one kind.

    Raises:
        UsageError: as for `symbolic.symbolic`.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self.network, self.graph = network, trace_to_fx(network, shape)
        self.nodes = [node for node in self.graph.nodes if node.op not in ("get_attr", "output")]
        self.modules = dict(network.named_modules())
        self.places = sorted(self._places())  # 0: before everything

    def _places(self) -> Iterator[int]:
        """Counts of nodes such that of the values of the first so many only the last one's is needed by the others."""
        order = {node: number for number, node in enumerate(self.nodes)}
        end = len(self.nodes)
        last_use = {
            node: max((order.get(user, end) for user in node.users), default=order[node]) for node in self.nodes
        }
        needed_until = -1  # by the values before the last
        for number, node in enumerate(self.nodes):
            if needed_until <= number and node.meta[SHAPE] is not None and number + 1 < end:
                yield number + 1
            needed_until = max(needed_until, last_use[node])

    @property
    def stages(self) -> list[Stage]:
        """As `find_stages` gives them."""
        return [stage for stage, _ in self._begun]

    @cached_property
    def _begun(self) -> list[tuple[Stage, int]]:
        """The stages, each with the place at which it begins."""
        begins = self._beginnings()
        found = []
        for begin, end in zip(begins, [*begins[1:], len(self.nodes)], strict=True):
            nodes = self.nodes[begin:end]
            learning = {id(one): one for node in nodes for one in self._parameters(node)}
            found.append(
                (
                    Stage(
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
        """Places at which stages begin."""
        places = [place for place in self.places if not self._in_block(place)]
        pieces = list(zip(places, [*places[1:], len(self.nodes)], strict=True))
        begins: list[int] = []
        shape: tuple[int, ...] | None = None  # of the stage's output, as soon as it has parameters
        last = max((number for number, piece in enumerate(pieces) if self._learns(*piece)), default=0)
        waiting: int | None = None  # where random layers began that no parameters have followed yet
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
        """Whether a module that is more than a list of others, such as a residual block, runs on both sides of it."""
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
        """Of the outermost module that begins with the first layer in the stage that learns, and lies within."""
        first = next((number for number in range(begin, end) if self._learns(number, number + 1)), begin)
        outside = {path for node in (*self.nodes[:begin], *self.nodes[end:]) for path in _around(node)}
        inside = [path for path in _around(self.nodes[first]) if path and path not in outside]
        return inside[0] if inside else str(self.nodes[first].target)

    def at(self, name: str) -> Halves:
        """The two halves before the stage or module of that name, as `cut_network` gives them."""
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

    def halves(self, place: int) -> Halves:
        """The two halves at one of the `places`."""
        if place <= 1:
            whole = fx.GraphModule(self.network, self.graph)
            return Halves(None, whole, self.nodes[0].meta[SHAPE][1:])
        between = self.nodes[place - 1]
        before, after = fx.Graph(), fx.Graph()
        made = self._copy(self.nodes[:place], before, {})
        before.output(made[between])
        outputs = self.graph.find_nodes(op="output")
        self._copy([*self.nodes[place:], *outputs], after, {between: after.placeholder("features")})
        return Halves(
            fx.GraphModule(self.network, before), fx.GraphModule(self.network, after), between.meta[SHAPE][1:]
        )

    def _copy(self, nodes: list[fx.Node], graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """Append `nodes` to `graph`, with the tensors of the network that they read; what each became, with `made`."""
        own = set(nodes)
        for node in self.graph.nodes:
            if node in own or (node.op == "get_attr" and not own.isdisjoint(node.users)):
                made[node] = graph.node_copy(node, made.__getitem__)
        return made


def _around(node: fx.Node) -> list[str]:
    """The paths of the modules in which `node` runs, outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
