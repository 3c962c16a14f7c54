"""Fusion: the steps that each rule makes or leaves, compared with float64, and the steps of whole networks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler import reference
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.compiler.ir import (
    Concatenation,
    Elementwise,
    FusedConvolution,
    Normalization,
    Pool,
    Step,
    step_output_numbers,
)
from svertka.graph.operation_and_value_types import Operation, Value
from svertka.models.registry import MODELS

Function = Callable[[Any, Tensor], Tensor]


class Around(nn.Module):
    """Some layers, and a function of them."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.dense = nn.BatchNorm2d(4), nn.Linear(4 * 64, 3)
        self.wide, self.layer_norm, self.narrow = nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.depthwise, self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1, groups=2)
        self.norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0])
        self.norm.running_var = torch.tensor([0.5, 1, 2, 0.1])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def steps_of(function: Function) -> tuple[Step, ...]:
    """The steps, after it was seen that they give what the network gives."""
    torch.manual_seed(0)
    network, x = Around(function).eval(), torch.randn(2, 4, 8, 8)
    made: FusedNetwork = fuse(capture_graph(network, (1, 4, 8, 8)))
    with torch.inference_mode():
        exact = network.double()(x.double())
        found = reference.run_reference(made, made.tensors.__getitem__, x)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    return made.steps


def only(function: Function) -> Step:
    """The single step that it becomes."""
    (step,) = steps_of(function)
    return step


def test_epilogues_are_fused_into_convolutions() -> None:
    step = only(lambda net, x: F.relu6(net.norm(net.conv(x))))
    assert isinstance(step, FusedConvolution)
    assert step.bounds == (0, 6)
    step = only(lambda net, x: F.relu(net.conv(x) * 0.5 + x))
    assert isinstance(step, FusedConvolution)
    assert step.residual == 0
    assert step.bounds == (0, math.inf)
    assert isinstance(only(lambda net, x: net.conv(x).clamp(-0.1, 0.2)), FusedConvolution)
    assert isinstance(only(lambda net, x: net.conv(F.pad(x, (1, 2, 0, 1)))), FusedConvolution)
    assert isinstance(only(lambda net, x: net.dense(x.flatten(1))), FusedConvolution)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: (y := net.conv(x)) + y.relu(),  # somebody else reads the sum before its bounds
        lambda net, x: net.norm(net.conv(x).relu()),  # batch norm behind bounds
        lambda net, x: net.norm(net.conv(x) + x),  # and behind a residual
        lambda net, x: net.conv(x).relu().clamp(0.1, 0.5),  # two pairs of bounds
        lambda net, x: torch.add(net.conv(x), x, alpha=2),
        lambda net, x: net.conv(F.pad(x, (1, 1, 1, 1), value=3.0)),
    ],
)
def test_similar_functions_are_not_fused(function: Function) -> None:
    assert len(steps_of(function)) > 1


def test_a_sum_is_fused_into_the_later_convolution() -> None:
    first, second = steps_of(lambda net, x: net.other(x) + net.depthwise(x))
    assert isinstance(first, FusedConvolution)
    assert isinstance(second, FusedConvolution)
    assert second.residual == first.result


def test_pooling_sums_and_concatenations_are_steps() -> None:
    step = only(lambda _, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True))
    assert isinstance(step, Pool)
    assert (step.kind, step.ceil) == ("MAXIMUM", True)
    kinds = {"MEAN": False, "PADDED_MEAN": True}
    for kind, padded in kinds.items():
        step = only(lambda _, x, padded=padded: F.avg_pool2d(x, 3, 2, 1, count_include_pad=padded))  # type: ignore[misc]
        assert isinstance(step, Pool)
        assert step.kind == kind
    assert isinstance(only(lambda _, x: x.mean((2, 3))), Pool)
    assert isinstance(only(lambda _, x: F.adaptive_avg_pool2d(x, 4)), Pool)
    assert isinstance(only(lambda _, x: torch.relu(x)), Elementwise)
    assert isinstance(steps_of(lambda net, x: torch.cat([net.conv(x), x], 1))[-1], Concatenation)
    assert isinstance(only(lambda net, x: net.norm(x)), FusedConvolution)  # of each channel by itself


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: F.avg_pool2d(x, 2, divisor_override=3),
        lambda _, x: x.flip(2),
        lambda _, x: x.norm(1, dim=1),
        lambda _, x: x.cumsum(1),
    ],
)
def test_functions_without_a_rule_remain_operations(function: Function) -> None:
    assert isinstance(only(function), Operation)


