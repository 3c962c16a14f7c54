"""Folders and tables with hostile names: check, train, evaluate and predict count and name the same images alike."""

import csv
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

import svertka
from hostile import TEXTS
from svertka.errors import SvertkaError

IMAGES = 7  # of the first class; each further class has one more
# Classes as people, spreadsheets and pandas write them.
WRITTEN = ("cat", "Cat", "CAT", " cat", "cat ", "7", "007", "7.0", "['cat']", "nan", "None", "0", "True", "a|b", "a/b",
           "train", "test", "label", "x" * 250)  # fmt: skip
NAMES = (*WRITTEN, *TEXTS.values())
KINDS = ("folders", "table", "table with parts", "semicolons", "UTF-16", "JSON lines")


class Source:
    """Images of digits in folders of hostile names, or listed in a table with hostile labels.

    Args:
        root: An empty folder.
        seed: Chooses everything.

    Attributes:
        path: The data set.
        labels: The label that each file was written with.
    """

    def __init__(self, root: Path, seed: int) -> None:
        draw = random.Random(seed)
        self.kind = KINDS[seed % len(KINDS)]
        # Bytes that are not UTF-8 may be in names of folders and in escapes.
        names = [name for name in NAMES if self.kind in ("folders", "JSON lines") or "\udce9" not in name]
        classes = draw.sample(draw.choice((names, WRITTEN)), 3)
        if self.kind == "folders":  # a dot hides a folder, and others of these are parts
            classes = [name for name in classes if "/" not in name and name[0] != "." and name not in ("train", "test")]
        digits, number = load_digits(), 0
        self.labels: dict[Path, str] = {}
        for place, label in enumerate(classes):
            for _ in range(IMAGES + place):
                beside = draw.choice(names)[:40].replace("/", "_")
                name = f"{number}{beside}.png"
                path = root / (label if self.kind == "folders" else "images") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = digits.images[digits.target == place][number] * 15.9
                Image.fromarray(pixels.astype("uint8")).save(path, "PNG")
                self.labels[path] = label
                number += 1
        self.path = root if self.kind == "folders" else self._write_table(root)

    def _write_table(self, root: Path) -> Path:
        rows = [(path.relative_to(root).as_posix(), label) for path, label in self.labels.items()]
        if self.kind == "JSON lines":
            table = root / "labels.jsonl"
            lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
            table.write_text("\n".join(lines), encoding="utf-8")
            return table
        encoding = "utf-16" if self.kind == "UTF-16" else "utf-8"
        parted = self.kind == "table with parts"
        with (root / "labels.csv").open("w", newline="", encoding=encoding) as file:
            write = csv.writer(file, delimiter=";" if self.kind == "semicolons" else ",").writerow
            write(("path", "label", "part") if parted else ("path", "label"))
            for number, row in enumerate(rows):
                write((*row, ("train", "train", "val")[number % 3]) if parted else row)
        return root / "labels.csv"


def as_read(label: str, kind: str) -> str:
    """A label with composed accents, bytes that are not UTF-8 as escapes, and in a table no spaces at its ends."""
    composed = unicodedata.normalize("NFC", label).encode("utf-8", "backslashreplace").decode()
    return composed if kind == "folders" else composed.strip()


def outcome(command: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """What a command returns, and ""; or None, and the sentence with which it refuses."""
    try:
        return command(*arguments, **options), ""
    except SvertkaError as error:
        return None, str(error)


@pytest.mark.sample(4)
@pytest.mark.parametrize("seed", range(120))
@pytest.mark.filterwarnings("ignore")
def test_all_commands_agree_on_labels_counts_and_names(seed: int, tmp_path: Path) -> None:
    source = Source(tmp_path / "source", seed)
    given: dict[str, Any] = {} if source.kind == "table with parts" else {"val": 0.3}
    options: dict[str, Any] = {"model": "mlp", "size": 8, "epochs": 2, "threads": 1} | given
    run, refusal = outcome(svertka.train, source.path, output=tmp_path / "run", **options)
    found, sentence = outcome(svertka.check, source.path, **given)
    if run is None:
        assert "\n" not in refusal
        assert sentence == refusal if found is None else found.problems
        return
    names = run.classifier().names
    assert tuple(found.classes) == names
    parts = run.settings()["parts"]
    assert parts == found.to_dict()["split"]
    assert sum(parts.values()) == found.images
    written = [as_read(label, source.kind) for label in source.labels.values()]
    labels = [set(label.split("|") if source.kind != "folders" else [label]) for label in written]
    assert found.images == len(written)
    assert sorted(found.classes.values()) == sorted(
        sum(name in some for some in labels) for name in set().union(*labels)
    )
    judged = svertka.evaluate(run, source.path, part="all", include_training=True, threads=1)
    assert judged.images == found.images
    answers = svertka.predict(run, *source.labels, threads=1)
    assert [{label["name"] for label in one["labels"]} for one in answers] == [set(names)] * len(answers)
    if found.task.is_single_label:
        assert {one.name: one.images for one in judged.per_class} == found.classes
        best = [one["labels"][0]["name"] for one in answers]
        wrong = sum(name != label for name, label in zip(best, written, strict=True))
        assert judged.top1_error == pytest.approx(wrong / len(written))
