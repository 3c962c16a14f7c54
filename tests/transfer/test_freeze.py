"""What is frozen stays as it was, to the bit, and costs nothing that learning costs."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.data.loader import BatchLoader
from svertka.errors import UsageError
from svertka.graph.cut import find_stages
from svertka.models.registry import MODELS
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Callback, TrainingProgress, fit, make_optimizer
from svertka.transfer.freeze import freeze_and_split, parameter_stage_depths, parse_unfreeze, split_at_frozen

SHAPE = (1, 1, 8, 8)


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    network = MODELS["resnet20"].build(classes=10, channels=1, size=8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as though it had learned
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def digest(tensors: dict[str, torch.Tensor]) -> str:
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("unfreeze", "learns"), [
    ("head", ("linear.",)),
    ("last", ("linear.", "layer3.")),
    ("2", ("linear.", "layer3.", "layer2.")),
    ("layer3", ("linear.", "layer3.")),
])  # fmt: skip
def test_training_leaves_the_frozen_part_unchanged(
    digit_batches: Callable[..., BatchLoader], unfreeze: str, learns: tuple[str, ...]
) -> None:
    network = resnet20()
    made = freeze_and_split(network, unfreeze, SHAPE)
    assert made is not None
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recipe = Recipe(epochs=1, lr=0.05, weight_decay=0.01)
    optimizer = make_optimizer(network, recipe)
    fit(made, optimizer, digit_batches(300), recipe, TrainingProgress(), Callback())

    after = network.state_dict()
    frozen = [name for name in before if not name.startswith(learns)]
    assert digest({name: before[name] for name in frozen}) == digest({name: after[name] for name in frozen})
    parameters = dict(network.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in parameters if name.startswith(learns))
    assert all(parameters[name].grad is None for name in frozen if name in parameters)
    assert len(optimizer.state) == sum(name.startswith(learns) for name in parameters)


def test_backward_pass_stops_at_the_cut() -> None:
    made = freeze_and_split(resnet20(), "last", SHAPE)
    assert made is not None
    features = made.train().frozen(torch.rand(2, 1, 8, 8))
    assert features.shape == (2, *made.shape)
    assert not features.requires_grad
    assert made.trainable(features).requires_grad
    assert not any(module.training for module in made.frozen.modules())


@pytest.mark.parametrize("name", ["resnet20", "squeezenet1_1", "efficientnet_lite0", "googlenet_bn"])
def test_both_parts_together_match_the_network(name: str) -> None:
    size = 8 if name == "resnet20" else 64
    torch.manual_seed(0)
    network = MODELS[name].build(classes=5, channels=3, size=size).eval()
    pictures = torch.rand(2, 3, size, size)
    made = split_at_frozen(network, "last", (1, 3, size, size))
    assert made is not None
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.inference_mode():
        assert torch.equal(made.eval()(pictures), network(pictures))


def test_auxiliary_classifiers_of_a_frozen_network_are_frozen() -> None:
    network = MODELS["googlenet_bn"].build(classes=5, channels=3, size=64)
    freeze_and_split(network, "head", (1, 3, 64, 64))
    assert {name for name, one in network.named_parameters() if one.requires_grad} == {"fc.weight", "fc.bias"}


def test_first_trainable_stage() -> None:
    found = find_stages(resnet20(), SHAPE)
    names = [stage.name for stage in found]
    assert parse_unfreeze(found, "head") == names[-1] == "linear"
    assert parse_unfreeze(found, "last") == parse_unfreeze(found, "1") == parse_unfreeze(found, names[-2]) == names[-2]
    assert (
        parse_unfreeze(found, "all")
        is parse_unfreeze(found, names[0])
        is parse_unfreeze(found, str(len(names) - 1))
        is None
    )
    for wrong in ("top", "99", "-1", ""):
        with pytest.raises(
            UsageError, match=f"unfreeze={wrong} is not a part.*the lowest.*: conv1, layer2, layer3, linear"
        ):
            parse_unfreeze(found, wrong)


def test_depths_count_stages_from_the_head() -> None:
    network = resnet20()
    found = parameter_stage_depths(network, SHAPE)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert found["linear.weight"] == found["linear.bias"] == 0
    assert found["layer3.0.conv1.weight"] == found["layer3.2.bn2.bias"] == 1
    assert found["layer2.0.conv1.weight"] == 2
    assert found["conv1.weight"] == found["layer1.2.bn2.bias"] == 3


@pytest.mark.usefixtures("quiet")
def test_stages_unfreeze_one_per_epoch_with_lower_learning_rates(
    digit_batches: Callable[..., BatchLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, recipe = resnet20(), Recipe(epochs=2, lr=0.05, gradual=True, stage_rate=0.5)
    optimizer = make_optimizer(network, recipe, parameter_stage_depths(network, SHAPE))
    start = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    changed: list[set[str]] = []
    # Several processes average the gradients of what can be trained when the network is made parallel.
    averaged: list[set[str]] = []

    def record(network: nn.Module, **_: Any) -> nn.Module:
        averaged.append({name.split(".")[0] for name, one in network.named_parameters() if one.requires_grad})
        return network

    monkeypatch.setattr("svertka.distributed.data_parallel", record)

    class Watcher(Callback):
        def on_epoch_end(self, epoch: int, loss: float, error: float) -> bool:
            changed.append(
                {name.split(".")[0] for name, now in network.named_parameters() if (now != start[name]).any()}
            )
            return False

    fit(network, optimizer, digit_batches(128), recipe, TrainingProgress(), Watcher())
    assert changed == averaged == [{"linear"}, {"linear", "layer3"}]
    assert sorted({group["rate_factor"] for group in optimizer.param_groups}) == [0.125, 0.25, 0.5, 1]


def test_any_module_can_be_the_lowest_trainable_one() -> None:
    """Blocks of a transformer have outputs of one shape, so that they are a single stage."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mix = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            mixed: Tensor = x + self.mix(self.attention(x, x, x, need_weights=False)[0])
            return mixed

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 2)
            self.blocks = nn.Sequential(Block(), Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
            return scores

    network = Transformer().eval()
    images = torch.rand(2, 3, 32, 32)
    made = freeze_and_split(network, "blocks.2", (1, 3, 32, 32))
    assert made is not None
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if name.startswith(("blocks.2", "head"))}
    with torch.no_grad():
        torch.testing.assert_close(made(images), network(images))
