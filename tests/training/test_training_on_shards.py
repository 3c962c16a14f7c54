"""Training, evaluation and prediction on shards: the numbers of the same images in a folder, and an exact resume."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest

import svertka
from svertka.cli.app import main
from svertka.curation.dataset_check import check
from svertka.data.shard import shard
from svertka.data.sharded_images import ShardImages
from svertka.errors import DataError, RunError, UsageError
from svertka.run import Run
from svertka.signals import Stopped
from svertka.training import data_splits, run_recorder, training_loop

OPTIONS = {"model": "mlp", "size": 8, "epochs": 2, "batch_size": 16, "threads": 1}


@pytest.fixture(scope="module")
def shards(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "digits"
    shard(digit_folder, folder, val=0.2, test=0.2, shard_size=0.05, threads=1)
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return svertka.train(shards, output=tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def losses(run: Run) -> list[tuple[int, float]]:
    rows = map(json.loads, run.metrics.read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row and "step" in row]


def test_the_parts_of_the_shards_are_trained_on(shards: Path, run: Run, digit_folder: Path) -> None:
    assert run.settings()["source"] == str(shards)
    assert sum(run.settings()["parts"].values()) == 240
    manifest = svertka.evaluate(run, shards, threads=1)
    assert manifest.scope.part == "test"
    assert manifest.images == run.settings()["parts"]["test"]
    assert manifest.top1_error == run.result()["test_error"]
    # The files of the folder are recognized by content.
    assert svertka.evaluate(run, digit_folder, threads=1).images == manifest.images


def test_a_training_interrupted_within_an_epoch_continues_bit_for_bit(
    shards: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    read: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(run_recorder.Recorder, "wants_stop", lambda self: calls.append(1) or len(calls) == 13)
        with pytest.raises(svertka.SvertkaError, match="continue with"):
            svertka.train(shards, output=tmp_path / "run", **OPTIONS)
    step = training_loop.take_step
    monkeypatch.setattr(training_loop, "take_step", lambda *arguments: read.append(1) or step(*arguments))
    resumed = svertka.resume(tmp_path / "run")
    assert len(calls) == 13
    assert len(read) == 2 * 9 - 13  # it goes on at step 13, the fifth of the second epoch
    weights, wanted = (one.classifier().network.state_dict() for one in (resumed, run))
    assert all((weights[name] == wanted[name]).all() for name in wanted)
    assert resumed.result()["test_error"] == run.result()["test_error"]


def test_a_training_of_other_shards_is_not_continued(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_folder: Path
) -> None:
    def interrupted(*arguments: object) -> object:
        raise Stopped(2)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "take_step", interrupted)
        with pytest.raises(svertka.SvertkaError, match="continue with"):
            svertka.train(shards, output=tmp_path / "run", **OPTIONS)
    shard(digit_folder, tmp_path / "others", val=0.3, test=0.2, threads=1)
    with pytest.raises(RunError, match="are not those that .* was started with"):
        svertka.resume(tmp_path / "run", tmp_path / "others")


def test_nothing_is_decoded_twice_before_the_first_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit for exact splits, a training begins after its sample and its first batches."""
    monkeypatch.setattr(data_splits, "MOST", 100)
    monkeypatch.setattr(data_splits, "MEASURED", 20)
    reads: list[int] = []
    decode = ShardImages.decode

    def counted(self: ShardImages, index: int, *rest: object) -> object:
        reads.append(index)
        return decode(self, index, *rest)

    monkeypatch.setattr(ShardImages, "decode", counted)

    def first(*arguments: object) -> object:
        raise Stopped(2)

    monkeypatch.setattr(training_loop, "take_step", first)
    with pytest.raises(svertka.SvertkaError, match="continue with"):
        svertka.train(shards, output=tmp_path / "run", **OPTIONS | {"batch_size": 8})
    assert len(set(reads)) < 144  # the training images


