"""The images most similar to one: their order, their labels, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.errors import DataError, ImageError, UsageError
from svertka.models.head_kinds import head_path


@pytest.fixture
def run(made: Callable[..., Classifier], tmp_path: Path) -> Path:
    """A run with random weights."""
    made("resnet20", 16, 16).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def labeled(digit_folder: Path, tmp_path: Path) -> Path:
    """Four images in each of two class folders."""
    for name in ("one", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(digit_folder / name / f"{number:02}.png", tmp_path / "photos" / name)
    return tmp_path / "photos"


def features_before_the_head(run: Path, path: Path) -> np.ndarray:
    """Return what the layer that computes the scores receives."""
    classifier, seen = Classifier.load(run), []
    head = classifier.network.get_submodule(head_path(classifier.model))
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    with torch.no_grad():
        classifier.network(classifier.preprocess(path)[None])
    return seen[0][0].numpy()


def test_the_similarity_is_the_cosine_of_the_features_before_the_head(run: Path, labeled: Path) -> None:
    image = labeled / "one" / "00.png"
    found = svertka.similar(run, image, labeled, count=5, threads=1)
    wanted = features_before_the_head(run, image)
    cosines = {}
    for path in labeled.rglob("*.png"):
        values = features_before_the_head(run, path)
        cosines[str(path)] = float(values @ wanted / np.linalg.norm(values) / np.linalg.norm(wanted))
    del cosines[str(image)]
    best = sorted(cosines, key=lambda path: -cosines[path])[:5]
    assert [one.path for one in found.images] == best
    assert [one.similarity for one in found.images] == pytest.approx([cosines[path] for path in best], abs=1e-5)
    assert [one.label for one in found.images] == [Path(path).parent.name for path in best]
    assert found.copies == (str(image),)
    assert found.compared == 7


def test_images_need_no_labels_and_arrays_have_no_path(run: Path, labeled: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(labeled.rglob("*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    (tmp_path / "flat" / "broken.png").write_bytes(b"nothing")
    with Image.open(labeled / "one" / "00.png") as opened:
        pixels = np.asarray(opened)
    found = svertka.similar(run, pixels, tmp_path / "flat", threads=1)
    assert len(found.images) == 8
    assert {one.label for one in found.images} == {None}
    assert found.images[0].path == str(tmp_path / "flat" / "0.png")
    assert found.images[0].similarity == pytest.approx(1, abs=1e-5)
    assert [path for path, _ in found.bad] == [str(tmp_path / "flat" / "broken.png")]
    assert found._repr_html_().count("<img") == 8


def test_what_cannot_be_compared_is_refused(run: Path, labeled: Path, tmp_path: Path) -> None:
    image = labeled / "one" / "00.png"
    with pytest.raises(UsageError, match="count=0 must be at least 1"):
        svertka.similar(run, image, labeled, count=0)
    (tmp_path / "text.png").write_text("nothing")
    with pytest.raises(ImageError, match=r"text\.png cannot be read: "):
        svertka.similar(run, tmp_path / "text.png", labeled, threads=1)
    with pytest.raises(UsageError, match="there is no folder"):
        svertka.similar(run, image, tmp_path / "nowhere", threads=1)
    (tmp_path / "alone").mkdir()
    shutil.copy(image, tmp_path / "alone")
    with pytest.raises(DataError, match="holds no other image that can be read"):
        svertka.similar(run, image, tmp_path / "alone", threads=1)


def test_the_command_prints_json_and_a_table(run: Path, labeled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["similar", str(run), str(labeled / "one" / "00.png"), str(labeled), "--count", "3", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(one) for one in found["images"]] == [{"path", "label", "similarity"}] * 3
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(one["path"] in shown for one in found["images"])
    assert "the 3 most similar of 7 images" in shown
