"""Captured graphs: valid for any batch size, with the results of the network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.ir import BatchDependentSize, CapturedGraph
from svertka.errors import UsageError
from svertka.graph.operation_and_value_types import Constant, Operation, Value, iter_leaves


class Branches(nn.Module):
    """Two convolutions joined, an addition in place, and a shape that depends on the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.register_buffer("shift", torch.full((8, 1, 1), 0.5))
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = torch.cat([self.left(x), self.right(x)], 1)
        maps += self.shift
        scores = self.head(maps.relu().reshape(x.shape[0], -1))
        return {"scores": scores, "doubled": maps.reshape(2 * x.shape[0], -1)}


def run(recording: CapturedGraph, x: Tensor) -> Any:
    """The recording on `x`, operation after operation."""
    values = {0: x}

    def seen(leaf: Any) -> Any:
        if isinstance(leaf, BatchDependentSize):
            return leaf.of(len(x))
        if isinstance(leaf, Constant):
            return recording.constants[leaf.name]
        return values[leaf.number] if isinstance(leaf, Value) else leaf

    for operation in recording.operations:
        results = zip(operation.results, operation.run(seen), strict=True)
        values |= {number: result for number, result in results if number is not None}
    return recording.output.rebuild(seen)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_a_captured_graph_computes_the_network_for_any_batch_size(images: int) -> None:
    network = Branches().eval()
    recording = capture_graph(network, (4, 3, 6, 6))
    x = torch.randn(images, 3, 6, 6)
    with torch.inference_mode():
        expected, found = network(x), run(recording, x)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_operations_have_their_modules_and_batch_dependent_sizes() -> None:
    recording = capture_graph(Branches().eval(), (1, 3, 6, 6))
    assert {operation.place for operation in recording.operations} == {"left", "right", "head", "the network itself"}
    assert recording.shapes[0] == (BatchDependentSize(1, 0), 3, 6, 6)
    assert (BatchDependentSize(2, 0), 144) in recording.shapes.values()
    assert any(
        isinstance(leaf, BatchDependentSize) for one in recording.operations for leaf in iter_leaves(one.arguments)
    )
    assert all(isinstance(operation, Operation) and "_." not in operation.name for operation in recording.operations)


class Positive(nn.Module):
    """It decides by a number that `steps` sums of its own tensor with itself give."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.conv, self.steps = nn.Conv2d(3, 4, 3), steps
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift
        for _ in range(self.steps):
            shift = shift * 0.5 + shift * 0.5
        return self.conv(x) if shift.sum() > 0 else -self.conv(x)


def test_deciding_values_are_computed_once() -> None:
    recording = capture_graph(Positive(steps=400), (1, 3, 6, 6))  # 2 ** 400 if each use were computed by itself
    assert "neg.default" not in {operation.name for operation in recording.operations}


def test_the_network_is_not_changed() -> None:
    network = Branches()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    capture_graph(network, (1, 3, 6, 6))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.left._forward_hooks


class Fixed(nn.Module):
    """Wants four images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 108)


def test_a_network_for_one_batch_size_is_captured_for_that() -> None:
    recording = capture_graph(Fixed(), (4, 3, 6, 6))
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(run(recording, x), x.view(4, 108))
    assert not any(isinstance(side, BatchDependentSize) for shape in recording.shapes.values() for side in shape)


class Deciding(nn.Module):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Writing(nn.Module):
    """Writes into windows, which overlap, of what is read later."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.unfold(3, 2, 1)[..., 0] += 1
        return y


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Deciding(), "the network itself depends on the values of a tensor"),
        (Writing(), "writes into a part or another view of a tensor that is read later"),
        (nn.Sequential(nn.Conv2d(5, 4, 3)), r"Sequential cannot be traced with an input of 2×3×6×6; 0 says: "),
    ],
)
def test_the_error_names_what_cannot_be_captured(network: nn.Module, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        capture_graph(network, (2, 3, 6, 6))
