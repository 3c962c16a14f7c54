import copy
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.models.external import PROBED_CLASSES, list_models, open_model
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
    for fixed_classes in (PROBED_CLASSES, 10):
        deaf = open_model(lambda classes, fixed_classes=fixed_classes: small(fixed_classes))
        for classes in (PROBED_CLASSES, 7):
            assert deaf.build(classes)(torch.zeros(2, 3, 64, 64)).shape == (2, classes)


def test_networks_of_a_function_share_no_weights() -> None:
    whole, body = small(PROBED_CLASSES), small()[:5]
    for function in (lambda classes: whole, lambda classes: nn.Sequential(body, nn.Linear(4, classes))):
        model = open_model(function)
        one, other = model.build(5), model.build(5)
        known = {id(one) for network in (one, whole, body) for one in network.parameters()}
        assert known.isdisjoint(map(id, other.parameters()))
        assert torch.equal(next(other.parameters()), next(function(5).parameters()))


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


class Returning(nn.Module):
    """A network that returns what a function makes of class scores and images."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.fc(x.mean((2, 3))), x)


class TwoInputs(nn.Module):
    """A network of images and masks."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask).mean((2, 3))


class Uninitialized(nn.Module):
    """A network that does not initialize nn.Module."""

    def __init__(self) -> None:
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale


def fails(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises `error`."""

    def function(*_: Any) -> Any:
        raise error

    return function


def of_size(size: int) -> nn.Module:
    """Return a network for images of one size."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 3))


def changed(change: Callable[[Tensor], object]) -> nn.Module:
    """Return a network after `change` of its last bias."""
    network = small(3)
    with torch.no_grad():
        change(network[5].bias)  # type: ignore[arg-type]
    return network


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.script(small(3))  # type: ignore[no-any-return]


SCORES = "svertka needs class scores (N, K)"
UNUSABLE: dict[str, tuple[Any, str]] = {
    "a dict": (Returning(lambda scores, x: {"logits": scores}), f"Returning returns a dict; {SCORES}"),
    "a tuple": (Returning(lambda scores, x: (scores, x)), f"Returning returns a tuple; {SCORES}"),
    "a list": (Returning(lambda scores, x: [scores]), f"Returning returns a list; {SCORES}"),
    "None": (Returning(lambda scores, x: None), f"Returning returns None; {SCORES}"),
    "scores of tokens": (Returning(lambda scores, x: scores[:, None].expand(-1, 7, -1)), "a tensor of N×7×3, torch.fl"),
    "a single number": (
        Returning(lambda scores, x: scores.sum()),
        "returns a tensor of a single number, torch.float32",
    ),
    "one number an image": (Returning(lambda scores, x: scores[:, 0]), "returns a tensor of N, torch.float32"),
    "no scores": (Returning(lambda scores, x: scores[:, :0]), "returns a tensor of N×0, torch.float32"),
    "labels": (Returning(lambda scores, x: scores.argmax(1)), "returns a tensor of N, torch.int64"),
    "integers": (Returning(lambda scores, x: scores.long()), "returns a tensor of N×3, torch.int64"),
    "float64": (
        Returning(lambda scores, x: scores.double()),
        "Returning returns float64 scores; svertka needs float32",
    ),
    "a row for the batch": (Returning(lambda scores, x: scores[:1]), "returns a tensor of 1×3, torch.float32"),
    "probabilities": (small(3).append(nn.Softmax(1)), "returns probabilities, those of its last layer, 6 (Softmax)"),
    "independent probabilities": (Returning(lambda scores, x: scores.sigmoid()), "last layer, sigmoid (sigmoid)"),
    "a branch": (
        Returning(lambda scores, x: scores if x.sum() > 0 else -scores),
        "Returning depends on the values of its input (Tensor.item() cannot be called on meta tensors)",
    ),
    "chosen images": (
        Returning(lambda scores, x: scores[x.mean((1, 2, 3)) > 0]),
        "Returning depends on the values of its input (torch.nonzero()), which may differ for each image",
    ),
    "NumPy": (Returning(lambda scores, x: torch.from_numpy(scores.numpy())), "Returning converts a tensor to NumPy"),
    "an exit": (
        Returning(lambda scores, x: sys.exit("bye")),
        "Returning cannot be traced with an input of 1×3×224×224",
    ),
    "two inputs": (TwoInputs(), "TwoInputs needs inputs other than images (mask); wrap it in a module whose forward"),
    "token ids": (nn.Sequential(nn.Embedding(9, 4)), "1×3×224×224; the network itself says: Expected tensor"),
    "an unusual size": (of_size(100), "none of the sizes 224, 32, 28, 64, 96, 128, 160, 192, 256, 299, 384, 512 fits"),
    "float64 parameters": (small(3).double(), "Sequential has float64 parameters (0.weight); svertka needs float32"),
    "meta tensors": (small(3).to("meta"), "Sequential has weights on the meta device (0.weight), which have no values"),
    "NaN": (changed(lambda bias: bias.fill_(torch.nan)), "Sequential has weights that are NaN or infinite (in 5.bias)"),
    "infinity": (changed(lambda bias: bias.fill_(torch.inf)), "weights that are NaN or infinite (in 5.bias)"),
    "no super().__init__()": (Uninitialized(), "Uninitialized is not initialized: its __init__ does not call super()"),
    "TorchScript": (scripted(), "RecursiveScriptModule is a TorchScript module, which cannot be traced; give the mod"),
    "a function without a result": (lambda classes: None, "returns None; it must take the number of classes"),
    "a function that exits": (fails(SystemExit("bye")), "fails for 3 classes (SystemExit: bye)"),
    "a function that fails without words": (fails(ValueError()), "fails for 3 classes (ValueError); it must take"),
    "a function of keywords": (lambda *, classes: small(classes), "fails for 3 classes (TypeError:"),
    "a function of another input": (lambda classes, width: small(classes), "missing 1 required positional argument"),
    "a generator": (lambda classes: (yield), "returns an object of type generator; it must take"),
    "a class": (lambda classes: nn.Linear, "returns an object of type type; it must take"),
    "a lazy layer": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)),
        "Sequential has a lazy layer (2.weight), which has no weights yet; run it on an image first",
    ),
    "half precision": (small().half(), "Sequential has float16 parameters (0.weight); svertka needs float32"),
    "17 channels": (small(3, channels=17), "Sequential takes images of 17 channels; svertka's have up to 16"),
    "a function that fails": (lambda classes: classes["x"], "(TypeError: 'int' object is not subscriptable)"),
    "a function of nothing": (lambda: small(), "fails for 3 classes (TypeError:"),
    "a function that returns a number": (lambda classes: classes, "returns an object of type int; it must take"),
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


def test_fresh_weights_are_told_from_pretrained_ones() -> None:
    def build(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))

    kept = build(3)

    def without_batch_norm(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))

    def pretrained(classes: int) -> nn.Module:
        return nn.Sequential(*copy.deepcopy(kept)[:4], nn.Linear(4 * 36, classes))

    state = torch.get_rng_state()
    found = [open_model(one, sizes=[8]).draws_weights for one in (build, without_batch_norm, pretrained, kept)]
    assert found == [True, False, False, False]
    assert torch.equal(torch.get_rng_state(), state)
