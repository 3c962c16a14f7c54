"""Layers left in training mode are refused exactly if they compute something else there."""

import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler.validation import unwrap_network
from svertka.errors import UsageError


class DropsInForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class DropsInHelper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x)

    def reduce(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class DropsInInnerFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (lambda y: F.dropout(y, 0.5, self.training))(x)


class DropsByProperty(nn.Module):
    @property
    def factor(self) -> float:
        return 2.0 if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Inherits(DropsInForward):
    pass


def with_forward_of_its_own() -> nn.Module:
    layer = nn.Identity()
    layer.forward = types.MethodType(DropsInForward.forward, layer)  # type: ignore[method-assign,assignment]
    return layer


class StaysFrozen(nn.Module):
    """Its mode changes nothing, although it is set here."""

    def train(self, mode: bool = True) -> "StaysFrozen":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Attends(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


LAYERS: list[Callable[[], nn.Module]] = [
    DropsInForward,
    DropsInHelper,
    DropsInInnerFunction,
    DropsByProperty,
    Inherits,
    with_forward_of_its_own,
    StaysFrozen,
    lambda: Attends(4, 2, dropout=0.5),
    lambda: Attends(4, 2),
    lambda: nn.LSTM(4, 4, num_layers=2, dropout=0.5),
    lambda: nn.GRU(4, 4, num_layers=2, dropout=0.5),
    lambda: nn.LSTM(4, 4, num_layers=2),
    lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
    lambda: nn.Dropout(0.5),
    lambda: nn.Dropout(0.0),
    lambda: nn.AlphaDropout(0.5),
    nn.RReLU,
    lambda: nn.BatchNorm1d(5),
    lambda: nn.BatchNorm1d(5, track_running_stats=False),
    lambda: nn.InstanceNorm1d(5),
    lambda: nn.InstanceNorm1d(5, track_running_stats=True),
    lambda: nn.LayerNorm(4),
    lambda: nn.Linear(4, 4),
    nn.GELU,
]


@pytest.mark.parametrize("make", LAYERS)
def test_a_layer_in_training_mode_is_refused_if_its_result_depends_on_it(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(3, 5, 4)

    def result(*, training: bool) -> Tensor:
        found = layer.train(training)(x)
        return (found[0] if isinstance(found, tuple) else found).detach()

    depends = not torch.allclose(result(training=True), result(training=False), atol=1e-5)
    network = nn.Sequential(nn.Identity(), layer).eval()
    layer.train()
    if depends:
        with pytest.raises(UsageError, match=rf"^1 \({type(layer).__name__}\) is in training mode"):
            unwrap_network(network)
    else:
        assert unwrap_network(network) is network
    assert unwrap_network(network.train()) is network
