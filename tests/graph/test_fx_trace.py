"""Networks as torch.fx graphs."""

import pytest
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.fx_trace import SHAPE, trace_to_fx
from svertka.graph.summary import trace
from svertka.models.registry import MODELS


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "efficientnet_lite0"])
def test_shapes_are_those_of_a_trace(name: str) -> None:
    with torch.device("meta"):
        network = MODELS[name].build()
    network.train()
    graph = trace_to_fx(network, (1, 3, 224, 224))
    traced = {layer.name: layer.shape for layer in trace(network, (1, 3, 224, 224)).layers}
    found = {str(node.target): node.meta[SHAPE] for node in graph.nodes if node.op == "call_module"}
    common = found.keys() & traced.keys()
    assert len(common) > 30
    assert {name: found[name] for name in common} == {name: traced[name] for name in common}
    assert network.training  # as it was


class Deciding(nn.Module):
    """Looks at its values between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs)
        return out if out.sum() > 0 else -out


def test_a_network_that_depends_on_values_is_rejected() -> None:
    with pytest.raises(
        UsageError, match="Deciding cannot be traced with an input of 1×3×4×4; the network itself says: "
    ):
        trace_to_fx(Deciding(), (1, 3, 4, 4))
