"""Scoring against a plain loop over the same pictures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import svertka
from svertka.classifier import Classifier
from svertka.data.dataset import ArrayPictures, Dataset
from svertka.errors import DataError, UsageError
from svertka.evaluation.scoring import evaluate, with_names_of
from svertka.run import Run


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return svertka.train(digit_folder, model="mlp", size=8, epochs=8, output=folder, threads=1)


def test_it_is_what_a_plain_loop_counts(run: Run, digit_folder: Path) -> None:
    classifier = Classifier.load(run)
    wrong, losses = [], []
    for path in sorted(digit_folder.rglob("*.png")):
        logits = classifier.network(classifier.preprocess(path)[None])[0].detach()
        truth = classifier.names.index(path.parent.name)
        wrong.append(int(logits.argmax()) != truth)
        losses.append(-logits.log_softmax(0)[truth].item())
    judged = evaluate(run, digit_folder, part="all", batch_size=7)
    assert judged.images == 240
    assert judged.top1_error == pytest.approx(np.mean(wrong))
    assert judged.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_other_pictures_are_judged_whole_and_by_name(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digit_folder / "three", tmp_path / "three")
    one_class = evaluate(run, tmp_path)
    assert one_class.images == 60
    assert [one.images for one in one_class.per_class if one.name == "three"] == [60]

    (tmp_path / "seven").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "seven" / "x.png")
    with pytest.raises(DataError, match="holds classes that the run does not know: seven; it knows four, one, three"):
        evaluate(run, tmp_path)


def test_labels_are_matched_by_name_not_by_number() -> None:
    pictures = ArrayPictures(np.zeros((3, 2, 2, 1), np.uint8), "x")
    dataset = Dataset("x", ("b", "a", "unused"), pictures, np.array([0, 1, 1]), np.array(["", "", ""]))
    assert with_names_of(("a", "b"), dataset).labels.tolist() == [1, 0, 0]


def test_the_parts_of_the_training_are_its_own(run: Run, digit_folder: Path) -> None:
    sizes = run.settings()["parts"]
    assert evaluate(run, digit_folder).images == sizes["val"]
    assert evaluate(run, digit_folder, part="train").images == sizes["train"]
    with pytest.raises(UsageError, match="has no test part; leave --part out"):
        evaluate(run, digit_folder, part="test")
    with pytest.raises(UsageError, match="part=valid is not a part; use train, val, test or all"):
        evaluate(run, digit_folder, part="valid")


def test_a_network_is_left_on_evaluation_and_without_gradients(run: Run) -> None:
    classifier = Classifier.load(run)
    assert not classifier.network.training
    assert not torch.is_inference(next(classifier.network.parameters()))
