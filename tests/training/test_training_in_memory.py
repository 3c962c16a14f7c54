"""Training, resuming and evaluating on images in memory: the same guarantees as for a folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import svertka
from svertka.classifier import Classifier
from svertka.cli.app import main
from svertka.errors import DataError, Interrupted, RunError, UsageError
from svertka.run import Run

QUICK: dict[str, Any] = {"model": "mlp", "epochs": 2, "threads": 1}
Digits = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """400 digits of 8×8 pixels and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images[:400] * 15.9).astype(np.uint8).reshape(-1, 8, 8), labels[:400].astype(np.int64)


@pytest.fixture(scope="module")
def run(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = svertka.train(digits, test=0.2, output=tmp_path_factory.mktemp("runs") / "run", **QUICK)
    assert isinstance(made, Run)
    return made


def test_arrays_and_a_dataset_of_the_same_images_train_the_same_weights(
    digits: Digits, run: Run, tmp_path: Path, digest: Callable[[Run], str]
) -> None:
    items = TensorDataset(torch.from_numpy(digits[0]), torch.from_numpy(digits[1]))
    other = svertka.train(items, test=0.2, output=tmp_path / "items", **QUICK)
    assert other.settings()["fingerprint"] == run.settings()["fingerprint"]
    assert digest(other) == digest(run)
    assert (run.settings()["source"], other.settings()["source"]) == ("<arrays>", "<dataset>")


def test_evaluation_leaves_the_training_images_out(digits: Digits, run: Run) -> None:
    images, labels = digits
    sizes = run.settings()["parts"]
    assert sum(sizes.values()) == 400
    whole = svertka.evaluate(run, digits)
    assert whole.images == sizes["test"]
    assert whole.top1_error == run.result()["test_error"]
    # Which images were trained on, by the manifest; their error by a plain loop.
    from svertka.evaluation.held_out import read_manifest

    manifest = read_manifest(run)
    assert manifest is not None
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    trained = np.array([one in manifest.parts["train"] for one in hashes])
    assert trained.sum() == sizes["train"]
    order = np.random.default_rng(0).permutation(400)
    rest = svertka.evaluate(run, (images[order], labels[order]), part="all")
    classifier = Classifier.load(run)
    wrong = [
        classifier.names[int(classifier.network(classifier.preprocess(image[..., None])[None]).argmax())] != str(label)
        for image, label in zip(images[~trained], labels[~trained], strict=True)
    ]
    assert rest.images == len(wrong)
    assert rest.top1_error == pytest.approx(np.mean(wrong))
    with pytest.raises(UsageError, match=r"<arrays> holds no new image for .*include-training"):
        svertka.evaluate(run, (images[trained], labels[trained]))


def test_a_stopped_run_resumes_with_the_same_arrays(
    digits: Digits,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[pytest.MonkeyPatch, int], None],
    digest: Callable[[Run], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = tmp_path / "stopped"
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted, match=rf"continue with: svertka.resume\('{stopped}', source\)"):
        svertka.train(digits, test=0.2, output=stopped, **QUICK)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="was trained on images in memory; pass them again in Python: svertka.resume"):
        svertka.resume(stopped)
    assert main(["train", "--resume", str(stopped)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    changed = digits[0].copy()
    changed[0, 0, 0] += 1
    with pytest.raises(RunError, match=r"the images of <arrays> are not those .*svertka.train\(source, weights="):
        svertka.resume(stopped, (changed, digits[1]))
    resumed = svertka.resume(stopped, digits)
    assert digest(resumed) == digest(run)


def test_images_of_several_sizes_train_from_a_dataset(tmp_path: Path) -> None:
    photographs = [np.asarray(image) for image in _crops()]
    run = svertka.train(
        [*zip(_saved(photographs, tmp_path), ["left", "right"] * 12, strict=True)], output=tmp_path / "files", **SMALL
    )
    items = svertka.train(Items(photographs, ["left", "right"] * 12), output=tmp_path / "items", **SMALL)
    assert sum(run.settings()["parts"].values()) == sum(items.settings()["parts"].values()) == 24
    again = svertka.evaluate(items, Items(photographs, ["left", "right"] * 12))
    assert again.images == items.settings()["parts"]["val"]


SMALL: dict[str, Any] = {"model": "mlp", "size": 16, "epochs": 1, "threads": 1, "val": 0.3}


class Items:
    """Images and labels with a length and items, as a Dataset has them."""

    def __init__(self, images: list[npt.NDArray[np.uint8]], labels: list[str]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], str]:
        return self.images[index], self.labels[index]


def _crops() -> list[npt.NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_image

    photograph, generator = load_sample_image("china.jpg"), np.random.default_rng(0)
    places = generator.integers(0, 300, (24, 2)), generator.integers(20, 60, (24, 2))
    return [photograph[y : y + h, x : x + w] for (y, x), (h, w) in zip(*places, strict=True)]


def _saved(images: list[npt.NDArray[np.uint8]], folder: Path) -> list[Path]:
    from PIL import Image

    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_one_class_only_is_refused(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="<arrays> has only one class, 0"):
        svertka.train((digits[0], np.zeros(400, int)), output=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_repeats_of_arrays(digits: Digits, tmp_path: Path) -> None:
    made = svertka.train(digits, repeats=2, test=0.3, output=tmp_path / "runs", **QUICK)
    assert isinstance(made, svertka.Repeats)
    assert made.to_dict()["errors"] == [run.result()["test_error"] for run in made.runs]
    assert repr(made).startswith(f"Repeats('{tmp_path / 'runs'}': test error")
    assert "<table>" in made._repr_html_() or "<tr>" in made._repr_html_()


def test_the_default_run_folder_is_named_by_the_kind_of_source(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert svertka.train(digits, **QUICK | {"epochs": 1}).folder == Path("runs/arrays-mlp")
