"""The network as a diagram: layers from top to bottom, branches side by side, shortcuts as arcs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from svertka.graph.summary import INPUT, Layer, Trace
from svertka.pages.templates import render_template

ROW_HEIGHT = 48  # pixels per node
LANE_WIDTH = 12  # pixels between two branches
MAX_LANES = 6  # more branches share the last lane


@dataclass(frozen=True)
class Node:
    """A layer together with the element-wise layers that follow it: normalization, activation function, dropout.

    Attributes:
        name: Name of the first layer.
        kind: Kind of the first layer.
        members: Names of all its layers.
        shape: Shape of the output, (channels, height, width) or (features,).
        parameters: Parameters of all its layers.
        multiply_adds: Multiply-adds of all its layers.
        extent: Rows and columns of the receptive field, pixels.
        inputs: Indices of the nodes that the layer reads; −1 is the image.
        lane: Column in the diagram, 0 at the left.
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
    """A connection from one node to a later one, drawn in `lane`."""

    start: int
    end: int
    lane: int


@dataclass(frozen=True)
class NetworkDiagram:
    """The nodes in the order in which they run, and the edges between them."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def num_lanes(self) -> int:
        """Number of columns of the diagram."""
        return 1 + max(edge.lane for edge in self.edges)

    def index_of(self, layer: str) -> int:
        """Return the index of the node that contains `layer`."""
        return next(k for k, node in enumerate(self.nodes) if layer in node.members)


def build_diagram(trace: Trace) -> NetworkDiagram:
    """Lay out a traced network as a diagram."""
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
            shape=_channels_first(group[-1]),
            parameters=sum(layer.parameters for layer in group),
            multiply_adds=sum(layer.multiply_adds for layer in group),
            extent=tuple(field.extent for field in group[-1].fields),
            inputs=inputs[k],
            lane=lanes[k],
        )
        for k, group in enumerate(groups)
    ]
    return NetworkDiagram(tuple(nodes), tuple(edges))


def _channels_first(layer: Layer) -> tuple[int, ...]:
    if layer.maps is None or layer.maps.is_standard:
        return layer.shape[1:]
    return layer.shape[layer.maps.dims[1]], *layer.maps.size


def _is_elementwise(layer: Layer, before: Layer) -> bool:
    """Return whether `layer` is an element-wise operation on the output of `before`."""
    return layer.multiply_adds == 0 and layer.shape == before.shape and layer.fields == before.fields


def _assign_lanes(inputs: Sequence[tuple[int, ...]]) -> tuple[list[int], list[Edge]]:
    """Return the lane of every node, and all edges; the first reader of a node stays in its lane."""
    readers: dict[int, list[int]] = defaultdict(list)
    for node, some in enumerate(inputs):
        for source in some:
            readers[source].append(node)
    taken: dict[tuple[int, int], int] = {}  # (start, end) -> lane, of the edges in progress
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


def render_connections(diagram: NetworkDiagram) -> Markup:
    """Draw edges and nodes as SVG; node k is in the middle of row k + 1, and the image in row 0."""
    return render_template(
        "network_connections.svg",
        width=LANE_WIDTH * diagram.num_lanes + 4,
        height=ROW_HEIGHT * (len(diagram.nodes) + 1),
        paths=[_edge_path(diagram, edge) for edge in diagram.edges],
        input_x=_x(0),
        input_y=_y(-1),
        circles=[(_x(node.lane), _y(k), 4 if node.multiply_adds else 2.5) for k, node in enumerate(diagram.nodes)],
    )


def _edge_path(diagram: NetworkDiagram, edge: Edge) -> str:
    start = diagram.nodes[edge.start].lane if edge.start >= 0 else 0
    x, y, end_y = _x(start), _y(edge.start), _y(edge.end)
    parts = [f"M{x} {y}"]
    for lane, curve_end in ((edge.lane, y + ROW_HEIGHT / 2), (diagram.nodes[edge.end].lane, end_y)):
        if _x(lane) != x:
            begin = curve_end - ROW_HEIGHT / 2
            middle = begin + ROW_HEIGHT / 4
            parts.append(f"V{begin:g}C{x} {middle:g} {_x(lane)} {middle:g} {_x(lane)} {curve_end:g}")
            x = _x(lane)
    parts.append(f"V{end_y}")
    return "".join(parts)


def _x(lane: int) -> int:
    return LANE_WIDTH * lane + 8


def _y(node: int) -> int:
    return ROW_HEIGHT * (node + 1) + ROW_HEIGHT // 2


def render_navigation(diagram: NetworkDiagram, links: dict[int, str], size: tuple[int, int], example: str) -> Markup:
    """Render the diagram as HTML, with a link and a receptive field for each node.

    Args:
        diagram: Diagram of the network.
        links: Address of each node's page, by the node's index.
        size: Rows and columns of the image.
        example: Address of an image.
    """
    return render_template(
        "network_navigation.html",
        connections=render_connections(diagram),
        nodes=diagram.nodes,
        links=links,
        size=size,
        format_shape=format_feature_map_shape,
        receptive_field=partial(render_receptive_field, size=size, example=example),
    )


def format_feature_map_shape(node: Node) -> str:
    """Return the shape of the node's output, "64 × 55×55": channels, rows, columns."""
    channels, *sizes = node.shape
    return f"{channels:,} × {'×'.join(map(str, sizes))}" if sizes else f"{channels:,}"


def render_receptive_field(extent: tuple[int, ...], size: tuple[int, int], example: str) -> Markup:
    """Draw a receptive field of `extent` as a frame in the middle of the image `example`, to scale, as SVG."""
    height, width = (min(one, whole) for one, whole in zip(extent, size, strict=True)) if extent else size
    return render_template(
        "receptive_field.svg",
        size=size,
        example=example,
        label=f"sees {height}×{width} of {size[0]}×{size[1]} pixels",
        x=f"{(size[1] - width) / 2:g}",
        y=f"{(size[0] - height) / 2:g}",
        width=width,
        height=height,
    )
