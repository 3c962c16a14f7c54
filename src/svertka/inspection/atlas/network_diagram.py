"""The network as a drawing: its layers from top to bottom, branches side by side, shortcuts as arcs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from svertka.graph.op_recorder import INPUT
from svertka.graph.summary import Layer, Trace
from svertka.pages.html_page import escape, isolate

ROW_HEIGHT = 48  # pixels, of a node in the rail
LANE_WIDTH = 12  # pixels between two branches
MAX_LANES = 6  # drawn side by side; what runs beside them shares the last


@dataclass(frozen=True)
class Node:
    """A layer of the drawing, together with what follows it at the same places: normalisation, rectification, dropout.

    `name`, `kind`: of its first layer. `members`: the names of all. `shape`: (channels, height, width), or (features,).
    `parameters`, `multiply_adds`: of all. `extent`: rows and columns of the picture that one position sees. `inputs`:
    indices of the nodes that it reads, -1 for the picture. `lane`: its column in the drawing, 0 at the left.
    """

    name: str
    kind: str
    members: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    extent: tuple[int, ...]
    inputs: tuple[int, ...]
    lane: int


@dataclass(frozen=True)
class Edge:
    """A line of the drawing from one node to a later one, along `lane`."""

    start: int
    end: int
    lane: int


@dataclass(frozen=True)
class NetworkDiagram:
    """The nodes in the order in which they run, and the lines between them."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def lanes(self) -> int:
        """Columns of the drawing."""
        return 1 + max(edge.lane for edge in self.edges)

    def index(self, layer: str) -> int:
        """Of the node that `layer` belongs to."""
        return next(k for k, node in enumerate(self.nodes) if layer in node.members)


def build_diagram(trace: Trace) -> NetworkDiagram:
    """The drawing of a network that was traced."""
    groups: list[list[Layer]] = []
    group_of = {INPUT: -1}
    layers = {layer.name: layer for layer in trace.layers}
    for layer in trace.layers:
        before = layers.get(layer.inputs[0]) if len(layer.inputs) == 1 else None
        if before is not None and _is_elementwise(layer, before) and groups[group_of[before.name]][-1] is before:
            group_of[layer.name] = group_of[before.name]
            groups[group_of[before.name]].append(layer)
        else:
            group_of[layer.name] = len(groups)
            groups.append([layer])
    inputs = [tuple(dict.fromkeys(group_of[name] for name in group[0].inputs)) for group in groups]
    lanes, edges = _assign_lanes(inputs)
    nodes = [
        Node(
            name=group[0].name,
            kind=group[0].kind,
            members=tuple(layer.name for layer in group),
            shape=group[-1].shape[1:],
            parameters=sum(layer.parameters for layer in group),
            multiply_adds=sum(layer.multiply_adds for layer in group),
            extent=tuple(field.extent for field in group[-1].fields),
            inputs=inputs[k],
            lane=lanes[k],
        )
        for k, group in enumerate(groups)
    ]
    return NetworkDiagram(tuple(nodes), tuple(edges))


def _is_elementwise(layer: Layer, before: Layer) -> bool:
    """Whether `layer` only changes the values of `before`, each at its own place."""
    return layer.multiply_adds == 0 and layer.shape == before.shape and layer.fields == before.fields


def _assign_lanes(inputs: Sequence[tuple[int, ...]]) -> tuple[list[int], list[Edge]]:
    """The column of every node and of every line: the first reader of a node goes on in its column."""
    readers: dict[int, list[int]] = defaultdict(list)
    for node, some in enumerate(inputs):
        for source in some:
            readers[source].append(node)
    taken: dict[tuple[int, int], int] = {}  # (start, end) -> lane, of the lines that have begun
    lanes: list[int] = []
    edges: list[Edge] = []
    for node in range(-1, len(inputs)):
        ended = [(source, node) for source in inputs[node]] if node >= 0 else []
        own = min((taken[line] for line in ended), default=0)
        edges += [Edge(*line, lane=taken.pop(line)) for line in ended]
        if node >= 0:
            lanes.append(own)
        for number, reader in enumerate(readers[node]):
            free = (lane for lane in range(MAX_LANES) if lane != own and lane not in taken.values())
            taken[node, reader] = own if number == 0 else next(free, MAX_LANES - 1)
    return lanes, edges


