"""Backpropagation with modified ReLU rules: deconvolution and guided backpropagation.

PyTorch's autograd runs the backward pass; only the derivative of ReLU is replaced. It is the same operation for a ReLU
module, function or in-place ReLU. ReLU6 counts as a ReLU; `clamp` does not.
"""

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RELU, HARDTANH = torch.ops.aten.threshold_backward.default, torch.ops.aten.hardtanh_backward.default


class ReLURule(Enum):
    """The gradient that a ReLU passes back, given the incoming gradient g and the forward input x; 0 elsewhere.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for simplicity", figure 1.
    """

    DECONVNET = "g where g > 0"
    GUIDED = "g where g > 0 and x > 0"


def backward_with_relu_rule(
    outputs: Tensor, inputs: Tensor, gradient: Tensor, rule: ReLURule, retain_graph: bool = False
) -> Tensor:
    """Propagate `gradient` from `outputs` back to `inputs` with a modified ReLU rule.

    No other gradient is computed or stored.

    Args:
        outputs: Outputs that were computed from `inputs` with gradients enabled.
        inputs: Inputs of any shape.
        gradient: Gradient with respect to `outputs`, of the same shape.
        rule: What a ReLU passes back.
        retain_graph: Whether to keep the graph for another backward pass.

    Returns:
        A tensor of the shape of `inputs`.
    """
    with _ReLUBackwardMode(rule):
        return torch.autograd.grad(outputs, inputs, gradient, retain_graph=retain_graph)[0]


def contains_relu(output: Tensor | None) -> bool:
    """Return whether the autograd graph of `output` contains a ReLU, whose derivative a rule can replace."""
    return any(name.startswith(("Relu", "Threshold", "Hardtanh")) for name in autograd_node_names(output))


def autograd_node_names(output: Tensor | None) -> set[str]:
    """Return the names of all nodes in the autograd graph of `output`."""
    found, waiting, seen = set(), [None if output is None else output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    return found


class _ReLUBackwardMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, rule: ReLURule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule = rule

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not import its compiler, which takes longer than most passes."""
        return False

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A hardtanh is a rectifier only if its lower bound is 0; its arguments: (gradient, inputs, lower, upper).
        if operation is RELU or (operation is HARDTANH and args[2] == 0):
            gradient = args[0].clamp_min(0)
            return gradient if self._rule is ReLURule.DECONVNET else operation(gradient, *args[1:])
        return operation(*args, **(kwargs or {}))