@pytest.mark.parametrize(
    ("function", "activation", "slope"),
    [
        (torch.sigmoid, "SIGMOID", 0.0),
        (F.silu, "SILU", 0.0),
        (F.hardsigmoid, "HARD_SIGMOID", 0.0),
        (F.hardswish, "HARD_SWISH", 0.0),
        (F.gelu, "GELU", 0.0),
        (lambda x: F.gelu(x, approximate="tanh"), "GELU_TANH", 0.0),
        (torch.tanh, "TANH", 0.0),
        (F.mish, "MISH", 0.0),
        (lambda x: F.elu(x, 0.3), "ELU", 0.3),
        (lambda x: F.leaky_relu(x, 0.2), "LEAKY_RELU", 0.2),
    ],
)
def test_activation_functions_are_fused_into_what_is_before_them(
    function: Callable[[Tensor], Tensor], activation: str, slope: float
) -> None:
    for before in (lambda net, x: net.norm(net.conv(x)), lambda net, x: x + net.conv(x), lambda _, x: x * x.flip(0)):
        step = steps_of(lambda net, x, before=before: function(before(net, x)))[-1]
        assert (step.activation, step.slope) == (activation, slope)  # type: ignore[union-attr]
    alone = only(lambda _, x: function(x))
    assert isinstance(alone, Elementwise)
    assert alone.combination == "FIRST"


def test_a_residual_comes_before_or_after_the_activation_function() -> None:
    step = only(lambda net, x: F.silu(net.conv(x) + x))
    assert (step.residual, step.activation, step.residual_last) == (0, "SILU", False)  # type: ignore[union-attr]
    step = only(lambda net, x: F.silu(net.conv(x)) + x)
    assert (step.residual, step.activation, step.residual_last) == (0, "SILU", True)  # type: ignore[union-attr]
    step = only(lambda net, x: torch.sigmoid(net.conv(x)) * x)
    assert (step.multiply, step.activation, step.residual_last) == (True, "SIGMOID", True)  # type: ignore[union-attr]


def test_convolutions_of_the_same_input_are_merged() -> None:
    for function in (
        lambda net, x: net.conv(x) + net.other(x),
        lambda net, x: (net.norm(x) + net.other(x) + net.norm(net.conv(x))).relu(),
        lambda net, x: net.other(x) - net.conv(x) + x,
        lambda net, x: net.depthwise(x) - net.norm(x),
        lambda net, x: net.norm(x) + net.grouped(x),
    ):
        step = only(function)
        assert isinstance(step, FusedConvolution)
        assert ".merged." in step.weight
    for function in (
        lambda net, x: net.conv(x) + net.other(x.relu()),  # another input
        lambda net, x: net.conv(x).relu() + net.other(x),
        lambda net, x: net.depthwise(x) + net.other(x),  # a dense 3×3 kernel would cost more
        lambda net, x: (y := net.conv(x)) + net.other(x) + y,  # one branch is read twice
    ):
        assert not any(".merged." in getattr(step, "weight", "") for step in steps_of(function))


def test_factors_of_channels_and_images_are_the_gate_of_a_1x1_convolution() -> None:
    def gate(net: Any, x: Tensor) -> Tensor:
        return net.other(x.mean((2, 3), keepdim=True)).sigmoid()

    for function in (
        lambda net, x: net.other(net.conv(x) * gate(net, x)),
        lambda net, x: (net.other(gate(net, x) * net.conv(x)) + x).relu(),
    ):
        step = steps_of(function)[-1]
        assert isinstance(step, FusedConvolution)
        assert step.gate is not None
    for function in (
        lambda net, x: net.conv(net.other(x) * gate(net, x)),  # a 3×3 kernel reads zeros around the product
        lambda net, x: net.other((net.conv(x) * gate(net, x)).relu()),
        lambda net, x: (y := net.conv(x) * gate(net, x)) + net.other(y),  # the product is read twice
        lambda net, x: net.other(F.pad(net.conv(x) * gate(net, x), (0, 1, 0, 0))),
    ):
        assert all(getattr(step, "gate", None) is None for step in steps_of(function))


