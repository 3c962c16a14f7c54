"""The way back through a network, from a layer to its input, with another rule where it rectifies.

Autograd walks it, and so knows every layer: this only changes what PyTorch's own operations for the derivative of a
ReLU do, which a module, a function and a ReLU in place all end in. ReLU6 counts as one; `clamp` does not.
"""

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RELU, HARDTANH = torch.ops.aten.threshold_backward.default, torch.ops.aten.hardtanh_backward.default


class ReLURule(Enum):
    """What a ReLU lets through on the way back, g what comes and x what it was given on the way there.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for simplicity", figure 1.
    """

    DECONVNET = "g where g > 0"
    GUIDED = "g where g > 0 and x > 0"


def backward(outputs: Tensor, inputs: Tensor, seed: Tensor, rule: ReLURule, again: bool = False) -> Tensor:
    """What `seed`, of the shape of `outputs`, becomes on its way back to `inputs`, of their shape.

    `outputs` were made of `inputs` with gradients enabled; no other gradient is computed or kept. `again`: whether that
    way will be walked once more.
    """
    with _ReLUBackwardMode(rule):
        return torch.autograd.grad(outputs, inputs, seed, retain_graph=again)[0]


class _ReLUBackwardMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, rule: ReLURule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule = rule

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: PyTorch would import its compiler for that, which takes longer than most runs."""
        return False

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Of a hardtanh only what is cut off below at 0 is a rectifier: (gradient, inputs, lowest, highest).
        if operation is RELU or (operation is HARDTANH and args[2] == 0):
            gradient = args[0].clamp_min(0)
            return gradient if self._rule is ReLURule.DECONVNET else operation(gradient, *args[1:])
        return operation(*args, **(kwargs or {}))
