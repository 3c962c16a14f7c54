import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.models.external import list_models, open_model
from svertka.models.external_builder import GRAPH
from svertka.models.head_kinds import head_path
from svertka.models.registry import MODELS
from svertka.models.weights import head_tensor_names


def small(classes: int = 10, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, classes),
    )  # fmt: skip


def fixed(classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, classes))


def test_a_module_keeps_its_weights_and_gets_a_head_for_the_classes() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = open_model(network)
    assert (model.name, model.classes, model.channels, model.size, head_path(model)) == ("Sequential", 10, 3, 224, "5")
    same, other = model.build(10), model.build(4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in same.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items() if name[0] != "5")
    assert other[5].weight.shape == (4, 4)  # type: ignore[union-attr, index]
    with torch.no_grad():
        same[0].weight.zero_()  # type: ignore[union-attr, index, operator]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert head_tensor_names(model) == {"5.weight", "5.bias"}


def test_a_function_is_called_with_the_number_of_classes() -> None:
    model = open_model(small)
    assert model.reference is not None
    assert model.reference.target == f"{__name__}:small"
    assert model.build(7)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    local = open_model(lambda classes: small(classes, channels=1))
    assert (local.reference and local.reference.target, local.channels) == (GRAPH, 1)
    deaf = open_model(lambda classes: small(10))
    assert deaf.build(7)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_building_on_the_meta_device_allocates_nothing_and_draws_nothing() -> None:
    model, state = open_model(small), torch.get_rng_state()
    with torch.device("meta"):
        network = model.build(3)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_size_and_channels_are_those_on_which_the_network_runs() -> None:
    model = open_model(fixed)
    assert model.input_shape == (1, 28, 28)
    assert open_model(small, sizes=(48,)).size == 48


def test_names_of_the_registry_and_of_builders(tmp_path: Path) -> None:
    assert open_model("resnet18") is MODELS["resnet18"]
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))\n"
    )
    model = open_model(f"{tmp_path}/own.py:build")
    assert (model.name, head_path(model)) == ("own.py:build", "2")
    with pytest.raises(UsageError, match="model=resnet19 is not known; use resnet18"):
        open_model("resnet19")
    with pytest.raises(
        UsageError, match=r"head_layer=fc is only for networks from other packages, and resnet18 is one of svertka's"
    ):
        open_model("resnet18", head_layer="fc")


class Scores(nn.Module):
    """Class scores without a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.zeros(classes, 3))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((2, 3))[:, None] - self.points).square().sum(2)


def test_without_a_linear_head_the_number_of_classes_must_fit() -> None:
    assert open_model(Scores).build(4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    model = open_model(Scores(10))
    assert model.build(10)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(UsageError, match=r"Scores computes scores for 10 classes, without a linear layer or 1×1 conv"):
        model.build(4)
    with pytest.raises(UsageError, match=r"Scores has no linear layer or 1×1 convolution that computes its class"):
        head_path(model)


def test_head_layer_names_the_layer_that_is_replaced() -> None:
    wrapped = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10), nn.PReLU())
    assert open_model(wrapped, head_layer="2").build(4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    with pytest.raises(UsageError, match=r"head_layer=fc is not a linear layer or 1×1 convolution of Sequential; it"):
        open_model(wrapped, head_layer="fc")


def half() -> nn.Module:
    return small().half()


UNUSABLE: dict[str, tuple[Any, str]] = {
    "a lazy layer": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)),
        "Sequential has a lazy layer (2.weight), which has no weights yet; run it on an image first",
    ),
    "half precision": (half(), "Sequential has float16 parameters (0.weight); svertka needs float32"),
    "four channels": (
        small(3, channels=4),
        "Sequential takes images of 4 channels; svertka's have 1 (gray) or 3 (RGB)",
    ),
    "a function that fails": (lambda classes: classes["x"], "(TypeError: 'int' object is not subscriptable)"),
    "a function of nothing": (lambda: small(), "fails for 3 classes (TypeError:"),
    "a function that returns a number": (lambda classes: classes, "returns a int; it must take the number of classes"),
    "feature maps": (nn.Conv2d(3, 8, 3), "Conv2d returns a tensor of N×8×222×222"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used_is_one_sentence(kind: str) -> None:
    network, sentence = UNUSABLE[kind]
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        open_model(network)
    assert "\n" not in str(caught.value)


def test_layers_of_a_module_are_listed() -> None:
    (facts,) = list_models(small())
    assert facts["parameters"] == sum(parameter.numel() for parameter in small().parameters())
    assert [layer["name"] for layer in facts["layers"]] == ["0", "1", "2", "3", "4", "5"]
    assert facts["published"] == []
