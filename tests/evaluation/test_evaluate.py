"""evaluate(), evaluate_jointly() and evaluate_network() against plain loops over the same images."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import svertka
from svertka.classifier import Classifier
from svertka.data import dataset as dataset_module
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.image_io import DecodedImage, decode_image
from svertka.data.loader import BatchLoader
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError
from svertka.evaluation.evaluate import evaluate, evaluate_jointly, evaluate_network, renumber_labels_by_class_names
from svertka.run import Run


@pytest.fixture(scope="module")
def run(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return svertka.train(digit_folder, model="mlp", size=8, epochs=8, output=folder, threads=1)


def test_evaluation_matches_a_plain_loop(run: Run, digit_folder: Path) -> None:
    classifier = Classifier.load(run)
    wrong, losses = [], []
    for path in sorted(digit_folder.rglob("*.png")):
        logits = classifier.network(classifier.preprocess(path)[None])[0].detach()
        truth = classifier.names.index(path.parent.name)
        wrong.append(int(logits.argmax()) != truth)
        losses.append(-logits.log_softmax(0)[truth].item())
    judged = evaluate(run, digit_folder, part="all", include_training=True)
    assert judged.images == 240
    assert judged.top1_error == pytest.approx(np.mean(wrong))
    assert judged.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_new_images_are_matched_by_class_name(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digit_folder / "three", tmp_path / "three")
    one_class = evaluate(run, tmp_path, include_training=True)
    assert one_class.images == 60
    assert [one.images for one in one_class.per_class if one.name == "three"] == [60]

    (tmp_path / "seven").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "seven" / "x.png")
    with pytest.raises(DataError, match="the run does not know: seven; it knows four, one, three.*; leave out"):
        evaluate(run, tmp_path)


def test_labels_are_matched_by_name_not_by_number() -> None:
    pictures = ArrayImages(np.zeros((3, 2, 2, 1), np.uint8), "x")
    dataset = Dataset("x", ("b", "a", "unused"), pictures, np.array([0, 1, 1]), np.array(["", "", ""]))
    assert renumber_labels_by_class_names(("a", "b"), dataset).labels.tolist() == [1, 0, 0]


def test_numbered_classes_are_the_outputs_of_a_network_in_memory() -> None:
    linear = torch.nn.Linear(3 * 8 * 8, 1000)
    linear.weight.data.zero_()
    linear.bias.data.zero_()[437] = 5.0  # every image is of class 437
    network = torch.nn.Sequential(torch.nn.Flatten(), linear.requires_grad_(False))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels = np.repeat([437, 438], [9, 3])
    evaluation = svertka.evaluate(network, (pixels, labels), size=8)
    assert evaluation.top1_error == pytest.approx(3 / 12)
    assert [evaluation.per_class[label].images for label in (436, 437, 438)] == [0, 9, 3]
    with pytest.raises(DataError, match="class 1000; the network has scores for 1,000 classes, so labels are 0 to 999"):
        svertka.evaluate(network, (pixels, labels + 562), size=8)


def test_classes_of_imagenet_are_matched_by_wordnet_id() -> None:
    pictures = ArrayImages(np.zeros((3, 2, 2, 1), np.uint8), "x")
    labels, parts = np.array([0, 1, 1]), np.array(["", "", ""])
    by_id = Dataset("x", ("n01440764", "n02123045"), pictures, labels, parts)
    by_name = Dataset("x", ("tench", "tabby"), pictures, labels, parts)
    for names in (("tabby", "tench"), ("n02123045", "n01440764")):
        assert renumber_labels_by_class_names(names, by_id).labels.tolist() == [1, 0, 0]
        assert renumber_labels_by_class_names(names, by_name).labels.tolist() == [1, 0, 0]


def resnet20(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """He et al.'s network of 20 layers, written out: logits (B, 10) of normalized pictures (B, 3, 32, 32)."""

    def layer(inputs: torch.Tensor, place: str, number: int, stride: int = 1) -> torch.Tensor:
        outputs = F.conv2d(inputs, tensors[f"{place}conv{number}.weight"], stride=stride, padding=1)
        mean, variance, scale, shift = (
            tensors[f"{place}bn{number}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(outputs, mean, variance, scale, shift)

    maps = layer(images, "", 1).relu()
    for stage in (1, 2, 3):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            place = f"layer{stage}.{block}."
            outputs = layer(layer(maps, place, 1, stride).relu(), place, 2)
            added = (outputs.shape[1] - maps.shape[1]) // 2
            maps = (outputs + F.pad(maps[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added))).relu()
    return F.linear(maps.mean((2, 3)), tensors["linear.weight"], tensors["linear.bias"])


def test_pretrained_weights_match_plain_pytorch(shared_data: Path, photo_tiles: npt.NDArray[np.uint8]) -> None:
    file = shared_data / "weights" / "resnet20-cifar10.safetensors"
    classifier = Classifier.load(f"resnet20:{file}")
    drawn, order = np.random.default_rng(0).integers(10, size=250), np.arange(250)
    judged = evaluate_network(
        classifier.network,
        BatchLoader(photo_tiles[:250], drawn, order, classifier.preprocess, batch_size=125),
        classifier.names,
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(photo_tiles[:250]) / 255 - mean) / std).permute(0, 3, 1, 2)
    labels = torch.from_numpy(drawn)
    tensors = load_file(file)
    logits = torch.cat([resnet20(tensors, some) for some in images.split(125)])
    wrong = (logits.argmax(1) != labels).float().mean().item()
    # One image may have two best scores that are equal up to rounding.
    assert judged.top1_error == pytest.approx(wrong, abs=0.0041)
    assert judged.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)


