"""A label added to a run of several labels: what is kept, what is stated, and what is refused."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import svertka
from svertka.classifier import Classifier
from svertka.errors import DataError, UsageError
from svertka.evaluation.held_out import read_manifest
from svertka.evaluation.multi_label_metrics import average_precisions
from svertka.run import Run
from svertka.training.extension_accuracy import MeanPrecisionEstimate

IMAGES = 60  # of the run; 20 others are new


def rows_of(table: Path) -> list[tuple[str, list[str]]]:
    """Return the absolute path and the labels of each row."""
    with table.open(newline="") as file:
        return [(str(table.parent / row["path"]), row["label"].split("|")) for row in csv.DictReader(file)]


def write_table(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    path.write_text("path,label\n" + "".join(f"{name},{'|'.join(labels)}|\n" for name, labels in rows))
    return path


@pytest.fixture(scope="module")
def base(
    made: Callable[..., Classifier], task_tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run of the labels top and left, with a frozen network."""
    folder = tmp_path_factory.mktemp("base")
    made("resnet20", 16, 16).save(folder / "weights")
    rows = [
        (name, [one for one in labels if one in ("top", "left")])
        for name, labels in rows_of(task_tables["multi-label"])
    ]
    table = write_table(folder / "photos.csv", rows[:IMAGES])
    return svertka.train(
        table, weights=str(folder / "weights"), output=folder / "run", unfreeze="head", head="logistic", augment=False,
        val=0.3, threads=1,
    )  # fmt: skip


def test_a_label_is_added_to_images_of_the_run_and_to_new_ones(
    base: Run, task_tables: dict[str, Path], tmp_path: Path
) -> None:
    everything = rows_of(task_tables["multi-label"])
    table = write_table(tmp_path / "more.csv", everything[: IMAGES + 20])
    made = svertka.extend(base, table, threads=1)
    assert made.added == ("luck",)
    assert sum(made.new_images.values()) == 20
    extended = Run(made.run.folder)
    assert extended.classifier().names == ("left", "top", "luck")

    # All images of the new run have the labels of the table.
    listed = {Path(name).name: set(labels) - {""} for name, labels in rows_of(extended.folder / "images.csv")}
    assert listed == {Path(name).name: set(labels) - {""} for name, labels in everything[: IMAGES + 20]}
    old, now = read_manifest(base), read_manifest(extended)
    assert old is not None
    assert now is not None
    assert all(old.parts[part] <= now.parts[part] for part in ("train", "val", "test"))

    # The mean average precisions are those of both runs on the held-out images of the first.
    judged = svertka.evaluate(base, base.settings()["source"], part="val", threads=1)
    assert isinstance(made.before, MeanPrecisionEstimate)
    assert isinstance(made.after, MeanPrecisionEstimate)
    assert made.before.images == judged.images == len(old.parts["val"])
    assert made.before.mean_average_precision == pytest.approx(judged.mean_average_precision)
    rows = dict(rows_of(Path(base.settings()["source"])))
    with (extended.folder / "images.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["part"] == "val" and row["path"] in rows]
    targets = np.array([[name in rows[path] for name in ("left", "top")] for path in paths])
    predicted = svertka.predict(extended, *paths, threads=1)
    scores = [{one["name"]: one["probability"] for one in image["labels"]} for image in predicted]
    probabilities = np.array([[one["left"], one["top"]] for one in scores])
    wanted = average_precisions(probabilities, targets, np.ones((1, len(paths)))).mean()
    assert made.after.mean_average_precision == pytest.approx(wanted)
    assert made.added_accuracy is not None
    assert made.added_accuracy.images == len(now.parts["val"])
    assert made.sentences()[0] == "new labels: luck; 20 images added"
    assert made.sentences()[1].startswith(f"old labels: mAP {made.before.mean_average_precision:.1%} (")
    assert made.to_dict()["before"]["mean_average_precision"] == made.before.mean_average_precision


def test_labels_that_a_source_does_not_name_are_absent_and_those_of_the_run_are_kept(
    base: Run, task_tables: dict[str, Path], tmp_path: Path
) -> None:
    names = [name for name, _ in rows_of(task_tables["multi-label"])]
    rows = [(name, ["hat"]) for name in names[:10]] + [(names[IMAGES], ["hat"]), (names[IMAGES + 1], ["Left"])]
    made = svertka.extend(base, write_table(tmp_path / "hats.csv", rows), output=tmp_path / "run", threads=1)
    listed = dict(rows_of(tmp_path / "run" / "images.csv"))
    rows_before = dict(rows_of(Path(base.settings()["source"])))
    for name in names[:10]:
        assert set(listed[name]) - {""} == (set(rows_before[name]) | {"hat"}) - {""}
    assert set(listed[names[IMAGES]]) == {"hat", ""}
    assert set(listed[names[IMAGES + 1]]) == {"left", ""}
    notes = "; ".join(made.notes)
    assert "the label Left is taken for left" in notes
    assert "images of the run that have the new labels: hat 10; the others count as images without them" in notes
    assert "new images count as images without what" in notes
    assert "does not name: top" in notes


def test_what_cannot_be_extended_is_refused(
    base: Run, task_runs: dict[str, Run], task_tables: dict[str, Path], digit_folder: Path
) -> None:
    with pytest.raises(UsageError, match="knows all of its 60 images and labels; add a label to its table, or images"):
        svertka.extend(base, str(base.settings()["source"]), threads=1)
    with pytest.raises(DataError, match="predicts several labels an image, and .* has one class an image; name its c"):
        svertka.extend(base, digit_folder, threads=1)
    with pytest.raises(UsageError, match="predicts a number, to which no class or label can be added; train again on"):
        svertka.extend(task_runs["regression"], task_tables["regression"], threads=1)
