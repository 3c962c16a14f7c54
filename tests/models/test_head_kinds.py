from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config, read_initial_weights
from svertka.data.preprocessing import Preprocess
from svertka.models.head_kinds import (
    AdaptationHead,
    CosineHead,
    HeadKind,
    head_kind_without_relu,
    head_path,
    set_head_kind,
)
from svertka.models.registry import MODELS
from svertka.models.weights import LoadedWeights

PREPROCESS = Preprocess(size=32, resize=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_cosine_is_that_of_the_angle() -> None:
    head = CosineHead(5, 3, scale=4.0).double()
    features = torch.randn(7, 5, dtype=torch.float64)
    expected = [
        [4 * float(x @ w) / (float(x.norm()) * float(w.norm())) for w in head.weight.detach()] for x in features
    ]
    torch.testing.assert_close(head(features).detach(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(head(features * 9), head(features))  # length does not count


def test_adaptation_is_the_papers() -> None:
    head = AdaptationHead(4096, 21)
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == [(2048, 4096), (2048,), (21, 2048), (21,)]  # Oquab et al. 2014, §3.1: FCa and FCb
    assert head(torch.randn(2, 4096)).shape == (2, 21)


@pytest.mark.parametrize(
    ("name", "path"),
    [("alexnet_owt", "classifier.6"), ("googlenet", "fc"), ("resnet20", "linear"), ("efficientnet_lite0", "fc")],
)
def test_the_head_is_found_beside_auxiliaries(name: str, path: str) -> None:
    assert head_path(MODELS[name]) == path


@pytest.mark.parametrize("kind", ["cosine", "adaptation"])
def test_config_alone_rebuilds_it(kind: HeadKind, tmp_path: Path) -> None:
    config = Config(model="resnet20", names=("a", "b", "c"), preprocess=PREPROCESS, head=kind)
    made = Classifier(config.build().eval(), config)
    made.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert isinstance(loaded.network.get_submodule("linear"), CosineHead if kind == "cosine" else AdaptationHead)
    pictures = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.network(pictures), made.network(pictures), rtol=0, atol=0)

    start = read_initial_weights(MODELS["resnet20"], str(tmp_path))  # what comes before the head starts any network
    network = MODELS["resnet20"].build(classes=5, size=32)
    assert start.load_into(network, ("a", "b", "c", "d", "e")) == "the head is newly initialized"
    assert not network.get_parameter("linear.weight").any()
    assert torch.equal(network.get_parameter("conv1.weight"), made.network.get_parameter("conv1.weight"))


def test_linear_is_the_networks_own() -> None:
    network = MODELS["resnet20"].build(classes=3, size=32)
    before = network.linear
    set_head_kind(network, MODELS["resnet20"], "linear", 3)
    assert network.linear is before


def test_scores_behind_a_relu_are_trained_as_those_of_pooled_features() -> None:
    torch.manual_seed(0)
    model = MODELS["squeezenet1_1"]
    own = model.build(classes=3).eval()
    pooled = model.build(classes=3)
    pooled.load_state_dict(own.state_dict())
    set_head_kind(pooled, model, "pooled", 3)
    assert isinstance(pooled.eval().get_submodule(head_path(model)), nn.Linear)
    own.classifier[2] = nn.Identity()  # the ReLU
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(pooled(pictures), own(pictures))
    set_head_kind(pooled, model, "pooled", 3)  # a second time changes nothing
    torch.testing.assert_close(pooled(pictures), own(pictures))


@pytest.mark.parametrize("kind", ["cosine", "adaptation"])
def test_other_heads_stand_on_pooled_features_too(kind: HeadKind) -> None:
    config = Config(model="squeezenet1_1", names=("a", "b"), preprocess=PREPROCESS, head=kind)
    assert config.build().eval()(torch.randn(2, 3, 32, 32)).shape == (2, 2)


def test_published_weights_fit_both_forms_and_a_run_starts_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, names = MODELS["squeezenet1_1"], ("a", "b", "c")
    published = LoadedWeights(model, model.build(classes=3).state_dict(), PREPROCESS, names, "x")
    config = Config(model=model.name, names=names, preprocess=PREPROCESS, head="pooled")
    network = config.build()
    assert published.load_into(network, names) == ""
    rows = published.tensors["classifier.1.weight"]
    assert rows.shape == (3, 512, 1, 1)
    assert torch.equal(network.get_parameter("classifier.1.weight"), rows.flatten(1))

    Classifier(network, config).save(tmp_path)
    again = read_initial_weights(model, str(tmp_path))
    own = model.build(classes=2)
    assert "2 of them keep" in again.load_into(own, ("c", "a"))
    assert torch.equal(own.get_parameter("classifier.1.weight"), rows[[2, 0]])


FAMILIES = ("mlp", "lenet5", "alexnet", "zfnet", "vgg11", "googlenet", "resnet20", "squeezenet1_1", "airbench")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_network_is_trained_with_scores_that_are_cut_off_at_0(name: str) -> None:
    model = MODELS[name]
    size = max(model.min_size, 32)
    torch.manual_seed(0)
    with torch.device("meta"):
        network = model.build(2, model.channels, size)
        set_head_kind(network, model, head_kind_without_relu(model, "linear"), 2)
    head = network.get_submodule(head_path(model))
    seen: list[nn.Module] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda layer, _inputs, _outputs: seen.append(layer))
    network.eval()(torch.zeros(1, model.channels, size, size, device="meta"))
    assert not any(isinstance(layer, nn.ReLU) for layer in seen[seen.index(head) :])
