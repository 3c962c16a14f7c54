"""A recording's operations as few steps: what vanishes, what is left out, and what stays as it was."""

import torch
from torch import Tensor, nn

from svertka.compiler.dynamic_batch import record
from svertka.compiler.fusion import fused
from svertka.compiler.ir import Constant, Operation, Value, leaves
from svertka.compiler.steps import Convolution, Pool, inputs_of, results_of
from svertka.models.registry import MODELS


def test_a_residual_network_has_a_step_a_convolution_and_two_poolings() -> None:
    network = MODELS["resnet18"].build(classes=5).eval()
    made = fused(record(network, (1, 3, 64, 64)))
    kinds = [type(step) for step in made.steps]
    convolutions = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules())
    assert kinds.count(Convolution) == convolutions
    assert kinds.count(Pool) == len(kinds) - convolutions == 2


def test_every_step_reads_what_is_there() -> None:
    for name in ("googlenet_bn", "efficientnet_lite0", "inception_v3"):
        made = fused(record(MODELS[name].build(classes=5).eval(), (1, 3, 96, 96)))
        there = {0}
        for step in made.steps:
            assert there.issuperset(inputs_of(step))
            there.update(results_of(step))
        assert {leaf.number for leaf in made.output.leaves if isinstance(leaf, Value)} <= there


class Wasteful(nn.Module):
    """Computes what nobody reads, and what depends on no picture."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.drop = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Dropout()
        self.scale = nn.Parameter(torch.tensor([1.0, 2, 3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.drop(self.used(x)).clone() * (self.scale.exp() + 1)[:, None, None]


def test_what_is_not_needed_is_left_out_and_what_is_known_is_computed() -> None:
    network = Wasteful().eval()
    made = fused(record(network, (1, 3, 8, 8)))
    assert [type(step) for step in made.steps] == [Convolution, Operation]
    assert not any(name.startswith("unused") for name in made.tensors)
    (known,) = [leaf.name for leaf in leaves(made.steps[1].arguments) if isinstance(leaf, Constant)]  # type: ignore[union-attr]
    torch.testing.assert_close(made.tensors[known].flatten(), network.scale.exp() + 1)


def test_tensors_of_the_network_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    made = fused(record(network, (1, 3, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    (step,) = made.steps
    assert isinstance(step, Convolution)
    assert made.tensors[step.weight].dtype == torch.float32
