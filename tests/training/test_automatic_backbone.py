"""`--model auto` compares the networks whose weights are on this machine, and no others."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svertka
from svertka.errors import UsageError
from svertka.models.published_weights import BACKBONE, PRETRAINED
from svertka.models.registry import MODELS
from svertka.training import automatic_backbone
from svertka.training.automatic_backbone import find_offline_backbones
from svertka.training.single_run import resolve_options
from svertka.transfer.backbone_features import BackboneFeatures


@pytest.fixture
def photos(shared_data: Path, tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for picture in sorted((shared_data / "cats-dogs" / name).glob("*.jpg"))[:8]:
            shutil.copy(picture, tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def squeezenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of SqueezeNet in the cache; they are random."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "svertka" / "weights" / PRETRAINED["squeezenet1_1"]["imagenet"].file
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(MODELS["squeezenet1_1"].build().state_dict(), path)
    return path


def choose(monkeypatch: pytest.MonkeyPatch, source: Any, **options: Any) -> tuple[str, str | None]:
    """The network and weights that a training would start from."""
    monkeypatch.setattr("svertka.training.train.train_run", resolve_options)
    resolved: Any = svertka.train(source, model="auto", threads=1, **options)
    return resolved.model.name, resolved.start_from


def test_the_best_of_those_on_this_machine_is_chosen(
    photos: Path, squeezenet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_offline_backbones() == [BACKBONE, ("squeezenet1_1", "imagenet")]
    assert choose(monkeypatch, photos) == BACKBONE
    said = capsys.readouterr().err
    assert "efficientnet_lite0:bundled  cross-validated error 0.0%, 95 % interval 0.0% to " in said
    assert "squeezenet1_1:imagenet      cross-validated error " in said
    assert "model=auto takes efficientnet_lite0:bundled: the lowest error on 14 training images" in said
    assert "auto" not in MODELS

    monkeypatch.setattr(automatic_backbone, "SECONDS", 0.0)
    assert choose(monkeypatch, photos) == BACKBONE
    assert "squeezenet1_1:imagenet      not compared: it needs about " in capsys.readouterr().err
    squeezenet.write_bytes(b"damaged")
    assert choose(monkeypatch, photos) == BACKBONE
    assert "squeezenet1_1:imagenet      not compared: " in capsys.readouterr().err


def test_without_other_weights_or_enough_images_the_bundled_network_is_taken(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert choose(monkeypatch, photos) == BACKBONE
    assert (
        "model=auto takes efficientnet_lite0:bundled: no other weights are on this machine" in capsys.readouterr().err
    )
    for path in sorted(photos.rglob("*.jpg"))[:5]:
        path.unlink()
    assert choose(monkeypatch, photos) == BACKBONE
    assert "there are too few images to compare others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "best"), [("multi-label", "highest mAP"), ("regression", "lowest mean absolute error")]
)
def test_labels_and_numbers_are_compared_by_their_metric(
    kind: str,
    best: str,
    task_tables: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbones = [BACKBONE, ("squeezenet1_1", "imagenet"), ("resnet18", "imagenet")]
    monkeypatch.setattr(automatic_backbone, "find_offline_backbones", lambda: backbones)

    def features(dataset: Any, some: Any, backbone: Any, **_: Any) -> Any:
        """Features that say nothing, except those of one network, which know half of each target."""
        rng = np.random.default_rng(backbones.index(backbone))
        noise = rng.standard_normal((len(some), 8)).astype(np.float32)
        if backbone[0] == "squeezenet1_1":
            noise[:, :3] += dataset.labels[some].reshape(len(some), -1)
        return BackboneFeatures(np.asarray(some), noise, ":".join(backbone))

    monkeypatch.setattr(automatic_backbone, "compute_backbone_features", features)
    assert choose(monkeypatch, str(task_tables[kind])) == ("squeezenet1_1", "imagenet")
    said = capsys.readouterr().err
    assert f"model=auto takes squeezenet1_1:imagenet: the {best} on 180 training images" in said
    found = dict(re.findall(r"(\w+):\w+ +cross-validated [a-zA-Z ]+ ([\d.]+)%?, 95 % interval", said))
    better = {name: float(value) * (1 if kind == "multi-label" else -1) for name, value in found.items()}
    assert max(better, key=better.__getitem__) == "squeezenet1_1"
    assert len(found) == 3


def test_ten_numbers_are_too_few_to_compare_networks(
    task_tables: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines, folder = task_tables["regression"].read_text().splitlines(), task_tables["regression"].parent
    table = tmp_path / "few.csv"
    table.write_text("\n".join([lines[0], *(f"{folder}/{line}" for line in lines[1:12])]))
    backbones = [BACKBONE, ("squeezenet1_1", "imagenet")]
    monkeypatch.setattr(automatic_backbone, "find_offline_backbones", lambda: backbones)
    assert choose(monkeypatch, str(table)) == BACKBONE
    assert "there are too few images to compare others" in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"weights": "imagenet"}, {"size": 64}, {"boxes": "x.csv"}, {"head_layer": "fc"}])
def test_what_contradicts_it_is_one_sentence(
    option: dict[str, Any], digit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "boxes" in option:
        option = {"boxes": digit_folder}
    with pytest.raises(UsageError, match=r"asks for another; leave out one of the two|no boxes|holds no"):
        choose(monkeypatch, digit_folder, **option)


def test_large_sets_are_sampled_by_class() -> None:
    labels = np.repeat([0, 1, 2], [4000, 900, 100])
    drawn = automatic_backbone._draw(labels, np.arange(5000))
    assert np.bincount(labels[drawn]).tolist() == pytest.approx([800, 180, 20], abs=1)
    assert len(np.unique(drawn)) == automatic_backbone.MAX_IMAGES