def render_connections(rail: NetworkDiagram) -> str:
    """The lines and dots as SVG; node k is in the middle of row k + 1, and the picture in row 0."""
    height, width = ROW_HEIGHT * (len(rail.nodes) + 1), LANE_WIDTH * rail.lanes + 4
    lines = "".join(f'<path d="{_path(rail, edge)}"/>' for edge in rail.edges)
    dots = "".join(
        f'<circle cx="{_x(node.lane)}" cy="{_y(k)}" r="{4 if node.multiply_adds else 2.5}"/>'
        for k, node in enumerate(rail.nodes)
    )
    dots = f'<rect x="{_x(0) - 4}" y="{_y(-1) - 4}" width="8" height="8"/>' + dots
    return (
        f'<svg class="wires" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f"{lines}{dots}</svg>"
    )


def _path(rail: NetworkDiagram, edge: Edge) -> str:
    start = rail.nodes[edge.start].lane if edge.start >= 0 else 0
    x, y, end_y = _x(start), _y(edge.start), _y(edge.end)
    parts = [f"M{x} {y}"]
    for lane, to in ((edge.lane, y + ROW_HEIGHT / 2), (rail.nodes[edge.end].lane, end_y)):
        if _x(lane) != x:
            begin = to - ROW_HEIGHT / 2
            parts.append(
                f"V{begin:g}C{x} {begin + ROW_HEIGHT / 4:g} {_x(lane)} {begin + ROW_HEIGHT / 4:g} {_x(lane)} {to:g}"
            )
            x = _x(lane)
    parts.append(f"V{end_y}")
    return "".join(parts)


def _x(lane: int) -> int:
    return LANE_WIDTH * lane + 8


def _y(node: int) -> int:
    return ROW_HEIGHT * (node + 1) + ROW_HEIGHT // 2


def render_navigation(rail: NetworkDiagram, links: dict[int, str], size: tuple[int, int], example: str) -> str:
    """The rail as HTML: each node a link to its layer (`links`: node -> address), with what it sees of a picture.

    `size`: rows and columns of the picture; `example`: the address of one.
    """
    picture = f'<li class="node"><a href="#/"><span class="said"><b>picture</b><span class="quiet">{size[0]}×{size[1]}'
    rows = [f"{picture}</span></span>{render_receptive_field(size, size, example)}</a></li>"]
    for k, node in enumerate(rail.nodes):
        shape = f'<span class="quiet">{format_shape(node)}</span>'
        inside = f'<span class="said">{_name(node)}{shape}</span>{render_receptive_field(node.extent, size, example)}'
        link = links.get(k)
        row = f'<a href="{escape(link)}">{inside}</a>' if link else f'<span class="passed">{inside}</span>'
        rows.append(f'<li class="node" data-node="{k}">{row}</li>')
    return f'<div class="rail">{render_connections(rail)}<ol>{"".join(rows)}</ol></div>'


def _name(node: Node) -> str:
    # The end of a long name tells layers apart: it is what stays where there is no room for all (see atlas.css).
    return f'<span class="name" title="{escape(node.name)}">{isolate(node.name)}</span>'


def format_shape(node: Node) -> str:
    """The node's output in words: "64 × 55×55"; channels, rows, columns."""
    channels, *places = node.shape
    return f"{channels:,} × {'×'.join(map(str, places))}" if places else f"{channels:,}"


def render_receptive_field(extent: tuple[int, ...], size: tuple[int, int], example: str) -> str:
    """What one position sees of a picture, as a square in the middle of the picture `example`, true to scale."""
    height, width = (min(one, whole) for one, whole in zip(extent, size, strict=True)) if extent else size
    x, y = (size[1] - width) / 2, (size[0] - height) / 2
    said = f"sees {height}×{width} of {size[0]}×{size[1]} pixels"
    return (
        f'<svg class="field" viewBox="0 0 {size[1]} {size[0]}" role="img" aria-label="{said}"><title>{said}</title>'
        f'<image href="{escape(example)}" width="{size[1]}" height="{size[0]}"/>'
        f'<rect class="halo" x="{x:g}" y="{y:g}" width="{width}" height="{height}"/>'
        f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}"/></svg>'
    )
