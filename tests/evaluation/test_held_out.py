"""What a run was trained on never judges it, wherever the images are now and whatever they are called."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.data import deduplicated_split
from svertka.data.hash_split import split_by_hash
from svertka.data.source_opener import open_source
from svertka.data.split_manifest import Manifest
from svertka.errors import RunError, UsageError
from svertka.evaluation.evaluate import evaluate_jointly
from svertka.evaluation.evaluation_scope import EvaluationScope
from svertka.evaluation.held_out import TrainingImageFilter
from svertka.files import cache_folder
from svertka.run import Run

QUICK: dict[str, Any] = {"model": "mlp", "size": 8, "epochs": 2, "threads": 1}


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained_contents(source: Path, run: Run) -> tuple[set[str], set[str]]:
    """Contents that the training set and the part that was scored held, by an oracle that reads the run's manifest
    with the digests of the files, as they were when it was trained."""
    manifest = Manifest.read(run.manifest)
    by_part: dict[str, set[str]] = {}
    for path in source.rglob("*.png"):
        part = manifest.part_of(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
        by_part.setdefault(part, set()).add(content(path))
    return by_part["train"], by_part.get("test") or by_part["val"]


@pytest.fixture(scope="module")
def runs(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Run, float, set[str], set[str]]]:
    """Runs, the error that each reported, and the contents of its training set and of what it was scored on."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        svertka.train(digit_folder, output=folder / "plain", **QUICK),
        svertka.train(digit_folder, output=folder / "tested", test=0.3, **QUICK),
        *svertka.train(digit_folder, repeats=3, output=folder / "repeats", test=0.2, **QUICK).runs,
    ]
    found = []
    for run in made:
        result = run.result()
        error = result["val_error"] if result["test_error"] is None else result["test_error"]
        found.append((run, error, *trained_contents(digit_folder, run)))
    return found


def judged_contents(run: Run, source: Path, **options: Any) -> set[str]:
    joint = evaluate_jointly(run, source, threads=1, **options)
    return {content(Path(joint.dataset.images.name(i))) for i in joint.ensemble.indices.tolist()}


def dotted(source: Path, work: Path, random: np.random.Generator) -> Path:
    return source / ".." / source.name


def linked(source: Path, work: Path, random: np.random.Generator) -> Path:
    (work / "link").symlink_to(source)
    return work / "link"


def linked_one_by_one(source: Path, work: Path, random: np.random.Generator) -> Path:
    for path in source.rglob("*.png"):
        place = work / "links" / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        (os.link if random.random() < 0.5 else os.symlink)(path, place)
    return work / "links"


def relative(source: Path, work: Path, random: np.random.Generator) -> Path:
    return Path(os.path.relpath(source))


def copied(source: Path, work: Path, random: np.random.Generator) -> Path:
    return Path(shutil.copytree(source, work / "copy"))


def renamed(source: Path, work: Path, random: np.random.Generator) -> Path:
    whole = copied(source, work, random)
    for number, path in enumerate(sorted(whole.rglob("*.png"))):
        path.rename(path.with_name(f"{random.integers(10**9)}-{number}.png"))
    return whole


def nested(source: Path, work: Path, random: np.random.Generator) -> Path:
    whole = copied(source, work, random)
    for path in sorted(whole.rglob("*.png")):
        place = path.parent / f"of-{random.integers(4)}" / path.name
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    return whole


def in_parts(source: Path, work: Path, random: np.random.Generator) -> Path:
    """The images anew in train, val and test, by somebody who did not know how the run had divided them."""
    for path in source.rglob("*.png"):
        place = work / "parts" / random.choice(["train", "val", "test"]) / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return work / "parts"


def in_csv(source: Path, work: Path, random: np.random.Generator) -> Path:
    rows = [f"{path},{path.parent.name}" for path in source.rglob("*.png")]
    (work / "rows.csv").write_text("\n".join(["path,label", *random.permutation(rows)]) + "\n")
    return work / "rows.csv"


def twice(source: Path, work: Path, random: np.random.Generator) -> Path:
    whole = copied(source, work, random)
    for path in sorted(whole.rglob("*.png"))[::3]:
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    return whole


def some(source: Path, work: Path, random: np.random.Generator) -> Path:
    whole = copied(source, work, random)
    for path in sorted(whole.rglob("*.png")):
        if random.random() < 0.3:
            path.unlink()
    return whole


def with_new_ones(source: Path, work: Path, random: np.random.Generator) -> Path:
    whole = copied(source, work, random)
    for name in ("one", "three"):
        for number in range(5):
            pixels = random.integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(whole / name / f"new-{number}.png")
    return whole


