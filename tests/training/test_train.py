"""Whole trainings on real digits: what they leave, and that stopping and going on changes nothing."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import svertka
from svertka.errors import DataError, Interrupted, RunError, StorageError, SvertkaError, TrainingError, UsageError
from svertka.models.registry import MODELS
from svertka.run import Run
from svertka.training import time_estimate

SMALL: dict[str, Any] = {"model": "resnet20", "size": 8, "epochs": 2, "batch_size": 32, "threads": 1}
STEPS = 7  # an epoch of 216 pictures in batches of 32


@pytest.fixture(scope="module")
def finished(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return svertka.train(digit_folder, output=tmp_path_factory.mktemp("runs") / "run", test=0.2, **SMALL)


def test_a_run_holds_what_the_design_says(finished: Run) -> None:
    assert {path.name for path in finished.folder.iterdir()} == {
        *("config.json", "training.json", "model.safetensors", "checkpoint", "metrics.jsonl", "report.html"),
        "manifest.safetensors",
        "calibration.safetensors",
    }
    result = finished.result()
    assert set(result) == {
        "run",
        "val_error",
        "test_error",
        "epochs",
        "seconds",
        "images_per_second",
        "never_predicted",
        "at_chance",
        "part",
        "images",
    }
    assert 0 <= result["val_error"] <= 1
    assert 0 <= result["test_error"] <= 1
    assert result["epochs"] == 2
    kinds = [entry["kind"] for entry in finished.history()]
    assert kinds.count("epoch") == 2
    assert "step" in kinds
    assert kinds[-1] == "result"


def test_the_result_is_what_evaluate_says(finished: Run, digit_folder: Path) -> None:
    for part, key in (("val", "val_error"), ("test", "test_error"), (None, "test_error")):
        judged = svertka.evaluate(finished, digit_folder, part=part)
        assert judged.top1_error == finished.result()[key]
    everything = svertka.evaluate(finished, digit_folder, part="all", include_training=True)
    assert everything.images == 240


# The first four hold every pair of settings.
RESUMED = [
    (optimizer, prefetch, (optimizer == "adamw") ^ prefetch ^ odd)
    for odd in (False, True)
    for optimizer in ("sgd", "adamw")
    for prefetch in (True, False)
]


AUGMENTED = {"auto_augment": "rand", "random_erasing": 0.3, "mixup": 0.3, "cutmix": 1.0, "ema": 0.9}


@pytest.mark.sample(3)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("optimizer", "prefetch", "augment"), RESUMED)
def test_a_resume_is_bit_for_bit(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_count: Callable[[int, int], int],
    optimizer: str,
    prefetch: bool,
    augment: bool,
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
    digest: Callable[[Run], str],
) -> None:
    if (optimizer, prefetch, augment) not in RESUMED[: large_count(4, len(RESUMED))]:
        pytest.skip("all settings: make test-full")
    rate = 0.05 if optimizer == "sgd" else 0.001
    options = SMALL | {"optimizer": optimizer, "prefetch": prefetch, "augment": augment, "lr": rate}
    options |= AUGMENTED if augment else {}
    uninterrupted = svertka.train(digit_folder, output=tmp_path / "whole", **options)
    whole = digest(uninterrupted)
    steps = (3, STEPS, STEPS + 2)  # in the middle of an epoch, at its end, in the middle of the last
    for step in steps if large_count(0, 1) else [steps[RESUMED.index((optimizer, prefetch, augment)) % 3]]:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted, match=rf"step {step} .*svertka train --resume {tmp_path}/{step}"):
                svertka.train(digit_folder, output=tmp_path / str(step), **options)
        resumed = svertka.resume(tmp_path / str(step))
        assert digest(resumed) == whole
        lines = [entry for entry in resumed.history() if entry["kind"] == "epoch"]
        assert [line["epoch"] for line in lines] == [1, 2]
        for key in ("train_loss", "train_error", "val_loss", "val_error"):
            expected = [entry[key] for entry in uninterrupted.history() if entry["kind"] == "epoch"]
            assert [line[key] for line in lines] == expected


@pytest.mark.usefixtures("quiet")
def test_accumulation_changes_only_the_rounding(digit_folder: Path, tmp_path: Path) -> None:
    options = SMALL | {"model": "mlp", "epochs": 1}
    errors = []
    for parts in (1, 4):
        run = svertka.train(digit_folder, output=tmp_path / str(parts), accumulate=parts, **options)
        errors.append(next(entry["train_loss"] for entry in run.history() if entry["kind"] == "epoch"))
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


def test_a_resume_of_a_finished_run_changes_nothing(finished: Run, digest: Callable[[Run], str]) -> None:
    before = digest(finished)
    result = finished.result()
    assert digest(svertka.resume(finished)) == before
    assert finished.result() == result


def test_divergence_names_the_steps_and_keeps_weights(digit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged: the loss .* between steps 0 and 7.*--lr 1e\+04") as caught:
        svertka.train(digit_folder, output=tmp_path / "run", lr=1e5, **(SMALL | {"model": "mlp", "warmup": 0}))
    assert "\n" not in str(caught.value)
    assert svertka.Classifier.load(tmp_path / "run").names == ("four", "one", "three", "two")
    run = Run(tmp_path / "run")
    assert run.history()[-1]["finding"] == "diverged"
    assert "training diverged" in run.report.read_text()


def test_lr_find_and_time_end_up_in_the_settings(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float] = []

    def count_epochs(budget: float, spent: float, around: float, one_epoch: float) -> float:
        budgets.append(budget)  # of which a busy machine would leave nothing
        assert min(spent, around, one_epoch) > 0
        return 2.5

    monkeypatch.setattr(time_estimate, "count_epochs_within_time", count_epochs)
    options = SMALL | {"model": "mlp", "lr": "find", "time": "3s"}
    del options["epochs"]
    run = svertka.train(digit_folder, output=tmp_path / "run", **options)
    recipe = run.settings()["recipe"]
    assert 1e-4 < recipe["lr"] < 5
    assert run.history()[0]["kind"] == "range_test"
    assert budgets == [3]
    assert recipe["epochs"] == 2.5


def test_early_stop_and_class_weights(digit_folder: Path, tmp_path: Path) -> None:
    options = SMALL | {"model": "mlp", "epochs": 60, "lr": 1e-6, "early_stop": 2, "class_weights": True}
    run = svertka.train(digit_folder, output=tmp_path / "run", **options)
    assert run.result()["epochs"] < 60


def test_without_val_the_last_weights_are_kept(digit_folder: Path, tmp_path: Path) -> None:
    run = svertka.train(digit_folder, output=tmp_path / "run", val=0, **SMALL)
    assert run.result()["val_error"] is None
    assert run.settings()["parts"]["val"] == 0


def test_bad_pictures_are_left_out_by_name_and_too_many_stop(digit_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(digit_folder, folder)
    (folder / "one" / "00.png").write_bytes((folder / "one" / "00.png").read_bytes()[:60])
    (folder / "two" / "01.png").write_bytes(b"")
    run = svertka.train(folder, output=tmp_path / "run", **SMALL)
    bad = {Path(one["path"]).name: one["reason"] for one in run.settings()["bad"]}
    assert set(bad) == {"00.png", "01.png"}
    assert sum(run.settings()["parts"].values()) == 238

    for number in range(30):
        (folder / "three" / f"{number:02}.png").write_bytes(b"not an image")
    with pytest.raises(
        DataError,
        match=r"32 of 240 images in .* cannot be read, more than a tenth: .*three/00.png"
        r".* 29 more; fix or remove them$",
    ):
        svertka.train(folder, output=tmp_path / "other", **SMALL)
    assert not (tmp_path / "other").exists()


def test_changed_pictures_stop_a_resume(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(digit_folder, folder)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            svertka.train(folder, output=tmp_path / "run", **SMALL)
    (folder / "one" / "00.png").unlink()
    with pytest.raises(RunError, match=r"are not those that .* was started with \(239 now, 240 then\)"):
        svertka.resume(tmp_path / "run")
    shutil.rmtree(folder)
    shutil.copytree(digit_folder, folder)
    (folder / "one").rename(folder / "1")
    with pytest.raises(RunError, match=r"\(240 now, 240 then; new classes: 1\)"):
        svertka.resume(tmp_path / "run")


def test_a_disk_that_fills_keeps_the_run(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    small_disk: Callable[[int], AbstractContextManager[None]], stop_at: Callable[[pytest.MonkeyPatch, int], None],
) -> None:  # fmt: skip
    options = SMALL | {"model": "mlp"}
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            svertka.train(digit_folder, output=tmp_path / "run", **options)
    with small_disk(20_000), pytest.raises(StorageError, match="free space or choose another folder"):
        svertka.resume(tmp_path / "run")
    assert svertka.resume(tmp_path / "run").result()["epochs"] == 2
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"model": "resnet21"}, UsageError, "model=resnet21 is not known; use .*resnet20"),
        ({"model": ""}, UsageError, "model= is not known; `svertka models` lists"),
        ({"recipe": "fast"}, UsageError, "recipe=fast is not known; use one of"),
        ({"lr": "high"}, UsageError, "lr=high is neither a number nor find"),
        ({"time": "soon"}, UsageError, "time=soon is not a length of time; write 90s, 10m or 1.5h"),
        ({"time": "0.01s"}, UsageError, "is too short"),
        ({"size": 4}, UsageError, "size=4 is too small for resnet20; use at least 8 pixels"),
        ({"batch_size": 1000}, UsageError, "batch_size=1000 exceeds the 216 images"),
        ({"device": "tpu"}, UsageError, "device=tpu is not on this machine; use auto or one of: cpu"),
        ({"threads": 0}, UsageError, "threads=0 must be at least 1"),
        ({"val": 0.7, "test": 0.5}, UsageError, "val=0.7 and test=0.5"),
        ({"output": "/proc/nowhere/run"}, StorageError, "make its folder or choose another$"),
        ({"output": "/tmp"}, UsageError, r"/tmp exists; choose another --output"),
        ({"early_stop": 0}, UsageError, "early_stop=0"),
        ({"color": "red"}, TypeError, "color"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    digit_folder: Path, tmp_path: Path, options: dict[str, Any], error: type[SvertkaError], sentence: str
) -> None:
    small = {name: value for name, value in SMALL.items() if "time" not in options or name != "epochs"}
    with pytest.raises(error, match=sentence) as caught:
        svertka.train(digit_folder, **({"output": tmp_path / "run"} | small | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


def test_a_default_batch_shrinks_to_the_data(digit_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            shutil.copy(digit_folder / name / f"{number:02}.png", folder / name)
    run = svertka.train(folder, output=tmp_path / "run", model="mlp", size=8, epochs=1)
    assert run.settings()["recipe"]["batch_size"] == run.settings()["parts"]["train"] < 12


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1}'])
@pytest.mark.parametrize("name", ["training.json", "config.json"])
def test_a_damaged_run_is_one_sentence(finished: Run, tmp_path: Path, name: str, damage: bytes) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    (copy / name).write_bytes(damage)
    sentence = "made by a newer svertka .format 99, this one reads [123].; upgrade" if b"99" in damage else "is damaged"
    with pytest.raises(RunError, match=sentence) as caught:
        svertka.resume(copy)
    assert "\n" not in str(caught.value)


def test_a_network_that_says_how_it_wants_its_input_gets_it(digit_folder: Path, tmp_path: Path) -> None:
    options = SMALL | {"model": "lenet5", "size": None, "lr": 0.001, "epochs": 0.1}
    run = svertka.train(digit_folder, output=tmp_path / "run", **options)
    blank = np.zeros((9, 9), np.uint8)
    values = run.classifier().preprocess(blank)
    assert values.shape == (1, 32, 32)
    assert values.numpy() == pytest.approx(-0.1, abs=1e-6)
    assert run.classifier().preprocess(blank + 255).amax().item() == pytest.approx(1.175, abs=1e-6)


# ---- started from weights


STILL: dict[str, Any] = SMALL | {"lr": 1e-12, "weight_decay": 1e-12, "epochs": 0.3}  # learns nothing that shows


def test_a_run_goes_on_in_another_with_more_classes(
    finished: Run, digit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(digit_folder, folder)
    (folder / "two").rename(folder / "zero")
    shutil.copytree(digit_folder / "two", folder / "five")
    options = {name: value for name, value in STILL.items() if name not in ("model", "size")}
    run = svertka.train(folder, weights=finished, output=tmp_path / "run", **options)
    said = capsys.readouterr().err
    assert f"weights  start from {finished.folder}" in said
    assert (
        "the head of 4 classes is replaced by one of 5; 3 of them keep the weights of the class of the same name"
        in said
    )
    assert run.settings()["weights"] == str(finished.folder)
    assert run.settings()["model"] == "resnet20"

    old, new = finished.classifier(), run.classifier()
    assert new.names == ("five", "four", "one", "three", "zero")
    assert new.preprocess == old.preprocess
    before, after = old.network.state_dict(), new.network.state_dict()
    for name, tensor in before.items():
        if "conv" in name:
            assert after[name].numpy() == pytest.approx(tensor.numpy(), abs=1e-6)
    for name in ("four", "one", "three"):
        row = after["linear.weight"][new.names.index(name)].numpy()
        assert row == pytest.approx(before["linear.weight"][old.names.index(name)].numpy(), abs=1e-6)


@pytest.mark.usefixtures("quiet")
def test_a_resume_does_not_need_the_weights_again(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
    digest: Callable[[Run], str],
) -> None:
    torch.manual_seed(7)
    file = tmp_path / "x.pth"
    torch.save(MODELS["resnet20"].build().state_dict(), file)
    whole = svertka.train(digit_folder, output=tmp_path / "whole", weights=file, **SMALL)
    assert whole.classifier().preprocess.size == 8  # as asked for
    assert whole.classifier().preprocess.mean == (0.485, 0.456, 0.406)  # as the weights want
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            svertka.train(digit_folder, output=tmp_path / "run", weights=file, **SMALL)
    file.unlink()
    assert digest(svertka.resume(tmp_path / "run")) == digest(whole)


def test_the_preprocessing_is_that_of_the_weights(digit_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            shutil.copy(digit_folder / name / f"{number:02}.png", folder / name)
    weights = tmp_path / "x.safetensors"
    save_file(MODELS["resnet20"].build().state_dict(), weights)
    options = STILL | {"size": None, "batch_size": 8}
    run = svertka.train(folder, weights=weights, output=tmp_path / "run", **options)
    assert run.classifier().preprocess.size == 32  # not 64, as for photographs and fresh weights
    options |= {"model": "efficientnet_lite0", "size": 64}
    run = svertka.train(folder, weights="bundled", output=tmp_path / "small", **options)
    preprocess = run.classifier().preprocess
    assert (preprocess.size, preprocess.resize) == (64, 73)  # in the proportion of 224 to 256
    assert preprocess.mean == (127 / 255,) * 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "imagenet"}, r"published for resnet20 \(imagenet exists for alexnet_owt"),
        ({"weights": "imagenet", "model": "mlp"}, r"published for mlp \(imagenet exists for alexnet_owt"),
        ({"weights": "nowhere.pth"}, "weights=nowhere.pth is neither a file nor published for resnet20; use a run"),
        ({"weights": "RUN", "model": "mlp"}, "are of resnet20, not mlp; give --model resnet20"),
        ({"weights": "bundled", "model": "efficientnet_lite0", "size": 1}, "size=1 is too small"),
    ],
)
def test_weights_that_cannot_be_are_one_sentence(
    finished: Run, digit_folder: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    if options["weights"] == "RUN":
        options = options | {"weights": finished}
    with pytest.raises(UsageError, match=sentence) as caught:
        svertka.train(digit_folder, **({"output": tmp_path / "run"} | SMALL | options))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_published_name_is_no_folder_of_that_name(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(UsageError, match="weights=imagenet is neither a file nor published for resnet20"):
        svertka.train(digit_folder, weights="imagenet", **SMALL)


# ---- recipes in stages


@pytest.mark.large
@pytest.mark.usefixtures("quiet")
def test_a_recipe_trains_its_first_stage_once_and_goes_on_where_it_stopped(
    digit_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
) -> None:
    staged: dict[str, Any] = {
        "model": "vgg13", "recipe": "vgg", "size": 8, "epochs": 0.5, "batch_size": 32, "lr": 1e-12, "threads": 1,
    }  # fmt: skip
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            svertka.train(digit_folder, output=tmp_path / "run", **staged)
    assert not (tmp_path / "run").exists()
    run = svertka.train(digit_folder, output=tmp_path / "run", **staged)
    first = Run(tmp_path / "run.vgg11")
    assert first.settings()["model"] == "vgg11"
    assert run.settings()["weights"] == str(first.folder)
    finished_at = first.metrics.stat().st_mtime_ns

    # The first four convolutions of A at the same places of the same blocks, and the dense layers (§3.1).
    places = {"features.0": "features.0", "features.3": "features.5", "features.6": "features.10",
              "features.8": "features.12", "classifier.0": "classifier.0", "classifier.6": "classifier.6"}  # fmt: skip
    shallow, deep = first.classifier().network.state_dict(), run.classifier().network.state_dict()
    for old, new in places.items():
        assert deep[f"{new}.weight"].numpy() == pytest.approx(shallow[f"{old}.weight"].numpy(), abs=1e-6)
    shutil.rmtree(run)
    svertka.train(digit_folder, output=tmp_path / "run", **staged)
    assert first.metrics.stat().st_mtime_ns == finished_at
    shutil.rmtree(run)
    with pytest.raises(UsageError, match="belongs to another training; remove it"):
        svertka.train(digit_folder, output=tmp_path / "run", **(staged | {"seed": 1}))


@pytest.mark.usefixtures("quiet")
def test_a_network_starts_from_another_only_where_its_paper_says_so(
    finished: Run, digit_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="are of resnet20, not vgg13; give --model resnet20"):
        svertka.train(digit_folder, model="vgg13", size=8, weights=finished, output=tmp_path / "run")


@pytest.mark.usefixtures("quiet")
def test_first_weights_are_as_asked(digit_folder: Path, tmp_path: Path) -> None:
    still = STILL | {"model": "mlp", "initial": "gaussian"}
    run = svertka.train(digit_folder, output=tmp_path / "run", **still)
    assert float(run.classifier().network.state_dict()["hidden.weight"].std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.usefixtures("quiet")
def test_a_network_that_wants_to_see_pictures_first_does(digit_folder: Path, tmp_path: Path) -> None:
    still = STILL | {"model": "airbench", "size": 16}
    run = svertka.train(digit_folder, output=tmp_path / "run", **still)
    classifier = run.classifier()
    images = torch.stack([classifier.preprocess(path) for path in sorted(digit_folder.rglob("*.png"))])
    with torch.inference_mode():
        values = classifier.network.get_submodule("whitening")(images)
    strong = values[:, :3].transpose(0, 1).flatten(1).double()  # gray pictures vary in four directions only
    # Uncorrelated, of second moment 1; val's pictures are among these, the filters know the training ones only.
    assert (strong @ strong.T / strong.shape[1]).numpy() == pytest.approx(np.eye(3), abs=0.15)


@pytest.fixture(scope="module")
def deep_digits(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in wide pictures of 16 bits of which 10 are used; those for testing use all of them."""
    root = tmp_path_factory.mktemp("deep")
    for path in sorted(digit_folder.glob("*/*.png")):
        part, top = ("test", 65535) if path.stem >= "45" else ("train", 1023)
        gray = np.zeros((8, 24))
        gray[:, 8 * (int(path.stem) % 3) :][:, :8] = np.asarray(Image.open(path)) / 255
        place = root / part / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((gray * top).astype(np.uint16)).save(place / path.name)
    return root


@pytest.mark.parametrize("fit", ["pad", "squeeze"])
def test_how_pictures_become_square_and_8_bits_is_the_runs(
    deep_digits: Path, tmp_path: Path, fit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "mlp", "fit": fit, "epochs": 2, "size": 24, "device": "cpu", "threads": 1}
    run = svertka.train(deep_digits, output=tmp_path / "run", **options)
    said = capsys.readouterr().err
    assert "0 is black and 1,023 is white" in said
    assert f"{fit}: all of each image is shown" in said
    preprocess = run.classifier().preprocess
    # What the test pictures use has no say.
    assert (preprocess.fit, preprocess.intensity_range, preprocess.resize) == (fit, (0, 1023), 24)
    assert svertka.evaluate(run, deep_digits, part="test").top1_error == run.result()["test_error"]
    again = svertka.train(deep_digits, output=tmp_path / "again", **(options | {"weights": run.folder, "fit": None}))
    assert again.classifier().preprocess.fit == fit
