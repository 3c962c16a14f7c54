import pytest
import torch
from torch import nn

from svertka.errors import UsageError
from svertka.models.external import list_models
from svertka.models.registry import MODELS, find_model

# Of the papers, or counted by hand in the docstrings; without auxiliary classifiers.
PARAMETERS = {
    "mlp": 238_510,
    "lenet5": 60_000,
    "alexnet": 60_965_224,
    "alexnet_owt": 61_100_840,
    "zfnet": 62_357_608,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "googlenet": 6_998_552,
    "googlenet_bn": 6_624_904,
    "inception_v3": 23_834_568,
    "inception_v4": 42_679_816,
    "inception_resnet_v2": 55_843_464,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "squeezenet1_1": 1_235_496,
    "efficientnet_lite0": 4_652_008,
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet1202"])
def test_every_model_is_the_paper_s_and_any_other(name):
    model = MODELS[name]
    assert model.name == name
    # On the meta device shapes are computed, and nothing else: VGGs and all in a moment.
    for classes, channels, size in [(None, None, None), (2, 1, model.min_size), (7, 3, model.size + 5), (2, 3, 64)]:
        with torch.device("meta"):
            network = model.build(classes, channels, max(size or model.size, model.min_size))
            images = torch.zeros(2, channels or model.channels, *2 * [max(size or model.size, model.min_size)])
        assert network.eval()(images).shape == (2, classes or model.classes)
        outputs = network.train()(images)
        for logits in outputs if isinstance(outputs, tuple) else (outputs,):
            assert logits.shape == (2, classes or model.classes)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_published_sizes(name, parameters):
    with torch.device("meta"):
        network = MODELS[name].build()
    auxiliaries = getattr(network, "auxiliaries", ())
    counted = [one.numel() for path, one in network.named_parameters() if path.split(".")[0] not in auxiliaries]
    assert sum(counted) == parameters


def test_layers_with_weights_are_those_of_the_name():
    for name in MODELS.keys() - {"resnet1202"}:  # whose parameters are counted above
        layers = name.removeprefix("resnet").removeprefix("plain")
        if layers.isdigit():
            with torch.device("meta"):
                network = MODELS[name].build()
            weighty = [
                path
                for path, layer in network.named_modules()
                if isinstance(layer, nn.Conv2d | nn.Linear) and "downsample" not in path
            ]
            assert len(weighty) == int(layers)


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
        ({"channels": 17}, r"channels=17 must be 1 \(gray\), 3 \(RGB\) or a number of bands up to 16"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, said):
    with pytest.raises(UsageError, match=said):
        MODELS["lenet5"].build(**arguments)


def test_a_name_misspelt_is_answered_with_the_nearest():
    assert find_model("resnet20") is MODELS["resnet20"]
    with pytest.raises(UsageError, match=r"model=ResNet-20 is not known; use resnet20 or resnet"):
        find_model("ResNet-20")
    with pytest.raises(UsageError, match=r"model=transformer is not known; `svertka models` lists those"):
        find_model("transformer")
    with pytest.raises(UsageError, match=r"model=nets/own.py names no function; write nets/own.py:FUNCTION"):
        find_model("nets/own.py")


def test_the_list_of_models_is_whole_and_one_of_them_has_its_layers() -> None:
    assert [one["name"] for one in list_models()] == list(MODELS)
    (lenet,) = list_models("lenet5")
    assert sum(layer["parameters"] for layer in lenet["layers"]) == lenet["parameters"]
    with pytest.raises(UsageError, match="lenet6"):
        list_models("lenet6")
