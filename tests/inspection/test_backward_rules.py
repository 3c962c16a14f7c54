from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.inspection.backward_rules import ReLURule, backward_with_relu_rule

INPUTS = torch.tensor([-2.0, -1.0, 3.0, 4.0, 7.0])
SEED = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
RECTIFIERS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Threshold(0, 0), nn.Hardtanh(0, 9),
    torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, Tensor.relu, Tensor.relu_,
]  # fmt: skip


@pytest.mark.parametrize("rectify", RECTIFIERS)
def test_both_rules_for_every_kind_of_relu(rectify: Callable[[Tensor], Tensor]):
    inputs = INPUTS.clone().requires_grad_()
    outputs = rectify(inputs * 1)
    assert backward_with_relu_rule(outputs, inputs, SEED, ReLURule.DECONVNET, retain_graph=True).tolist() == [
        1,
        0,
        3,
        0,
        5,
    ]
    cut_above = outputs[-1] == 6
    assert backward_with_relu_rule(outputs, inputs, SEED, ReLURule.GUIDED).tolist() == [
        0,
        0,
        3,
        0,
        0 if cut_above else 5,
    ]


@pytest.mark.parametrize(
    "squash",
    [torch.tanh, F.silu, F.leaky_relu, F.hardtanh, F.gelu, F.elu, torch.abs],
    ids=lambda squash: squash.__name__,
)
@pytest.mark.parametrize("rule", ReLURule)
def test_other_functions_use_their_derivative(squash: Callable[[Tensor], Tensor], rule: ReLURule):
    inputs = INPUTS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(squash(inputs), inputs, SEED)
    assert torch.equal(backward_with_relu_rule(squash(inputs), inputs, SEED, rule), expected)


def test_gradients_are_unchanged_afterwards():
    inputs = INPUTS.clone().requires_grad_()
    outputs = torch.relu(inputs)
    with pytest.raises(RuntimeError):
        backward_with_relu_rule(outputs, inputs, SEED[:3], ReLURule.DECONVNET)
    assert torch.autograd.grad(outputs, inputs, SEED)[0].tolist() == [0, 0, 3, -4, 5]
    assert inputs.grad is None
