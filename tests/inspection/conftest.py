import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from svertka.models.zoo import find


@pytest.fixture(scope="session")
def exact_network() -> Callable[[str, int], nn.Module]:
    """A network of the zoo by name and side of its input, in float64, with statistics and biases as trained ones have.

    In float64 no max-pool decides differently for rounding, nor is a small difference hidden by it.
    """

    @cache
    def make(name: str, size: int) -> nn.Module:
        torch.manual_seed(1)
        network = find(name).build(classes=10, size=size).double().eval()
        for key, values in network.state_dict().items():
            if key.endswith("running_var") or (key.endswith("weight") and values.ndim == 1):
                values.uniform_(0.5, 1.5)
            elif key.endswith(("bias", "running_mean")):
                values.normal_(0, 0.1)
        return network

    return make


@pytest.fixture
def left_as_it_was() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """In `left_as_it_was(network)` what happens must not change it, not in a single bit, however it ends."""

    @contextmanager
    def watched(network: nn.Module) -> Iterator[None]:
        before = _state(network)
        try:
            yield
        finally:
            after = _state(network)
            assert before.keys() == after.keys()
            for name, value in before.items():
                same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
                assert same, name

    return watched


def _state(network: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"rng": torch.get_rng_state(), "grad enabled": torch.is_grad_enabled()}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        found[name] = tensor.detach().clone()
        found[f"{name}'s"] = (id(tensor), tensor._version, tensor.grad, tensor.requires_grad, tensor._backward_hooks)
    for name, module in network.named_modules():
        found[f"{name}:"] = copy.copy({key: value for key, value in vars(module).items() if "_modules" not in key})
        found[f"{name} hooks"] = (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        )
    return found


@pytest.fixture
def captum() -> Iterator[Any]:
    """captum's `attr`, which warns that it sets hooks, and that it asks inputs for gradients."""
    import captum.attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield captum.attr
