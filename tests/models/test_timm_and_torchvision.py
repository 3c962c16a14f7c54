import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.cli.app import main
from svertka.errors import FetchError, UsageError
from svertka.models import timm_and_torchvision
from svertka.models.external import open_model
from svertka.models.head_kinds import head_path
from svertka.models.weights import read_pretrained_weights
from svertka.tensor_files import write_tensors

# Packages with the functions of timm and torchvision that svertka calls, and one small network each.
TIMM = """
from torch import nn

class Config:
    fixed_input_size, interpolation, hf_hub_filename, hf_hub_id = True, "bicubic", None, "timm/small.a1_in1k"
    def to_dict(self):
        statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        return {"input_size": (3, 32, 32), "crop_pct": 0.8, "interpolation": self.interpolation} | statistics

def is_model(name):
    return name == "small"

def list_models(pattern="*"):
    return ["small"]

def list_pretrained(pattern):
    return ["small.a1_in1k"]

def create_model(name, pretrained, num_classes, in_chans=3, img_size=32):
    layers = nn.Conv2d(in_chans, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(4 * (img_size // 4) ** 2, num_classes)
    return nn.Sequential(*layers)
"""
TIMM_MODELS = """
from timm import Config

def get_pretrained_cfg(name, allow_unregistered):
    if name not in ("small", "small.a1_in1k"):
        raise RuntimeError(f"Invalid pretrained tag in {name}.")
    return Config()
"""
TORCHVISION_MODELS = """
from types import SimpleNamespace
from torch import nn

def list_models(module):
    return ["small"]

def get_model_weights(name):
    sizes = {"crop_size": [32], "resize_size": [40], "interpolation": SimpleNamespace(value="bicubic")}
    transforms = SimpleNamespace(mean=[0.4] * 3, std=[0.2] * 3, **sizes)
    url = "http://localhost:9/models/small-0123abcd.pth"
    return SimpleNamespace(DEFAULT=SimpleNamespace(url=url, transforms=lambda: transforms))

def get_model(name, weights, num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""
HUB = "def try_to_load_from_cache(repository, file):\n    return None\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the packages on the search path, and hide installed ones."""
    for name, text in (("timm", TIMM), ("torchvision", "")):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(text)
    (tmp_path / "path" / "timm" / "models.py").write_text(TIMM_MODELS)
    (tmp_path / "path" / "torchvision" / "models.py").write_text(TORCHVISION_MODELS)
    (tmp_path / "path" / "huggingface_hub.py").write_text(HUB)
    ours = ("timm", "torchvision", "huggingface_hub")
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "resize", "mean", "head"), [("timm:small", 40, 0.5, "3"), ("torchvision:small", 40, 0.4, "3")]
)
def test_a_network_has_its_packages_input(packages: Path, name: str, resize: int, mean: float, head: str) -> None:
    model = open_model(name)
    assert model.preprocess is not None
    assert (model.name, model.input_shape, model.resize, head_path(model)) == (name, (3, 32, 32), resize, head)
    assert model.preprocess.mean == (mean,) * 3
    assert not model.has_own_weights
    assert model.build(5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_a_network_of_fixed_size_is_built_for_other_images(packages: Path) -> None:
    assert open_model("timm:small").build(5, 1, 64)(torch.zeros(2, 1, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 7, 16])
def test_networks_of_torchvision_read_any_number_of_channels(packages: Path, channels: int) -> None:
    torch.manual_seed(0)
    network = open_model("torchvision:small").build(5, channels, 32)
    first = network[0]
    assert (first.in_channels, first.out_channels, first.kernel_size) == (channels, 4, (3, 3))
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    # The layer for RGB has a variance of 1 / (3 inputs · 3 taps of 9) / 3: with more inputs, weights are smaller.
    expected = 1 / (3 * (channels * 9))
    assert 0.2 * expected < float(first.weight.detach().var()) < 3 * expected


def test_a_network_of_torchvision_without_a_convolution_of_rgb_is_refused(packages: Path) -> None:
    models = packages / "path" / "torchvision" / "models.py"
    models.write_text(models.read_text().replace("nn.Conv2d(3, 4, 3)", "nn.Identity(), nn.Flatten(0, 1)"))
    with pytest.raises(
        UsageError, match="torchvision:small has no first convolution of RGB that could read 7 channels"
    ):
        timm_and_torchvision.get_network_builder("torchvision", "small")(5, channels=7)


def test_the_layers_of_a_network_of_a_package_are_printed(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "timm:small"]) == 0
    header, columns, first, *_ = capsys.readouterr().out.splitlines()
    assert header == "timm:small on 3×32×32 pixels"
    assert columns.split()[:3] == ["layer", "kind", "output"]
    assert first.split()[:3] == ["0", "Conv2d", "4×8×8"]