def test_factors_and_summands_of_channels_are_folded() -> None:
    factors = torch.linspace(-1, 2, 4)[:, None, None]
    for function in (
        lambda net, x: net.conv(x) * factors,
        lambda net, x: factors[None] * net.conv(x) - 0.5,
        lambda net, x: net.conv(x) / 3 + factors,
        lambda net, x: net.conv(x).relu() * 0.3 - 0.5,  # a clamp to (-0.5, inf)
        lambda net, x: F.hardtanh(net.conv(x)) / -0.3 + 0.1,
    ):
        assert isinstance(only(function), FusedConvolution)
    for function in (  # along another axis, after an activation function, or by zero
        lambda net, x: net.conv(x) * torch.linspace(0, 1, x.shape[3]),
        lambda net, x: net.conv(x).sigmoid() * factors,
        lambda net, x: net.conv(x).relu() * factors,
        lambda net, x: net.conv(x).relu() * 0,
    ):
        assert [type(step) for step in steps_of(function)] == [FusedConvolution, Elementwise]


def test_dense_layers_of_rows_are_convolutions_of_maps() -> None:
    def block(net: Any, x: Tensor) -> Tensor:
        rows = net.layer_norm(net.wide(net.conv(x).permute(0, 2, 3, 1)))
        return x + net.narrow(F.gelu(rows)).permute(0, 3, 1, 2) * 0.5

    kinds = [type(step) for step in steps_of(block) if not isinstance(step, Operation)]
    assert kinds == [FusedConvolution, FusedConvolution, Normalization, FusedConvolution]

    def tokens(net: Any, x: Tensor) -> Tensor:
        rows = net.conv(x).flatten(2).transpose(1, 2)
        return rows + net.narrow(F.gelu(net.wide(rows)))

    convolutions = [step for step in steps_of(tokens) if isinstance(step, FusedConvolution)]
    assert [step.activation for step in convolutions] == ["NONE", "GELU", "NONE"]
    assert [step.residual is None for step in convolutions] == [True, True, False]


def test_resnet18_has_one_step_per_convolution_and_two_pools() -> None:
    network = MODELS["resnet18"].build(classes=5).eval()
    made = fuse(capture_graph(network, (1, 3, 64, 64)))
    kinds = [type(step) for step in made.steps]
    convolutions = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules())
    assert kinds.count(FusedConvolution) == convolutions
    assert kinds.count(Pool) == len(kinds) - convolutions == 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["googlenet_bn", "efficientnet_lite0", "inception_v3"])
def test_every_step_reads_earlier_values(name: str) -> None:
    made = fuse(capture_graph(MODELS[name].build(classes=5).eval(), (1, 3, 96, 96)))
    there = {0}
    for step in made.steps:
        assert there.issuperset(step.inputs)
        there.update(step_output_numbers(step))
    assert {leaf.number for leaf in made.output.leaves if isinstance(leaf, Value)} <= there


class Wasteful(nn.Module):
    """Computes what nobody reads, and what depends on no image."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.drop = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Dropout()
        self.scale = nn.Parameter(torch.tensor([1.0, 2, 3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.drop(self.used(x)).clone() * (self.scale.exp() + 1)[:, None, None]


def test_unused_operations_are_removed_and_constants_are_computed() -> None:
    network = Wasteful().eval()
    made = fuse(capture_graph(network, (1, 3, 8, 8)))
    (step,) = made.steps
    assert isinstance(step, FusedConvolution)
    assert not any(name.startswith("unused") for name in made.tensors)
    scale = (network.scale.exp() + 1)[:, None, None, None]
    torch.testing.assert_close(made.tensors[step.weight], network.used.weight * scale)


def test_tensors_of_the_network_are_not_changed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    made = fuse(capture_graph(network, (1, 3, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    (step,) = made.steps
    assert isinstance(step, FusedConvolution)
    assert made.tensors[step.weight].dtype == torch.float32
