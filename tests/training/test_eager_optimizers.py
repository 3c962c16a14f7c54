"""Optimizers that do not import the compiler, held against PyTorch's."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.training.eager_optimizers import EagerAdamW, EagerSGD


def trained(kind: type[torch.optim.Optimizer], **options: Any) -> list[Tensor]:
    """Weights after two steps, and two more with the state in another optimizer."""
    generator = torch.Generator().manual_seed(0)  # torch.manual_seed imports the compiler, too
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 4, generator=generator))
        network.bias.zero_()
    optimizer = kind([{"params": [network.weight]}, {"params": [network.bias], "lr": 0.3}], lr=0.1, **options)
    kept = []
    for step in range(4):
        if step == 2:
            state, optimizer = optimizer.state_dict(), kind(network.parameters(), lr=0.2, **options)
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
            state["param_groups"] = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(state)
        network(torch.randn(5, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert network.weight.grad is None
        kept += [network.weight.detach().clone(), network.bias.detach().clone()]
    return kept


@pytest.mark.parametrize(
    ("own", "theirs", "options"),
    [
        (EagerSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "fused": True}),
        (EagerAdamW, torch.optim.AdamW, {"weight_decay": 0.01, "fused": True}),
    ],
)
def test_steps_are_those_of_pytorch_without_its_compiler(
    own: type[torch.optim.Optimizer],
    theirs: type[torch.optim.Optimizer],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = trained(theirs, **options)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # so that its import fails
    found = trained(own, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(ImportError):
        trained(theirs, **options)
