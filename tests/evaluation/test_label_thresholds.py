"""`svertka calibrate` on runs of several labels and of a number."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

import svertka
from svertka.cli.app import main
from svertka.errors import UsageError
from svertka.evaluation.label_thresholds import LabelThresholds
from svertka.run import Run
from svertka.tasks import MultiLabel

Runs, Tables = dict[str, Run], dict[str, Path]
NAMES = ("left", "luck", "top")


@pytest.fixture
def new_images(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A table of 80 new images, and whether each has the labels; 4 have the label luck."""
    rng, lines = np.random.default_rng(7), ["path,label"]
    given = np.zeros((80, 3), bool)
    for number in range(80):
        pixels, has = rng.integers(0, 90, (12, 12)), rng.random(2) < 0.5
        pixels[:, :6] += 80 * has[0]
        pixels[:6] += 80 * has[1]
        given[number] = has[0] ^ (number % 9 == 0), number % 20 == 0, has[1]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
        lines.append(f"{number:02}.png,{'|'.join(np.array(NAMES)[given[number]])}")
    (tmp_path / "new.csv").write_text("\n".join(lines))
    return tmp_path / "new.csv", given


def test_thresholds_of_new_images_have_the_best_f1(
    task_runs: Runs, new_images: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, given = new_images
    folder = tmp_path / "run"
    shutil.copytree(task_runs["multi-label"].folder, folder)
    before = Run(folder).classifier().task
    assert main(["calibrate", str(folder), "--new", str(table), "--threads", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["images"], made["part"], made["kept"]) == (80, "new", ["luck"])
    task = Run(folder).classifier().task
    assert isinstance(task, MultiLabel)
    assert isinstance(before, MultiLabel)
    assert dict(zip(NAMES, task.thresholds, strict=True)) == made["thresholds"]
    assert task.threshold(1) == before.threshold(1)
    answers = svertka.predict(folder, *sorted(table.parent.glob("??.png")), threads=1)
    shares = np.array([[{one["name"]: one["probability"] for one in answer["labels"]}[name] for name in NAMES]
                       for answer in answers])  # fmt: skip
    for label in (0, 2):
        best = max(f1_score(given[:, label], shares[:, label] >= limit) for limit in np.linspace(0.005, 0.995, 199))
        assert f1_score(given[:, label], shares[:, label] >= task.threshold(label)) >= best
        said = [{one["name"]: one["predicted"] for one in answer["labels"]}[NAMES[label]] for answer in answers]
        assert said == (shares[:, label] >= task.threshold(label)).tolist()


def test_thresholds_of_the_validation_images(task_runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(task_runs["multi-label"].folder, folder)
    before = Run(folder).classifier().task
    made = svertka.calibrate(folder, threads=1)
    assert isinstance(made, LabelThresholds)
    assert made.part == "validation"
    assert made.images == Run(folder).settings()["parts"]["val"]
    assert Run(folder).classifier().task == before  # the training chose them in the same way
    assert made.sentences[0].startswith("thresholds with the highest F1 on ")


def test_what_has_no_meaning_is_a_sentence(task_runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="predicts a number, which has no probability, class or threshold"):
        svertka.calibrate(task_runs["regression"].folder)
    with pytest.raises(UsageError, match=r"keep=0.9 is about images of none .* which an image may have none"):
        svertka.calibrate(task_runs["multi-label"].folder, keep=0.9)
    with pytest.raises(UsageError, match=r"unknown=.* leave it out"):
        svertka.calibrate(task_runs["multi-label"].folder, unknown=tmp_path)