SAME = [dotted, linked, linked_one_by_one, relative, copied, renamed, nested, in_csv]  # nothing is missing or new
OTHER = [in_parts, twice, some, with_new_ones]
Layout = Callable[[Path, Path, np.random.Generator], Path]


@pytest.mark.sample(3)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("layout", [*SAME, *OTHER], ids=lambda one: one.__name__)
def test_training_images_are_left_out(
    layout: Layout,
    runs: list[tuple[Run, float, set[str], set[str]]],
    digit_folder: Path,
    tmp_path: Path,
    large_count: Callable[[int, int], int],
) -> None:
    every = [*SAME, *OTHER].index(layout) % large_count(len(runs), 1)
    for number in range(large_count(1, 12)):
        work = tmp_path / str(number)
        work.mkdir()
        source = layout(digit_folder, work, np.random.default_rng(number))
        there = {content(path) for path in (digit_folder if layout is in_csv else source).rglob("*.png")}
        for run, error, learned, scored in runs[every :: large_count(len(runs) - 2, 1)]:
            for part in (None, "all"):
                judged = judged_contents(run, source, part=part)
                assert not judged & learned
                assert judged >= scored & there or layout is in_parts
            if layout in SAME:
                judged_by_own = svertka.evaluate(run, source, threads=1)
                assert judged_by_own.top1_error == error
            everything = evaluate_jointly(run, source, threads=1, part="all", include_training=True).ensemble
            assert everything.scope is not None
            assert everything.scope.includes_training
            assert judged_contents(run, source, part="all", include_training=True) == there


