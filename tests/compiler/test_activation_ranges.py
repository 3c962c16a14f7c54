import pytest
import torch
from torch import nn

from svertka.compiler.activation_ranges import ActivationHistogram, observe_activations
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.errors import UsageError


def observed(*batches: torch.Tensor) -> ActivationHistogram:
    values = ActivationHistogram()
    for batch in batches:
        values.add(batch)
    return values


def fused(*layers: nn.Module) -> FusedNetwork:
    return fuse(capture_graph(nn.Sequential(*layers).eval(), (2, 3, 8, 8)))


def test_the_range_has_the_least_error_of_all_that_are_tried() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 200, 200).relu()
    x[0, 0, 0, 0] = 40.0  # an outlier, for which all others would be rounded to 0.16
    found = observed(x).find_quantization()

    def error(high: float) -> float:
        scale = high / 255
        return float(((x / scale).round().clamp(0, 255) * scale - x).square().mean())

    errors = [error(high) for high in torch.linspace(2, 40, 400).tolist()]
    assert found.zero_point == 0
    assert found.scale * 255 < 25
    assert error(found.scale * 255) <= 1.1 * min(errors)


def test_numbers_of_a_narrow_distribution_are_all_covered() -> None:
    x = torch.linspace(-1, 3, 8000).reshape(2, 4, 25, 40)
    found = observed(x).find_quantization()
    torch.testing.assert_close(found.round(x), x, rtol=0, atol=4 / 255)
    assert found.round(torch.zeros(1)) == 0


def test_one_pass_over_batches_is_as_over_all_at_once() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 9, 9) * 10.0**power for power in (-2, 0, 1)]
    one, all_at_once = observed(*batches), observed(torch.cat(batches))
    assert (one.low, one.high, one.count, one.reach) == (
        all_at_once.low, all_at_once.high, all_at_once.count, all_at_once.reach,
    )  # fmt: skip
    assert one.histogram.sum() == one.count
    # Numbers of the small batches were rounded to bins before these became wider.
    assert (one.histogram.cumsum(0) - all_at_once.histogram.cumsum(0)).abs().max() <= 0.01 * one.count
    torch.testing.assert_close(one.channel_means, torch.cat(batches).mean((0, 2, 3), dtype=torch.float64))


def test_each_value_of_kernels_is_observed() -> None:
    network = fused(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5))
    x = torch.randn(2, 3, 8, 8)
    (found,) = observe_activations([network], [x, x])
    assert found[0].count == 2 * x.numel()
    assert found[0].low == x.min()
    assert {step.result for step in network.steps} <= set(found)


def test_nan_is_refused_with_the_name_of_the_layer() -> None:
    network = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    network[0].bias.data.fill_(torch.nan)
    with pytest.raises(UsageError, match="^the results of layer 0 are NaN or infinite for calibration images; "):
        observe_activations([fused(*network)], [torch.randn(2, 3, 8, 8)])
    alone = fuse(capture_graph(network[0], (2, 3, 8, 8)))
    with pytest.raises(UsageError, match="^the results of the network are NaN or infinite for calibration images; "):
        observe_activations([alone], [torch.randn(2, 3, 8, 8)])


def test_masked_values_are_left_out_even_if_other_images_have_no_mask() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu().masked_fill(x > 2, -torch.inf).softmax(1)

    network = fuse(capture_graph(Masked(), (2, 3, 8, 8)))
    plain, masked = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    masked[0, 0, 0, 0] = 3.0
    (all_found,) = observe_activations([network], [plain])
    (found,) = observe_activations([network], [plain, masked, plain])
    without = set(all_found) - set(found)
    assert len(without) == 1
    assert 0 in found


def test_images_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="^all values of the calibration images are zero, so their range is unknown"):
        observe_activations([fused(nn.Conv2d(3, 8, 3))], [torch.zeros(2, 3, 8, 8)])


def test_values_whose_second_axis_is_the_batch_are_not_observed() -> None:
    class Swapped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.transpose(0, 1) * 2).relu()

    network = fuse(capture_graph(Swapped(), (2, 3, 8, 8)))
    (found,) = observe_activations([network], [torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)])
    assert found.keys() <= {0}
