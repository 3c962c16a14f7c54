"""Diagrams of real networks and of random graphs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.graph.summary import trace
from svertka.inspection.atlas.network_diagram import (
    MAX_LANES,
    NetworkDiagram,
    _assign_lanes,
    build_diagram,
    render_connections,
    render_navigation,
)
from svertka.models.registry import MODELS


def of(name: str, side: int = 224, channels: int = 3) -> NetworkDiagram:
    return build_diagram(trace(MODELS[name].build(), (1, channels, side, side)))


def test_elementwise_layers_join_the_previous_node() -> None:
    drawn = of("resnet20", 32)
    first, second, third, join = drawn.nodes[:4]
    assert first.members == ("conv1", "bn1", "relu", "layer1.0.downsample")
    assert first.parameters == 3 * 16 * 9 + 32
    assert [node.name for node in (second, third, join)] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.0.add"]
    assert sum(node.parameters for node in drawn.nodes) == trace(MODELS["resnet20"].build(), (1, 3, 32, 32)).parameters
    assert drawn.index_of("layer1.0.relu2") == 3


def test_shortcut_has_a_lane_of_its_own() -> None:
    drawn = of("resnet20", 32)
    assert [node.lane for node in drawn.nodes[:4]] == [0, 0, 0, 0]
    assert {(edge.start, edge.end, edge.lane) for edge in drawn.edges if edge.end == 3} == {(2, 3, 0), (0, 3, 1)}


def test_inception_branches_are_side_by_side() -> None:
    drawn = of("googlenet")
    module = [node for node in drawn.nodes if node.name.startswith("inception3a")]
    lanes = {node.name.split(".")[1]: node.lane for node in module}
    assert lanes == {"branch1": 0, "branch2": 1, "branch3": 2, "branch4": 3, "cat": 0}
    assert drawn.num_lanes == 4


@given(st.lists(st.sets(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=12))
def test_overlapping_edges_have_different_lanes(readers: list[set[int]]) -> None:
    inputs = [tuple(sorted({max(-1, node - 1 - back) for back in some})) for node, some in enumerate(readers)]
    lanes, edges = _assign_lanes(inputs)
    assert sorted((edge.start, edge.end) for edge in edges) == sorted(
        (s, node) for node, i in enumerate(inputs) for s in i
    )
    for node in range(len(inputs)):
        passing = [edge.lane for edge in edges if edge.start < node < edge.end]
        assert MAX_LANES - 1 in passing or len({*passing, lanes[node]}) == len(passing) + 1


def test_every_node_has_a_row_with_its_receptive_field() -> None:
    drawn = of("lenet5", 32, 1)
    document = render_navigation(drawn, {0: "#/layer/c1"}, (32, 32), "picture.webp")
    assert document.count('<li class="node"') == len(drawn.nodes) + 1
    assert document.count("<a ") == 2
    assert "sees 5×5 of 32×32 pixels" in document
    assert "6 × 28×28" in document
    rows = [float(y) for y in re.findall(r'<circle cx="\d+" cy="(\d+)"', render_connections(drawn))]
    assert rows == [48 * k + 24 for k in range(1, len(drawn.nodes) + 1)]


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "squeezenet1_1", "resnet18"])
def test_every_edge_goes_down(name: str) -> None:
    drawn = of(name)
    assert all(edge.start < edge.end for edge in drawn.edges)
    assert {edge.end for edge in drawn.edges} == set(range(len(drawn.nodes)))