@pytest.mark.usefixtures("quiet")
def test_new_images_are_evaluated_and_counted(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    source = with_new_ones(digit_folder, tmp_path, np.random.default_rng(0))
    run, _, learned, scored = runs[1]
    scope = svertka.evaluate(run, source, threads=1).scope
    assert scope is not None
    assert (scope.part, scope.training_images, scope.includes_training) == ("held-out", len(learned), False)
    assert f"held-out images; {len(learned)} images that trained the network left out" in scope.sentence
    assert len(judged_contents(run, source)) == len(scored) + 10
    for path in source.rglob("[0-9]*.png"):
        path.unlink()
    for name in ("one", "three"):
        shutil.copy(next(p for p in (digit_folder / name).iterdir() if content(p) in learned), source / name)
    only_new = svertka.evaluate(run, source, threads=1)
    assert only_new.images == 10
    assert only_new.scope is not None
    assert (only_new.scope.part, only_new.scope.training_images) == ("new", 2)
    assert svertka.evaluate(run, source, threads=1, include_training=True).images == 12


@pytest.mark.usefixtures("quiet")
def test_near_duplicates_of_training_images_are_counted(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            small = Image.fromarray(draws.integers(0, 255, (6, 6, 3), np.uint8))
            small.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photos" / name / f"{number}.png")
    run = svertka.train(tmp_path / "photos", output=tmp_path / "run", **QUICK)
    learned, _ = trained_contents(tmp_path / "photos", run)
    for path in (tmp_path / "photos").rglob("*.png"):
        if content(path) in learned and path.stem in ("1", "2", "3"):
            place = tmp_path / "anew" / path.parent.name / f"{path.stem}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(place, quality=60)
    scope = svertka.evaluate(run, tmp_path / "anew", threads=1).scope
    assert scope is not None
    saved = len(list((tmp_path / "anew").rglob("*.jpg")))
    assert (scope.near_duplicates, scope.training_images) == (saved, 0)
    assert f"{saved} images judged look the same as training images (near-duplicates)" in scope.sentence
    assert scope.note is None
    shutil.rmtree(cache_folder("thumbnails"))  # as on another machine
    scope = svertka.evaluate(run, tmp_path / "anew", threads=1).scope
    assert scope is not None
    assert scope.near_duplicates is None
    assert f"{saved} images could not be compared with the training images of" in scope.sentence


@pytest.mark.usefixtures("quiet")
def test_runs_with_different_paths_to_one_source_are_compared(digit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(digit_folder)
    shutil.copytree(digit_folder, tmp_path / "copy")
    sources = {"a": digit_folder, "b": tmp_path / "link", "c": tmp_path / "copy"}
    made = [svertka.train(source, output=tmp_path / name, **QUICK).folder for name, source in sources.items()]
    compared = svertka.compare(made, threads=1)
    assert compared.joint.part == "val"
    assert compared.joint.scope.training_images == 216


@pytest.mark.usefixtures("quiet")
def test_only_training_images_is_an_error(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    run, _, learned, _ = runs[1]
    for path in digit_folder.rglob("*.png"):
        if content(path) in learned:
            (tmp_path / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "test" / path.parent.name)
    for part in (None, "test", "all"):
        with pytest.raises(UsageError, match=rf"no new image for .*: {len(learned)} images trained the network; name"):
            svertka.evaluate(run, tmp_path, part=part, threads=1)
    judged = svertka.evaluate(run, tmp_path, part="test", include_training=True, threads=1)
    assert judged.images == len(learned)
    assert judged.to_dict()["training_images"] == len(learned)


@pytest.mark.usefixtures("quiet")
def test_training_images_of_initial_weights_are_left_out(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    first, _, learned, _ = runs[2]
    options = QUICK | {"weights": first, "unfreeze": "all", "test": 0.3, "split_seed": 7}
    second = svertka.train(digit_folder, output=tmp_path / "second", **options)
    assert not judged_contents(second, digit_folder) & learned
    inherited = Manifest.read(second.manifest).inherited
    assert inherited == Manifest.read(first.manifest).trained_on
    shutil.copytree(digit_folder, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        if content(path) not in learned:
            path.unlink()
    with pytest.raises(UsageError, match="images trained the network"):
        svertka.evaluate(second, tmp_path / "copy", threads=1)


@pytest.mark.usefixtures("quiet")
def test_runs_without_manifest_are_split_again_or_refused(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as they were split
        patch.setattr(
            deduplicated_split, "split_by_hash", lambda *given, stratified, **named: split_by_hash(*given, **named)
        )
        runs = svertka.train(digit_folder, repeats=2, output=tmp_path / "runs", test=0.2, **QUICK).runs
    for old in runs:
        learned, _ = trained_contents(digit_folder, old)
        old.manifest.unlink()
        assert svertka.evaluate(old, digit_folder, threads=1).top1_error == old.result()["test_error"]
        assert not judged_contents(old, digit_folder, part="all") & learned
    source = copied(digit_folder, tmp_path, np.random.default_rng(0))
    next(source.rglob("*.png")).unlink()
    scope = svertka.evaluate(old, source, threads=1).scope
    assert scope is not None
    assert scope.note is not None
    assert "does not record which images it was trained on; if some of these are among them" in scope.note
    settings = json.loads(old.training.read_text()) | {"source": str(source)}
    old.training.write_text(json.dumps(settings))
    with pytest.raises(RunError, match="does not record which images .* and .*copy has changed since"):
        svertka.evaluate(old, source, threads=1)
    old.manifest.write_bytes(b"no")
    with pytest.raises(RunError, match="manifest.safetensors is damaged"):
        svertka.evaluate(old, source, threads=1)


@pytest.mark.usefixtures("quiet")
def test_comparison_leaves_out_training_images_of_all_runs(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path
) -> None:
    (one, _, learned, _), (other, _, also_learnt, _) = runs[2], runs[3]
    with pytest.raises(
        UsageError, match="were trained on different parts of .*leaves out the training images of all of them"
    ):
        svertka.compare([one, other], digit_folder, threads=1)
    compared = svertka.compare([one, other], digit_folder, part="all", threads=1)
    pictures, judged = compared.joint.dataset.images, compared.ensemble.indices.tolist()
    assert not {content(Path(pictures.name(i))) for i in judged} & (learned | also_learnt)
    assert compared.to_dict()["training_images"] == len(learned | also_learnt)
    assert f"{len(learned | also_learnt)} images that trained the network left out" in compared.joint.scope.sentence


@pytest.mark.usefixtures("quiet")
def test_atlas_shows_held_out_images_or_all_of_a_source(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    import torch

    from svertka.inspection.atlas.classifier_and_images import open_atlas_inputs

    run, _, _, scored = runs[3]
    options: dict[str, Any] = {"images": None, "device": torch.device("cpu"), "threads": 1, "cache_limit": None}
    copy = copied(digit_folder, tmp_path, np.random.default_rng(0))
    everything = {content(path) for path in copy.rglob("*") if path.is_file()}
    for source, part, wanted in ((None, None, scored), (copy, None, everything), (copy, "test", scored)):
        subject = open_atlas_inputs(run, source, part=part, **options)
        shown = {content(Path(subject.dataset.images.name(i))) for i in range(len(subject))}
        assert shown == wanted


@pytest.mark.usefixtures("quiet")
def test_single_images_are_filtered_by_content(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    run, _, learned, scored = runs[1]
    for number, path in enumerate(sorted(digit_folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{number}.png")
    admission = TrainingImageFilter(run, include_training=False)
    admitted = {content(path) for path in tmp_path.iterdir() if admission.is_allowed(path)}
    assert not admitted & learned
    assert admitted >= scored
    assert admission.scope("x").training_images == len(learned)
    everything = TrainingImageFilter(run, include_training=True)
    assert all(everything.is_allowed(path) for path in tmp_path.iterdir())
    assert everything.scope("x").includes_training
    assert TrainingImageFilter(Classifier.load(run), include_training=False).is_allowed(next(tmp_path.iterdir()))


@pytest.mark.usefixtures("quiet")
def test_arrays_are_recognized_by_their_pixels(tmp_path: Path) -> None:
    run = svertka.train("digits", model="mlp", epochs=1, output=tmp_path / "run", threads=1)
    dataset = open_source("digits")
    array = dataset.images.array  # type: ignore[attr-defined]
    admission = TrainingImageFilter(run, include_training=False)
    admitted = sum(admission.is_allowed(one) for one in array)
    sizes = run.settings()["parts"]
    assert admitted == sizes["val"] + sizes["test"]


def test_commands_print_the_part_and_what_is_left_out(
    runs: list[tuple[Run, float, set[str], set[str]]],
    digit_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _, learned, _ = runs[0]
    alone = tmp_path / "alone"
    Classifier.load(run).save(alone)
    source = str(copied(digit_folder, tmp_path, np.random.default_rng(0)))
    assert main(["evaluate", str(run.folder), source, "--threads", "1"]) == 0
    assert f"validation images; {len(learned)} images that trained the network left out" in capsys.readouterr().out
    assert main(["evaluate", str(run.folder), source, "--threads", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["part"], said["training_images"], said["includes_training"]) == ("val", len(learned), False)
    assert main(["evaluate", str(run.folder), source, "--threads", "1", "--json", "--include-training"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["part"], said["images"], said["includes_training"]) == ("all", 240, True)
    assert main(["evaluate", str(alone), source, "--threads", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "does not record which images it was trained on" in said["note"]


def test_copies_among_evaluated_images_are_counted(
    runs: list[tuple[Run, float, set[str], set[str]]], digit_folder: Path, tmp_path: Path
) -> None:
    run = runs[0][0]
    once = svertka.evaluate(run, digit_folder, threads=1)
    for part in ("train", "test"):
        shutil.copytree(digit_folder, tmp_path / part)
    twice = svertka.evaluate(run, tmp_path, part="val", threads=1)
    assert once.scope is not None
    assert twice.scope is not None
    assert (once.scope.copies, twice.scope.copies, twice.images) == (0, once.images, 2 * once.images)
    assert f"{once.images} images judged are copies of others judged" in twice.scope.sentence
    both = EvaluationScope("photos", "test", training_images=3, includes_training=True)
    assert both.sentence.startswith("judged: photos, test and training images; 3 of these trained the network")


@pytest.mark.usefixtures("quiet")
def test_other_16_bit_intensity_ranges_are_reported(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for bits, scale, dtype in ((8, 1, np.uint8), (12, 16, np.uint16), (16, 257, np.uint16)):
        for name in ("a", "b"):
            (tmp_path / str(bits) / name).mkdir(parents=True)
            for number in range(8):
                pixels = draws.integers(0, 256, (24, 24)) * scale
                Image.fromarray(pixels.astype(dtype)).save(tmp_path / str(bits) / name / f"{number}.png")
    runs = {bits: svertka.train(tmp_path / str(bits), output=tmp_path / f"run{bits}", **QUICK) for bits in (8, 12)}

    def said(trained: int, judged: int) -> str:
        scope = svertka.evaluate(runs[trained], tmp_path / str(judged), threads=1).scope
        assert scope is not None
        return scope.note or ""

    assert said(8, 12).startswith("16 images judged have 16 bits and use values of 0 to 4,095, while to the network")
    assert "0 is black and 4,095 is white" in said(12, 16)
    assert said(12, 12) == said(8, 16) == said(8, 8) == ""


def test_one_copy_and_one_near_duplicate_are_told_in_the_singular() -> None:
    sentence = EvaluationScope("photos", "new", near_duplicates=1, copies=1).sentence
    assert "1 image judged looks the same as training images" in sentence
    assert "1 image judged is a copy of another judged" in sentence
