"""No test image reaches the fit, the statistics or the choice of an epoch, and no validation image the fit.

Every read is recorded while whole trainings run, by the content of the image. Run as a script, this file is one
training with the record written to a file: what torchrun starts.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import svertka
from ranks import start_torchrun, wait_for_end
from svertka.cli.app import main
from svertka.data.dataset import Ints
from svertka.errors import Interrupted
from svertka.run import Run
from svertka.training import data_splits as parts_module
from svertka.training import repeated_splits, resume, run_recorder, single_run, training_loop
from svertka.training.data_splits import DataSplits

QUICK: dict[str, Any] = {"model": "mlp", "size": 8, "epochs": 2, "batch_size": 32, "threads": 1}


class Reads:
    """The contents that each purpose was given: "rows" (whatever for, before the end), "statistics", "fit", "choice"
    and "result"; `scored`: how often a result was counted."""

    def __init__(self) -> None:
        self.contents: dict[str, set[str]] = {name: set() for name in ("rows", "statistics", "fit", "choice", "result")}
        self.scored = 0
        self.parts: DataSplits | None = None
        self.at_the_end = False

    def note(self, purpose: str, indices: Ints) -> None:
        """The images at `indices` were used for `purpose`."""
        assert self.parts is not None
        if purpose == "rows" and self.at_the_end:
            return
        patches = self.parts.patches
        for index in indices.tolist():
            digest = self.parts.digests[index]
            if patches is not None:
                digest = patches.images.digest(int(patches.places[index, 0]))
            self.contents[purpose].add(digest.hex())

    def of_parts(self, parts: DataSplits) -> DataSplits:
        """`parts`, whose rows say when they are read."""
        self.parts, self.at_the_end = parts, False
        patches = None if parts.patches is None else _Rows(parts.patches, self)
        return replace(
            parts, train_rows=_Rows(parts.train_rows, self), eval_rows=_Rows(parts.eval_rows, self), patches=patches
        )


class _Rows:
    """Rows, or patches, that say when they are read."""

    def __init__(self, rows: Any, reads: Reads) -> None:
        self._rows, self._reads = rows, reads

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Ints) -> Any:
        self._reads.note("rows", indices)
        return self._rows[indices]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)


@contextmanager
def recorded() -> Iterator[Reads]:
    """Record what trainings in the body read."""
    reads, patch = Reads(), pytest.MonkeyPatch()

    def before(module: Any, name: str, noted: Callable[..., None]) -> None:
        function = getattr(module, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            noted(*arguments, **options)
            return function(*arguments, **options)

        patch.setattr(module, name, noting)

    def judged(network: Any, batches: Any, *_: Any) -> None:
        reads.scored += 1
        reads.note("result", batches.indices)

    for module, name in product((single_run, resume), ("decode_and_split", "replace_images_by_patches")):
        patch.setattr(module, name, _then(getattr(module, name), reads.of_parts))
    before(parts_module, "measure_statistics", lambda rows, indices: reads.note("statistics", indices))
    before(training_loop, "take_step", lambda network, optimizer, batch, *_: reads.note("fit", batch.indices))
    before(run_recorder, "evaluate_network", lambda network, batches, *_: reads.note("choice", batches.indices))
    before(resume, "prepare_evaluation_network_and_batches", lambda *_: setattr(reads, "at_the_end", True))
    before(resume, "evaluate_network", judged)
    try:
        yield reads
    finally:
        patch.undo()


def _then(function: Callable[..., DataSplits], more: Callable[[DataSplits], DataSplits]) -> Callable[..., DataSplits]:
    return lambda *arguments, **options: more(function(*arguments, **options))


def check(reads: Reads, *, fitted: bool = True) -> None:
    """Fail if what was read for one purpose was read for another that excludes it."""
    held = reads.contents
    assert reads.scored == 1
    assert held["result"]
    assert held["statistics"]
    assert bool(held["fit"]) is fitted
    for purpose in ("rows", "statistics", "fit", "choice"):
        assert not held["result"] & held[purpose], purpose
    assert held["choice"]
    assert not held["choice"] & (held["fit"] | held["statistics"])
    assert held["fit"] <= held["statistics"]


def in_parts(source: Path, target: Path, *, overlapping: bool = False) -> Path:
    """The images in train, val and test; `overlapping`: some of test, and of val, are in train, too."""
    for number, path in enumerate(sorted(source.rglob("*.png"))):
        parts = [("train", "train", "val", "test")[number % 4]]
        if overlapping and number % 5 == 0:
            parts.append("train")
        for part in parts:
            place = target / part / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return target


def flat(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return source, {"test": 0.3}


def parted(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return in_parts(source, work / "parts"), {}


def overlapping(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return in_parts(source, work / "parts", overlapping=True), {}


def with_near_copies(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    whole = Path(shutil.copytree(source, work / "copies"))
    for path in sorted(whole.rglob("*.png"))[::4]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    return whole, {"test": 0.3}


def table(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    paths = sorted(source.rglob("*.png"))
    parts = [("train", "train", "val", "test")[number % 4] for number in range(len(paths))]
    rows = [f"{path},{path.parent.name},{part}" for path, part in zip(paths, parts, strict=True)]
    (work / "rows.csv").write_text("path,label,part\n" + "\n".join(rows) + "\n")
    return work / "rows.csv", {}


def grouped_table(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    rows = [f"{path},{path.parent.name},p{int(path.stem) % 12}" for path in sorted(source.rglob("*.png"))]
    (work / "rows.csv").write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    return work / "rows.csv", {"test": 0.3, "val": 0.2}


def grouped_names(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return source, {"test": 0.3, "group": "[0-9](?=.png)"}


def searched_rate(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return source, {"test": 0.3, "lr": "find"}


def published(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    return "digits", {"epochs": 1}


def frozen(source: Path, work: Path) -> tuple[Path | str, dict[str, Any]]:
    run = svertka.train("digits", output=work / "first", **QUICK)
    return source, {"test": 0.3, "weights": run, "unfreeze": "head", "model": None, "size": None}


Case = Callable[[Path, Path], tuple[Path | str, dict[str, Any]]]
CASES: list[Case] = [flat, parted, overlapping, with_near_copies, table, grouped_table, grouped_names]
CASES += [searched_rate, published, frozen]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", CASES, ids=lambda one: one.__name__)
def test_val_is_never_trained_on_and_test_is_scored_once(
    case: Case, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The heads of cross-validation, which leave no trace in the network, are trained on val.
    monkeypatch.setattr(resume, "why_not_cross_validated", lambda *_, **__: "")
    source, changes = case(digit_folder, tmp_path)
    with recorded() as reads:
        run = svertka.train(source, output=tmp_path / "run", **QUICK | changes)
    check(reads)
    assert run.result()["test_error"] is not None
    assert len(reads.contents["result"]) <= run.settings()["parts"]["test"]


def test_copies_in_several_parts_are_said_everywhere(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = overlapping(digit_folder, tmp_path)
    options = ["--model", "mlp", "--size", "8", "--epochs", "1", "--threads", "1", "--output"]
    assert main(["train", str(source), *options, str(tmp_path / "told"), "--json"]) == 0
    printed = capsys.readouterr()
    said = [one for one in json.loads(printed.out)["warnings"] if "test images" in one]
    assert re.fullmatch(
        r"12 of 60 test images \(20.0 %\) are copies of training images .*: .*, .*, .* and 9 more", said[0]
    )
    run = Run(tmp_path / "told")
    assert said[0] in run.settings()["account"]["warnings"]
    assert said[0] in printed.err
    assert "12 of 60 test images (20.0 %) are copies" in run.report.read_text()
    assert [line["sentence"] for line in run.history() if line["kind"] == "health"][:1] != []
    assert main(["train", str(source), *options, str(tmp_path / "again")]) == 0
    assert f"warning: {said[0]}" in capsys.readouterr().out


@pytest.mark.usefixtures("quiet")
def test_every_repeat_keeps_its_own_test_images_apart(digit_folder: Path, tmp_path: Path) -> None:
    train, held = repeated_splits.train_run, []

    def recording(*arguments: Any, **options: Any) -> Run:
        with recorded() as reads:
            run = train(*arguments, **options)
        check(reads)
        held.append(frozenset(reads.contents["result"]))
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated_splits, "train_run", recording)
        svertka.train(digit_folder, repeats=3, output=tmp_path / "runs", test=0.3, **QUICK)
    assert len(set(held)) == 3


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", [flat, overlapping, grouped_table], ids=lambda one: one.__name__)
def test_a_resumed_run_keeps_them_apart(
    case: Case, digit_folder: Path, tmp_path: Path, stop_at: Callable[[pytest.MonkeyPatch, int], None]
) -> None:
    source, changes = case(digit_folder, tmp_path)
    with recorded() as before, pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            svertka.train(source, output=tmp_path / "run", **QUICK | changes)
    with recorded() as after:
        svertka.resume(tmp_path / "run")
    assert not before.scored
    for purpose, contents in before.contents.items():
        after.contents[purpose] |= contents
    check(after)


@pytest.mark.usefixtures("quiet")
def test_patches_of_one_image_are_not_on_both_sides(digit_folder: Path, tmp_path: Path) -> None:
    rows = ["path,label,xmin,ymin,xmax,ymax"]
    for name in ("one", "two"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for number, path in enumerate(sorted((digit_folder / name).iterdir())[:24]):
            canvas = Image.new("L", (48, 40), 60)
            left, top = 3 * (number % 8), 4 * (number % 5)
            with Image.open(path) as digit:
                canvas.paste(digit.resize((16, 16)), (left, top))
            canvas.save(tmp_path / "scenes" / name / f"{name}-{number}.png")
            rows.append(f"{name}-{number}.png,{name},{left},{top},{left + 16},{top + 16}")
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    options: dict[str, Any] = {"size": 16, "epochs": 1, "batch_size": 64, "threads": 1}
    backbone = svertka.train(digit_folder, model="mlp", output=tmp_path / "backbone", **(options | {"epochs": 0.2}))
    with recorded() as reads:
        run = svertka.train(
            tmp_path / "scenes",
            weights=backbone,
            boxes=tmp_path / "boxes.csv",
            test=0.3,
            val=0.2,
            output=tmp_path / "run",
            **options,
        )
    check(reads)
    judgement = svertka.locate(run, tmp_path / "scenes", boxes=tmp_path / "boxes.csv").judgement
    assert judgement is not None
    assert judgement["training_images"] == 48 - judgement["judged"] == len(reads.contents["statistics"])
    assert judgement["part"] == "held-out"


@pytest.mark.large  # two processes split the images as one does: test_two_processes_compute_what_one_does
def test_two_processes_keep_them_apart(digit_folder: Path, tmp_path: Path) -> None:
    source, _ = overlapping(digit_folder, tmp_path)
    process = start_torchrun(__file__, str(source), str(tmp_path))
    _, stderr = wait_for_end(process)
    assert process.returncode == 0, stderr
    both = Reads()
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        both.scored = told.pop("scored")
        for purpose, contents in told.items():
            both.contents[purpose] |= set(contents)
    check(both)


def leaks() -> dict[str, tuple[Any, str, Callable[[Any], Any]]]:
    """Mistakes that a change could make: what is replaced, and by what, given what it was."""

    def everything(parts: DataSplits) -> Ints:
        return np.concatenate(list(parts.indices.values()))

    def with_test(train: Any) -> Any:
        return lambda self, *a, **k: train(replace(self, indices=self.indices | {"train": everything(self)}), *a, **k)

    def val_is_test(batches: Any) -> Any:
        return lambda self, part, *a: batches(self, "test" if part == "val" else part, *a)

    def of_all(measured: Any) -> Any:
        return lambda parts, *a: measured(replace(parts, indices=parts.indices | {"train": everything(parts)}), *a)

    return {
        "fit": (DataSplits, "training_batches", with_test),
        "choice": (DataSplits, "eval_batches", val_is_test),
        "statistics": (single_run, "add_training_statistics", of_all),
    }


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("purpose", ["fit", "choice", "statistics"])
def test_such_a_mistake_would_be_seen(
    purpose: str, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, mistaken = leaks()[purpose]
    monkeypatch.setattr(where, name, mistaken(getattr(where, name)))
    with recorded() as reads:
        svertka.train(digit_folder, output=tmp_path / "run", test=0.3, **QUICK)
    assert reads.contents["result"] & reads.contents[purpose]
    with pytest.raises(AssertionError):
        check(reads)


if __name__ == "__main__":
    from svertka import distributed

    with recorded() as record:
        svertka.train(sys.argv[1], output=Path(sys.argv[2]) / "run", **QUICK)
    told = {name: sorted(contents) for name, contents in record.contents.items()} | {"scored": record.scored}
    (Path(sys.argv[2]) / f"{distributed.rank()}.json").write_text(json.dumps(told))
