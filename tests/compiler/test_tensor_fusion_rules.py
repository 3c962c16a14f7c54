"""Steps of tensors of any rank: compared with float64, by the kernels and by PyTorch's operations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.compiler.compiled_functions import Function, compile_exactly, count_steps
from torch import Tensor, nn

from svertka.compiler.ir import (
    Concatenation,
    Elementwise,
    Interpolation,
    MatrixProduct,
    Padding,
    Pool,
    Reduction,
    Softmax,
)
from svertka.compiler.optimize import optimize
from svertka.compiler.tensor_fusion_rules import _sparse_rows

SHAPE = 4, 8, 6
Map = Callable[[Tensor], Tensor]

STATISTICS: dict[str, Map] = {
    "sum": lambda x: x.sum((2, 3)),
    "sum of channels": lambda x: x.sum(1, keepdim=True),
    "sum of rows": lambda x: x.sum((0, 2)),
    "mean": lambda x: x.mean((2, 3)),
    "mean of columns": lambda x: x.mean(3),
    "mean of all": lambda x: x.mean((1, 2, 3), keepdim=True),
    "norm": lambda x: F.normalize(x, dim=1),
    "maximum": lambda x: x.amax((1, 3)),
    "maximum without indices": lambda x: x.max(2)[0],
    "minimum": lambda x: x.amin(2),
    "variance": lambda x: x.var((2, 3)),
    "variance of channels": lambda x: x.var(1, keepdim=True, unbiased=False),
    "standard deviation": lambda x: x.std((2, 3), keepdim=True),
    "activation function": lambda x: x.sum((1, 2)).sigmoid().clamp(0.1, 0.8),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_statistics_over_any_axes(name: str, channels_last: bool, tmp_path: Path) -> None:
    statistic = STATISTICS[name]
    network = Function(lambda _, x: statistic(x if channels_last else x.permute(0, 2, 3, 1)))
    optimized = compile_exactly(network, (20, 9, 7), tmp_path)
    assert count_steps(optimized, Reduction) + count_steps(optimized, Pool) == 1


def test_statistics_of_many_numbers_are_as_precise_as_those_of_pytorch() -> None:
    x = torch.rand(1, 3, 300, 400) + 5
    for function in (
        lambda _, x: x.sum((2, 3)),
        lambda _, x: x.var((2, 3)),
        lambda _, x: torch.linalg.vector_norm(x, dim=(1, 2, 3)),
    ):
        exact = function(None, x.double())
        errors = [(found - exact).abs().max() for found in (optimize(Function(function), x)(x), function(None, x))]
        assert errors[0] <= max(2 * errors[1], 1e-6 * exact.abs().max())


def test_statistics_keep_nan() -> None:
    x = torch.randn(1, 4, 5, 6)
    x[0, 1, 2, 3] = math.nan
    for function in (lambda _, x: x.amax((2, 3)), lambda _, x: x.amin(3), lambda _, x: x.softmax(3)):
        found = optimize(Function(function), (4, 5, 6))(x)
        assert torch.equal(found.isnan(), function(None, x).isnan())


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 8, 6), (37, 3, 2), (2, 1, 70)])
def test_softmax_along_any_axis(axis: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    optimized = compile_exactly(Function(lambda _, x: (3 * x).softmax(axis)), shape, tmp_path)
    assert count_steps(optimized, Softmax) == 1


def test_constants_before_a_softmax_are_part_of_it(tmp_path: Path) -> None:
    for bias in (torch.randn(4, 1, 6), torch.randn(6), torch.randn(8, 1)):
        network = Function(lambda net, x: (x.relu() + net.bias).softmax(-1), bias=nn.Parameter(bias))
        optimized = compile_exactly(network, SHAPE, tmp_path)
        assert count_steps(optimized, Elementwise) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x @ x.transpose(2, 3),
        lambda _, x: 0.3 * x @ x.transpose(2, 3) / 2,
        lambda _, x: x.transpose(2, 3) @ x,
        lambda _, x: x.permute(0, 2, 3, 1) @ x.permute(0, 2, 1, 3),
        lambda _, x: x.flatten(2) @ x.flatten(2).mean(1, keepdim=True).transpose(1, 2),  # matrices of one column
        lambda _, x: x.mean(1, keepdim=True) @ x.transpose(2, 3),  # broadcast
        lambda _, x: torch.bmm(x.flatten(1, 2), x.flatten(1, 2).transpose(1, 2)),
    ],
)
def test_products_of_values(function: Any, tmp_path: Path) -> None:
    for shape in (SHAPE, (3, 40, 37), (2, 150, 20), (1, 20, 300)):
        optimized = compile_exactly(Function(function), shape, tmp_path)
        assert count_steps(optimized, MatrixProduct) == 1


MODES = ("nearest", "nearest-exact", "bilinear", "bicubic")


@pytest.mark.sample(6)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{"scale_factor": 2}, {"scale_factor": 1.7}, {"size": (5, 9)}, {"size": (1, 1)}])
def test_upsampling(mode: str, settings: dict[str, Any], tmp_path: Path) -> None:
    network = Function(lambda _, x: F.interpolate(x, mode=mode, **settings).relu())
    assert count_steps(compile_exactly(network, (20, 8, 6), tmp_path), Interpolation) == 1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_aligned_corners_and_antialiasing(mode: str, tmp_path: Path) -> None:
    compile_exactly(Function(lambda _, x: F.interpolate(x, (5, 9), mode=mode, align_corners=True)), SHAPE, tmp_path)
    compile_exactly(Function(lambda _, x: F.interpolate(x, (5, 3), mode=mode, antialias=True)), SHAPE, tmp_path)


def test_interpolation_multiplies_only_numbers_that_count() -> None:
    x = torch.randn(1, 2, 6, 6)
    x[0, 0, 1, 1] = math.inf
    for function in (
        lambda _, x: F.interpolate(x, scale_factor=2),
        lambda _, x: F.adaptive_avg_pool2d(x, 4),
        lambda _, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    ):
        torch.testing.assert_close(optimize(Function(function), (2, 6, 6))(x), function(None, x))
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    indices, weights = _sparse_rows(matrix)
    assert indices.tolist() == [[0, 1], [2, 2]]
    assert weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_adaptive_pooling(tmp_path: Path) -> None:
    mean = compile_exactly(Function(lambda _, x: F.adaptive_avg_pool2d(x, (3, 4))), SHAPE, tmp_path)
    assert count_steps(mean, Interpolation) == 1
    maximum = compile_exactly(Function(lambda _, x: F.adaptive_max_pool2d(x, (4, 3))), SHAPE, tmp_path)
    assert count_steps(maximum, Pool) == 1


def test_padding(tmp_path: Path) -> None:
    for function in (
        lambda _, x: F.pad(x, (1, 2, 0, 3), value=-1.5),
        lambda _, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 1),
        lambda _, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        lambda _, x: F.pad(x.flatten(2), (2, 0)),
    ):
        assert count_steps(compile_exactly(Function(function), SHAPE, tmp_path), Padding) == 1
    for mode in ("reflect", "replicate", "circular"):
        network = Function(lambda _, x, mode=mode: F.pad(x, (1, 2, 0, 3), mode=mode))  # type: ignore[misc]
        compile_exactly(network, SHAPE, tmp_path)


def test_concatenations_along_any_axis(tmp_path: Path) -> None:
    token = nn.Parameter(torch.randn(1, 1, 4))
    network = Function(
        lambda net, x: torch.cat([net.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1), token=token
    )
    assert count_steps(compile_exactly(network, SHAPE, tmp_path), Concatenation) == 1
    for function in (
        lambda _, x: torch.cat([x, 2 * x], 2),
        lambda _, x: torch.cat([x, x.relu(), x], -1),
        lambda _, x: torch.stack([x, 2 * x], 1).sum(1),
    ):
        assert count_steps(compile_exactly(Function(function), SHAPE, tmp_path), Concatenation) == 1


def test_functions_of_one_value_and_of_numbers_with_values(tmp_path: Path) -> None:
    for function in (
        lambda _, x: (x * x).sqrt() + (x.square() + 1).rsqrt() + (x / 9).exp(),
        lambda _, x: (1 - x) * 0.5 - 2 / (x**2 + 1),
        lambda _, x: x.float().to(torch.float32) * 2,
    ):
        compile_exactly(Function(function), SHAPE, tmp_path)
    for count in (1, 4):
        network = Function(lambda net, x: net.prelu(x), prelu=nn.PReLU(count))
        with torch.no_grad():
            network.prelu.weight.uniform_(-0.5, 1.5)
        compile_exactly(network, SHAPE, tmp_path)
        compile_exactly(Function(lambda net, x: net.prelu(x.mean((2, 3))), prelu=network.prelu), SHAPE, tmp_path)


def test_batch_norm_of_rows(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    compile_exactly(Function(lambda net, x: net.norm(x.mean((2, 3)).relu()), norm=norm), SHAPE, tmp_path)
