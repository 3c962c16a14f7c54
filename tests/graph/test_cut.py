"""A network cut in two, compared with the whole."""

import copy

import pytest
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.cut import SameShapeStage, cut_network, find_stages
from svertka.models.registry import MODELS

# One of each family, at the smallest size that its stages can be told apart at.
FAMILIES = {
    "mlp": 28,
    "lenet5": 32,
    "alexnet": 67,
    "alexnet_owt": 63,
    "zfnet": 63,
    "vgg11_bn": 32,
    "googlenet": 64,
    "googlenet_bn": 64,
    "inception_v3": 75,
    "inception_v4": 75,
    "inception_resnet_v2": 75,
    "resnet18": 64,
    "resnet20": 32,
    "plain20": 32,
    "squeezenet1_1": 64,
    "efficientnet_lite0": 64,
    "airbench": 32,
}


def built(name: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with its batch norm in use, and the shape of its input."""
    torch.manual_seed(0)
    channels = 1 if name in ("mlp", "lenet5") else 3
    network = MODELS[name].build(classes=4, channels=channels, size=size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval(), (2, channels, size, size)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", FAMILIES)
def test_halves_compute_what_the_network_does(name: str) -> None:
    network, shape = built(name, FAMILIES[name])
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(network.state_dict())
    found = find_stages(network, (1, *shape[1:]))
    assert len(found) >= (2 if name == "mlp" else 3)
    assert sum(stage.parameters for stage in found) == sum(one.numel() for one in _read(network))
    with torch.inference_mode():
        whole = network(images)
        for stage in (found[0], found[len(found) // 2], found[-1]):
            halves = cut_network(network, stage.name, (1, *shape[1:]))
            assert halves.shape == stage.given
            features = images if halves.prefix is None else halves.prefix(images)
            assert features.shape[1:] == halves.shape
            torch.testing.assert_close(halves.rest(features.clone()), whole, rtol=0, atol=0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not network.training


def _read(network: nn.Module) -> list[Tensor]:
    """The parameters that inference reads."""
    auxiliary = tuple(getattr(network, "auxiliaries", ()))
    return [one for key, one in network.named_parameters() if key.partition(".")[0] not in auxiliary]


def test_stages_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        found = find_stages(MODELS["resnet18"].build(), (1, 3, 224, 224))
        names = [stage.name for stage in find_stages(MODELS["efficientnet_lite0"].build(), (1, 3, 224, 224))]
    assert found == [
        SameShapeStage("conv1", 9_536, (64, 56, 56), (3, 224, 224)),
        SameShapeStage("layer1", 147_968, (64, 56, 56), (64, 56, 56)),
        SameShapeStage("layer2", 525_568, (128, 28, 28), (64, 56, 56)),
        SameShapeStage("layer3", 2_099_712, (256, 14, 14), (128, 28, 28)),
        SameShapeStage("layer4", 8_393_728, (512,), (256, 14, 14)),  # with the pooling after it
        SameShapeStage("fc", 513_000, (1000,), (512,)),
    ]
    # Tan & Le 2019, table 1: nine rows, of which the last is the 1×1 convolution, the pooling and the dense layer.
    assert names == ["conv_stem", *(f"blocks.{first}" for first in (0, 1, 3, 5, 8, 11, 15)), "conv_head", "fc"]


def test_dropout_belongs_to_the_next_trainable_stage() -> None:
    network, shape = built("vgg11_bn", 32)
    halves = cut_network(network, find_stages(network, shape)[-1].name, shape)
    assert halves.prefix is not None
    assert sum(isinstance(one, nn.Dropout) for one in halves.rest.modules()) == 1


def test_cut_before_any_module() -> None:
    network, shape = built("resnet18", 64)
    halves = cut_network(network, "layer3.1", shape)
    names = {name for name, _ in halves.rest.named_parameters()}
    assert "layer3.1.conv1.weight" in names
    assert "layer3.0.conv1.weight" not in names
    assert all(dict(network.named_parameters())[name] is one for name, one in halves.rest.named_parameters())


def test_training_the_rest_trains_the_network() -> None:
    network, shape = built("resnet20", 32)
    halves = cut_network(network, "layer3", shape)
    assert halves.prefix is not None
    with torch.no_grad():
        features = halves.prefix(torch.rand(shape))
    halves.rest(features).sum().backward()
    learned = [name for name, one in network.named_parameters() if one.grad is not None]
    assert learned
    assert all(name.startswith(("layer3", "linear")) for name in learned)


def test_a_module_with_two_inputs_cannot_be_cut_off() -> None:
    network, shape = built("resnet18", 64)
    with pytest.raises(UsageError, match=r"layer1\.0\.conv2 cannot be cut off.*layer2"):
        cut_network(network, "layer1.0.conv2", shape)


def test_the_error_for_an_unknown_stage_lists_the_stages() -> None:
    network, shape = built("resnet18", 64)
    with pytest.raises(
        UsageError, match="ResNet has no stage layer9; it has conv1, layer1, layer2, layer3, layer4, fc"
    ):
        cut_network(network, "layer9", shape)


def test_shared_weights_read_as_plain_tensors() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.full((1,), 3.0))

        def forward(self, inputs: Tensor) -> Tensor:
            maps = torch.relu(self.first(inputs)) * self.scale
            out: Tensor = self.second(maps.mean((2, 3)) * self.scale)
            return out

    network = Scaled().eval()
    images = torch.rand(2, 3, 8, 8)
    halves = cut_network(network, "second", (1, 3, 8, 8))
    assert halves.prefix is not None
    torch.testing.assert_close(halves.rest(halves.prefix(images)), network(images), rtol=0, atol=0)
