from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.classifier import Classifier, Config, find_weights
from svertka.data.preprocess import Preprocess
from svertka.errors import UsageError
from svertka.models.heads import Adaptation, Cosine, Head, head_path, put_head
from svertka.models.zoo import MODELS

PREPROCESS = Preprocess(size=32, resize=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_cosine_is_that_of_the_angle() -> None:
    head = Cosine(5, 3, scale=4.0).double()
    features = torch.randn(7, 5, dtype=torch.float64)
    expected = [
        [4 * float(x @ w) / (float(x.norm()) * float(w.norm())) for w in head.weight.detach()] for x in features
    ]
    torch.testing.assert_close(head(features).detach(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(head(features * 9), head(features))  # length does not count


def test_adaptation_is_the_papers() -> None:
    head = Adaptation(4096, 21)
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
def test_config_alone_rebuilds_it(kind: Head, tmp_path: Path) -> None:
    config = Config(model="resnet20", names=("a", "b", "c"), preprocess=PREPROCESS, head=kind)
    made = Classifier(config.build().eval(), config)
    made.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert isinstance(loaded.network.get_submodule("linear"), Cosine if kind == "cosine" else Adaptation)
    pictures = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.network(pictures), made.network(pictures), rtol=0, atol=0)

    start = find_weights(MODELS["resnet20"], str(tmp_path))  # what comes before the head starts any network
    network = MODELS["resnet20"].build(classes=5, size=32)
    assert start.put_into(network, ("a", "b", "c", "d", "e")) == "the head starts from fresh weights"
    assert not network.get_parameter("linear.weight").any()
    assert torch.equal(network.get_parameter("conv1.weight"), made.network.get_parameter("conv1.weight"))


def test_linear_is_the_networks_own() -> None:
    network = MODELS["resnet20"].build(classes=3, size=32)
    before = network.linear
    put_head(network, MODELS["resnet20"], "linear", 3)
    assert network.linear is before


def test_a_network_without_a_dense_layer_at_its_end_is_refused() -> None:
    network = MODELS["squeezenet1_1"].build(classes=3)
    assert isinstance(network, nn.Module)
    with pytest.raises(UsageError, match="head=cosine needs a network that ends in a dense layer, and squeezenet1_1"):
        put_head(network, MODELS["squeezenet1_1"], "cosine", 3)