def test_predict_and_check_read_shards(shards: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = svertka.predict(run, str(shards / "test-000000.tar"), threads=1)
    assert len(predictions) > 5
    assert predictions[0]["path"].endswith("test-000000.tar#0")
    assert all(one["labels"] for one in predictions)
    findings = check(shards)
    assert sum(findings.classes.values()) == 240
    assert {part: sum(counts.values()) for part, counts in findings.split.items()} == run.settings()["parts"]


def test_similar_finds_an_image_in_shards(shards: Path, run: Run, digit_folder: Path) -> None:
    found = svertka.similar(run, digit_folder / "two" / "07.png", shards, threads=1)
    content = (digit_folder / "two" / "07.png").read_bytes()
    assert content in (shards / found.copies[0].partition(": ")[0].rpartition("/")[2]).read_bytes()


def test_suggest_reads_shards(shards: Path, run: Run, tmp_path: Path) -> None:
    run.classifier().save(tmp_path / "saved")  # does not know its training images
    found = svertka.suggest(tmp_path / "saved", shards, count=3, threads=1)
    assert len({one.path for one in found.suggestions}) == 3
    assert all(".tar: " in one.path for one in found.suggestions)


def test_too_many_images_are_not_checked(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svertka.curation.dataset_check.MOST", 100)
    with pytest.raises(UsageError, match="has 240 images, and check compares up to 100; add --fast, or name some"):
        check(shards)
    assert sum(check(shards, fast=True).classes.values()) == 240


def test_the_command_writes_shards_and_trains_on_them(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shard", str(digit_folder), "--to", str(tmp_path / "s"), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["test"] == 0
    assert main(["shard", str(digit_folder), "--to", str(tmp_path / "s"), "--threads", "1"]) == 0
    assert re.search(r"2 shards, .* 4 classes; train \d+, val \d+", capsys.readouterr().out)


def test_a_run_folder_is_named_after_the_shards(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = svertka.train(f"{shards}/train-{{000000..000001}}.tar", **OPTIONS | {"epochs": 0.2})
    assert found.folder == Path("runs/train-mlp")


def test_an_image_that_cannot_be_read_ends_the_training_with_a_sentence(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = Path(shutil.copytree(shards, tmp_path / "set"))
    path = folder / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match="another content at byte .* than its index says"):
        svertka.train(folder, output=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_every_command_reads_the_shards_of_others(
    digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers as labels, PNG, and the names in a file that only the command line names."""
    folder, names = tmp_path / "others", sorted(path.name for path in digit_folder.iterdir())
    folder.mkdir()
    for part, numbers in (("train", range(16)), ("val", range(16, 20))):
        with tarfile.open(folder / f"set-{part}-0000.tar", "w") as archive:
            for label, name in enumerate(names):
                for path in [sorted((digit_folder / name).iterdir())[number] for number in numbers]:
                    archive.add(path, f"{name}_{path.stem}.png")
                    header = tarfile.TarInfo(f"{name}_{path.stem}.cls")
                    header.size = 1
                    archive.addfile(header, io.BytesIO(str(label).encode()))
    (tmp_path / "names.txt").write_text("\n".join(names))
    given = ["--names", str(tmp_path / "names.txt"), "--threads", "1"]
    options = ["--model", "mlp", "--size", "8", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert main(["train", str(folder), *given, *options]) == 0
    run = Run(tmp_path / "run")
    assert run.classifier().names == tuple(names)
    assert run.settings()["names"] == names
    assert run.settings()["parts"] == {"train": 64, "val": 16, "test": 0}
    whole = svertka.evaluate(run, folder, threads=1)  # with the names of the training
    assert (whole.images, whole.top1_error) == (16, run.result()["val_error"])
    alone = folder / "set-val-0000.tar"
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), str(alone), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 16
    assert main(["check", str(folder), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == dict.fromkeys(names, 20)
    assert main(["predict", str(run.folder), str(alone), "--threads", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 16
