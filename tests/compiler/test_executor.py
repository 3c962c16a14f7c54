"""The executor compared with the reference implementation of the same steps."""

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler import reference
from svertka.compiler.optimize import optimize
from svertka.conv import native_support

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")


class Joined(nn.Module):
    """The image itself and two convolutions of it, side by side in some order; and back to one map."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order
        self.one, self.other = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 24, 1)
        self.last = nn.Conv2d(8 * (0 in order) + 16 * (1 in order) + 24 * (2 in order), 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x, self.one(x), self.other(x).relu()]
        joined: Tensor = self.last(torch.cat([parts[part] for part in self.order], 1))
        return joined


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1), (0, 1, 2), (1, 2)])
def test_concatenation_in_any_order(order: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = Joined(order).eval()
    x = torch.randn(3, 8, 9, 7)
    optimized = optimize(network, x[:1])
    steps = optimized.compiled[0].fused
    weights = {name: packed.unpack() for name, packed in optimized.compiled[0].packed.items()}
    with torch.inference_mode():
        expected = reference.run_reference(
            steps, lambda name: weights[name] if name in weights else steps.tensors[name], x
        )
    torch.testing.assert_close(optimized(x), expected, rtol=1e-4, atol=1e-5)


def test_the_arena_is_as_large_as_the_values_in_use() -> None:
    network = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(12))).eval()
    optimized = optimize(network, torch.randn(1, 16, 32, 32))
    optimized(torch.randn(2, 16, 32, 32))
    # Two maps, that which a layer reads and that which it writes; what is returned is a third.
    assert optimized.compiled[0].plan(2).size <= 3 * 2 * 16 * 32 * 32


def test_results_belong_to_the_caller() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).eval()
    optimized = optimize(network, torch.randn(1, 8, 4, 4))
    one, other = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    first = optimized(one)
    kept = first.clone()
    optimized(other)
    assert torch.equal(first, kept)


class SqueezeExcitation(nn.Module):
    """The end of a block with squeeze and excitation, and the beginning of another."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.squeeze, self.excite = nn.Conv2d(channels, 5, 1), nn.Conv2d(5, channels, 1)
        self.project, self.expand = nn.Conv2d(channels, 24, 1, stride), nn.Conv2d(24, 40, 1)
        self.last = nn.Conv2d(40, 40, 5, padding=2, groups=40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.nn.functional.silu(self.first(x)))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        result: Tensor = self.last(self.expand(self.project(x * gate)).relu())
        return result


@pytest.mark.parametrize("instructions", native_support.instruction_sets())
@pytest.mark.parametrize(
    ("channels", "side", "stride"),
    [(32, 7, 1), (21, 9, 1), (48, 10, 2), (16, 96, 1)],  # the last one is computed in a chain
)
def test_gates_are_applied_to_each_image(instructions: str, channels: int, side: int, stride: int) -> None:
    torch.manual_seed(0)
    selected = native_support.selected_instruction_set()
    network = SqueezeExcitation(channels, stride).eval()
    x = torch.randn(3, 3, side, side)
    native_support.select_instruction_set(instructions)
    native_support.poison_scratch(True)
    try:
        optimized = optimize(network, x[:1])
        assert sum(getattr(step, "gate", None) is not None for step in optimized.compiled[0].fused.steps) == 1
        with torch.inference_mode():
            exact = network.double()(x.double())
            found = optimized(x).double()
    finally:
        native_support.poison_scratch(False)
        native_support.select_instruction_set(selected)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5
