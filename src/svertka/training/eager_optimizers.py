"""SGD and AdamW without the hooks of torch.compile, whose import takes more than a second in each process.

The optimizers of `torch.optim` import the compiler when they are made and at each step, even if nothing is compiled.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class _WithoutCompiler(Optimizer):
    """The methods of an optimizer as they are before `torch.optim` wraps them."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer.add_param_group`."""
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """As `Optimizer.state_dict`."""
        state: dict[str, Any] = inspect.unwrap(Optimizer.state_dict)(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Optimizer.load_state_dict`."""
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `Optimizer.zero_grad`."""
        inspect.unwrap(Optimizer.zero_grad)(self, set_to_none)


class EagerSGD(_WithoutCompiler, torch.optim.SGD):
    """`torch.optim.SGD` that is never compiled."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As `torch.optim.SGD.step`."""
        loss: float | None = inspect.unwrap(torch.optim.SGD.step)(self, closure)
        return loss


class EagerAdamW(_WithoutCompiler, torch.optim.AdamW):
    """`torch.optim.AdamW` that is never compiled."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As `torch.optim.AdamW.step`."""
        loss: float | None = inspect.unwrap(torch.optim.AdamW.step)(self, closure)
        return loss