WRONG = {
    "timm:smalls": "model=timm:smalls is not a network of timm; it has small; see timm's list_models()",
    "timm:": "model=timm: is not a network of timm; see timm's list_models()",
    "timm:small.a2": "model=timm:small.a2 is not a network of timm; it has small.a1_in1k",
    "torchvision:smallest": "model=torchvision:smallest is not a network of torchvision; it has small",
    "timm:hf-hub:evil/network": "model=timm:hf-hub:evil/network is not a network of timm",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_network_that_the_package_lacks_is_refused(packages: Path, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(WRONG[name])):
        open_model(name)


def test_weights_that_cannot_be_fetched_name_the_file_and_its_place(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(timm_and_torchvision.urllib.request, "urlopen", unreachable)
    places = {
        "timm:small": ("model.safetensors", packages / "cache" / "svertka" / "weights" / "timm-small.safetensors"),
        "torchvision:small": ("small-0123abcd.pth", packages / "torch" / "hub" / "checkpoints" / "small-0123abcd.pth"),
    }
    for name, (file, place) in places.items():
        model = open_model(name)
        with pytest.raises(
            FetchError,
            match=rf"cannot fetch {file} \(network is unreachable\); get it another way, from http.*put it at",
        ) as error:
            read_pretrained_weights(model, "pretrained")
        assert str(error.value).endswith(f"put it at {place}")
        place.parent.mkdir(parents=True, exist_ok=True)
        network = model.build()
        if place.suffix == ".pth":
            torch.save(network.state_dict(), place)
        else:
            write_tensors(place, network.state_dict())
        weights = read_pretrained_weights(model, "pretrained")
        assert all(torch.equal(weights.tensors[key], tensor) for key, tensor in network.state_dict().items())
        assert weights.names is not None
        assert len(weights.names) == 1000
        assert weights.preprocess.interpolation == "bicubic"


def test_another_filter_than_svertka_has_is_refused() -> None:
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(UsageError, match="interpolation=lanczos, and svertka has bilinear and bicubic; change it in"):
        timm_and_torchvision.timm_preprocess(config | {"interpolation": "lanczos"})
    assert timm_and_torchvision.timm_preprocess(config).interpolation == "bilinear"  # type: ignore[union-attr]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"^timm (is not installed; pip install 'svertka\[timm\]'|cannot be imported)"):
        open_model("timm:resnet18")


def test_a_package_of_another_pytorch_is_one_sentence(packages: Path) -> None:
    (packages / "path" / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator does not exist')\n")
    with pytest.raises(UsageError, match=r"torchvision cannot be imported with PyTorch .* \(operator does not exist\)"):
        open_model("torchvision:small")


@pytest.mark.parametrize("config", [None, {}, {"input_size": (3, 8, 8)}, 3])
def test_a_network_without_published_input(config: object) -> None:
    assert timm_and_torchvision.timm_preprocess(config) is None


def test_the_published_input_of_a_network() -> None:
    config = {"input_size": (3, 224, 224), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "crop_pct": 0.875}
    found = timm_and_torchvision.timm_preprocess(config)
    assert found is not None
    assert (found.size, found.resize, found.mean, found.std, found.fit) == (
        224, 256, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "crop",
    )  # fmt: skip
    squeezed = timm_and_torchvision.timm_preprocess(config | {"crop_mode": "squash"})
    assert squeezed is not None
    assert (squeezed.resize, squeezed.fit) == (224, "squeeze")
    with pytest.raises(UsageError, match="images of 160×96 pixels, but svertka supports only square images"):
        timm_and_torchvision.timm_preprocess(config | {"input_size": (3, 160, 96)})


def test_networks_of_timm_itself() -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not import beside this PyTorch ({error})")
    for name, head in (("mobilenetv3_small_100", "classifier"), ("vit_tiny_patch16_224", "head")):
        model = open_model(f"timm:{name}")
        assert model.preprocess is not None
        assert (head_path(model), model.classes) == (head, 1000)
        config = timm.get_pretrained_cfg(name)
        assert (model.preprocess.mean, model.preprocess.std) == (config.mean, config.std)
        assert isinstance(model.build(3).get_submodule(head), nn.Linear)
