"""The comparison of an optimized network with the original."""

from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler.accuracy_check import TOLERANCE, check_int8_error, measure_error
from svertka.compiler.optimize import optimize
from svertka.errors import UsageError


class Growing(nn.Module):
    """Each step of the logistic map about doubles a difference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).sigmoid()
        for _ in range(16):
            y = 3.99 * y * (1 - y)
        return y


def test_rounding_like_pytorch_is_accepted_and_larger_errors_are_not() -> None:
    network, x = Growing(), torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert TOLERANCE < optimize(network, x).error < 1

    def off(x: Tensor) -> Tensor:  # by a thousand times as much as rounding
        return network(x * (1 + 1e-4))

    with torch.no_grad(), pytest.raises(UsageError, match="computes something else on the example"):
        measure_error(off, network, x, {2}, {"fp32"})


class Cancelling(nn.Module):
    """Rounds to 1/128 in float32, and not at all on whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 65536) - 65536


@pytest.mark.parametrize(("error", "is_refused"), [(0.01, False), (0.1, True)])
def test_rounding_is_judged_by_several_draws(error: float, *, is_refused: bool) -> None:
    example = (torch.arange(-32.0, 32) / 8).round().view(1, 1, 8, 8)
    refused = pytest.raises(UsageError, match="computes something else") if is_refused else nullcontext()
    with torch.no_grad(), refused:
        measure_error(lambda x: x + error, Cancelling(), example, set(), {"fp32"})


def test_the_message_names_the_error_that_is_checked() -> None:
    example = torch.ones(1, 2, 4, 4)
    example[:, 0] = 0.05

    def first_channel_off(x: Tensor) -> Tensor:  # by 1e-4 of all, which would do, and by 2e-3 of the channel
        return x * torch.tensor([1.002, 1.0])[:, None, None]

    with pytest.raises(
        UsageError, match=r"difference is 2\.0e-03 of the largest value of its channel, more than 1e-03, for 1.image"
    ):
        measure_error(first_channel_off, nn.Identity(), example, {1}, {"fp32"})


def test_values_instead_of_zeros_are_named_as_they_are() -> None:
    with pytest.raises(UsageError, match=r"it returns values up to 1\.0e-05 instead of zeros for 2.images; use the or"):
        measure_error(lambda x: x + 1e-5, nn.Identity(), torch.zeros(2, 3, 4, 4), set(), {"fp32"})


def test_outputs_on_other_devices_are_rejected() -> None:
    class Elsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to("meta")

    with pytest.raises(UsageError, match="returns tensors of other shapes or types, or on other devices"):
        measure_error(nn.Identity(), Elsewhere(), torch.ones(1, 2, 4, 4), {1}, {"fp32"})


@pytest.mark.parametrize(("count", "is_refused"), [(99, True), (100, False)])
def test_one_of_many_scores_may_hardly_vary(count: int, *, is_refused: bool) -> None:
    scores = torch.randn(32, count, generator=torch.Generator().manual_seed(0))
    scores[:, 3] *= 0.05
    noise = 0.1 * torch.randn(32, count, generator=torch.Generator().manual_seed(1))
    refused = pytest.raises(UsageError, match=r"in int8 Identity is too inaccurate in output channel 3: the error")
    with refused if is_refused else nullcontext():
        measure_error(lambda x: x + noise, nn.Identity(), scores, set(), {"int8"})


def test_channels_in_int8_are_compared_with_their_own_spread() -> None:
    example = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    example *= torch.tensor([100.0, 1.0, 0.0])[:, None, None]
    off = torch.tensor([0.3, 0.9, 0.0])[:, None, None]
    sentence = (
        r"inaccurate in output channel 1: the error \(root mean square\) is 86% of the channel's standard deviation"
    )
    with pytest.raises(UsageError, match=sentence):
        measure_error(lambda x: x + off, nn.Identity(), example, set(), {"int8"})
    measure_error(lambda x: x + off / 2, nn.Identity(), example, set(), {"int8"})


@pytest.mark.parametrize(
    ("precision", "count", "changed", "refused"),
    [
        ("int8", 40, 8, ""),
        ("int8", 40, 9, "^in int8 Flatten gives another class for 22.5% of the calibration images, m"),
        ("bf16", 200, 2, ""),
        ("bf16", 200, 3, "^in bfloat16 Flatten gives another class for 1.5% of the example's images, more than 1%"),
    ],
)
def test_the_share_of_images_that_change_class_is_limited(
    precision: str, count: int, changed: int, refused: str
) -> None:
    scores = torch.randn(count, 1, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.01])

    def swapped(x: Tensor) -> Tensor:
        return torch.cat([x[:changed].flip(1), x[changed:]]).flatten(1)

    with pytest.raises(UsageError, match=refused) if refused else nullcontext():
        measure_error(swapped, nn.Flatten(), scores[:, :, None, None], set(), {precision})


class Logarithm(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_gives_nan_is_named_as_such(precision: Literal["fp32", "bf16"]) -> None:
    torch.manual_seed(0)
    network = Logarithm(3, 8, 3)
    unbounded = r"^Logarithm gives NaN or infinite values on the example, so that its error in "
    with pytest.raises(UsageError, match=unbounded) if precision == "bf16" else nullcontext():
        optimize(network, (3, 8, 8), precision=precision)
    network.bias = nn.Parameter(torch.full((8,), -100.0))
    with pytest.raises(UsageError, match=r"^Logarithm gives nothing but NaN or infinite values on the example"):
        optimize(network, (3, 8, 8), precision=precision)
    network.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"^the weights contain NaN or infinity \(in weight\); load or train them"):
        optimize(network, (3, 8, 8), precision=precision)


class Narrow(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1).to(torch.float8_e4m3fn)


def test_a_network_may_return_eight_bit_floats() -> None:
    torch.manual_seed(0)
    network, x = Narrow(3, 8, 3), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(optimize(network, x)(x).float(), network(x).float(), rtol=0.13, atol=0)


@pytest.mark.parametrize(
    ("calibrated", "advice"),
    [((-3.0, 3.0), "so use precision='auto', or 'fp32'"), ((0.0, 255.0), "so preprocess both")],
)
def test_other_preprocessing_is_named_only_if_the_values_differ(calibrated: tuple[float, float], advice: str) -> None:
    x = torch.linspace(-3.2, 3.2, 192).view(1, 3, 8, 8)
    with pytest.raises(UsageError, match=advice):
        check_int8_error(lambda images: images * 2, nn.Identity(), x, calibrated)