@pytest.mark.large  # the same weights: above
def test_resnet20_matches_its_published_error(shared_data: Path) -> None:
    file = shared_data / "weights" / "resnet20-cifar10.safetensors"
    judged = evaluate(f"resnet20:{file}", "cifar10")
    assert judged.images == 10_000
    assert judged.names == open_source("cifar10").names
    assert judged.top1_error == pytest.approx(1 - 0.9173, abs=0.0002)


@pytest.mark.large  # its weights: test_efficientnet_lite.py; names of ImageNet: above
def test_bundled_network_classifies_the_sample_images(shared_data: Path, tmp_path: Path) -> None:
    for picture in (shared_data / "imagenet-samples").glob("*.JPEG"):
        folder = tmp_path / picture.name.partition("_")[0]
        folder.mkdir()
        (folder / picture.name).symlink_to(picture)
    judged = evaluate("efficientnet_lite0:bundled", tmp_path)
    assert judged.images == 63
    assert 1 - judged.top1_error >= 0.84
    assert judged.top5_error is not None
    assert 1 - judged.top5_error >= 0.96


def test_parts_are_those_of_the_training(run: Run, digit_folder: Path) -> None:
    sizes = run.settings()["parts"]
    assert evaluate(run, digit_folder).images == sizes["val"]
    assert evaluate(run, digit_folder, part="train").images == sizes["train"]
    with pytest.raises(UsageError, match="has no test part; leave --part out"):
        evaluate(run, digit_folder, part="test")
    with pytest.raises(UsageError, match="part=valid is not a part; use train, val, test or all"):
        evaluate(run, digit_folder, part="valid")


def test_only_the_judged_images_are_decoded(
    run: Run, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: set[bytes] = set()

    def noted(data: bytes, *options: Any) -> DecodedImage:
        decoded.add(data)
        return decode_image(data, *options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_module, "decode_image", noted)
    assert evaluate(run, digit_folder).images == run.settings()["parts"]["val"] < 240
    assert 0 < len(decoded) <= run.settings()["parts"]["val"]


def test_loaded_network_is_in_evaluation_mode(run: Run) -> None:
    classifier = Classifier.load(run)
    assert not classifier.network.training
    assert not torch.is_inference(next(classifier.network.parameters()))


def test_class_names_match_up_to_case_and_spaces_with_a_note() -> None:
    array = ArrayImages(np.zeros((3, 1, 1, 1), np.uint8), "x")
    dataset = Dataset("x", ("CAT", "Fire_truck "), array, np.array([0, 1, 1]), np.array(["", "", ""]))
    named = renumber_labels_by_class_names(("cat", "dog", "fire truck"), dataset)
    assert named.labels.tolist() == [0, 2, 2]
    assert named.account.notes == (
        "the class CAT is taken for cat",
        "the class Fire_truck  is taken for fire truck",
    )
    with pytest.raises(DataError, match="does not know: CAT"):  # which of the two?
        renumber_labels_by_class_names(("cat", "Cat", "fire truck"), dataset)


def test_ensemble_averages_probabilities(photographs: Path, fresh_run: Callable[..., Path]) -> None:
    """Of networks that want other sizes of picture, and have the same classes in another order."""
    runs = [
        fresh_run("resnet20", 32, 40, seed=1),
        fresh_run("resnet20", 24, 24, seed=2),
        fresh_run("mlp", 16, 20, seed=3, names=("flower", "china")),
    ]
    wrong, losses, alone = [], [], [[], [], []]
    for path in sorted(photographs.rglob("*.png")):
        said = []
        for number, run in enumerate(runs):
            classifier = Classifier.load(run)
            named = dict(classifier.predict(path))
            said.append(named)
            alone[number].append(max(named, key=lambda name: named[name]) != path.parent.name)
        mean = {name: np.mean([one[name] for one in said]) for name in said[0]}
        wrong.append(max(mean, key=lambda name: mean[name]) != path.parent.name)
        losses.append(-np.log(mean[path.parent.name]))
    judged = evaluate_jointly([*map(str, runs)], photographs)
    assert judged.ensemble.wrong.tolist() == wrong
    assert judged.ensemble.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert [one.wrong.tolist() for one in judged.per_run] == alone
    assert judged.ensemble.wrong.tolist() not in alone  # otherwise it would prove nothing


def test_runs_with_different_classes_or_parts_are_refused(
    photographs: Path, fresh_run: Callable[..., Path], digit_folder: Path, tmp_path: Path
) -> None:
    here, there = fresh_run("mlp", 16, 16, seed=1), fresh_run("mlp", 16, 16, seed=1, names=("china", "tulip"))
    with pytest.raises(UsageError, match="know different classes .flower only in .*; tulip only in .*same"):
        evaluate([here, there], photographs)
    with pytest.raises(UsageError, match="there is no run to evaluate"):
        evaluate([], photographs)
    run = svertka.train(digit_folder, model="mlp", size=8, epochs=1, output=tmp_path / "run", threads=1)
    other = fresh_run("mlp", 8, 8, seed=1, names=Classifier.load(run).names)
    with pytest.raises(UsageError, match="were trained on different parts of .*or on --part all"):
        evaluate([run, other], digit_folder)


def test_report_is_written_to_output(photographs: Path, fresh_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [fresh_run("mlp", 16, 20, seed=seed) for seed in (1, 2)]
    judged = evaluate(runs, photographs, crops=10, output=tmp_path / "judged.html")
    text = (tmp_path / "judged.html").read_text()
    assert f"mlp on {photographs}: {100 * judged.top1_error:.1f}" in text
    assert "12\u00a0all pictures" not in text
    for said in ("10 crops at 20 pixels", "their probabilities averaged", "Calibration"):
        assert said in text
