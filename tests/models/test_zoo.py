import pytest
import torch

from svertka.errors import UsageError
from svertka.models.zoo import MODELS, find


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_the_paper_s_and_any_other(name):
    model = MODELS[name]
    assert model.name == name
    assert model.build().eval()(torch.zeros(2, *model.input)).shape == (2, model.classes)
    for classes, channels, size in [(2, 1, model.smallest), (7, 3, model.size + 5)]:
        network = model.build(classes, channels, size).eval()
        assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)


def test_published_sizes():
    counts = {name: sum(p.numel() for p in model.build().parameters()) for name, model in MODELS.items()}
    assert counts == {"mlp": 238_510, "lenet5": 60_000, "resnet20": 269_722}


def test_lenet5_is_given_what_the_paper_gives_it():
    model = MODELS["lenet5"]
    assert (0 - model.mean) / model.std == pytest.approx(-0.1)
    assert (1 - model.mean) / model.std == pytest.approx(1.175)
    assert (model.size, model.resize_for(32), model.resize_for(64)) == (32, 28, 56)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 15}, "size=15 is too small for lenet5; use at least 16 pixels"),
        ({"classes": 0}, "classes=0 must be at least 1"),
        ({"channels": 4}, r"channels=4 must be 1 \(grey\) or 3 \(RGB\)"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, said):
    with pytest.raises(UsageError, match=said):
        MODELS["lenet5"].build(**arguments)


def test_a_name_misspelt_is_answered_with_the_nearest():
    assert find("resnet20") is MODELS["resnet20"]
    with pytest.raises(UsageError, match=r"model=ResNet-20 is not known; use resnet20$"):
        find("ResNet-20")
    with pytest.raises(UsageError, match=r"use mlp or lenet5 or resnet20$"):
        find("transformer")
