"""The choice of precisions: the loss that it reports against PyTorch's own, and what it does with costly layers."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from svertka.compiler import mixed_precision
from svertka.compiler.accuracy_bound import count_needed_images
from svertka.compiler.mixed_precision import MixedPrecisionSearch
from svertka.compiler.optimize import Optimized, optimize
from svertka.conv import native_support
from svertka.data.dataset import ArrayImages
from svertka.data.source_opener import open_source
from svertka.errors import RunError, UsageError
from svertka.tensor_files import read_tensors_and_header, write_tensors

pytestmark = pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")

SPOILED = 1e4  # the ratio of the channels of a layer, which 8 bits do not represent together


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.from_numpy(found.target).long()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network trained on the first 800 digits, with a layer whose map has channels of very different ranges."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 1),
        nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    images, labels = digits()
    optimizer = torch.optim.Adam(layers.parameters(), 0.01)
    for _ in range(6):
        for some, right in zip(images[:800].split(50), labels[:800].split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layers(some), right).backward()
            optimizer.step()
    with torch.no_grad():
        most = layers[:4](images[:100]).mean((0, 2, 3)).argmax()
        scale = torch.where(torch.arange(32) == most, SPOILED, 1.0)
        layers[2].weight *= scale[:, None, None, None]
        layers[2].bias *= scale
        layers[4].weight /= scale[None, :, None, None]
    return layers.eval()


@pytest.fixture(scope="module", autouse=True)
def _known_times() -> Iterator[None]:
    """int8 takes half the time of bf16, which takes two thirds of fp32's."""
    times = {"fp32": 3.0, "bf16": 2.0, "int8": 1.0}

    def layers(search: MixedPrecisionSearch) -> dict[str, dict[int, float]]:
        return {one: {result: time for group in search.groups for result in group} for one, time in times.items()}

    def networks(search: MixedPrecisionSearch, several: list[Any]) -> list[float]:
        chosen = [[mixed_precision._stored_precision(one, group[0]) for group in search.groups] for one in several]
        return [sum(times[precision] for precision in some) for some in chosen]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MixedPrecisionSearch, "_measure_layers", layers)
        patch.setattr(MixedPrecisionSearch, "_compare", networks)
        yield


def mixture(network: nn.Module, max_loss: float = 0.005, count: int = 900, **others: Any) -> Optimized:
    images, labels = digits()
    validation = images[800 : 800 + count], labels[800 : 800 + count]
    settings = {"calibration": images[:100], "validation": validation, "max_loss": max_loss} | others
    return optimize(network, images[:1], precision="auto", **settings)


@pytest.fixture(scope="module")
def mixed(network: nn.Module) -> Optimized:
    return mixture(network)


def test_costly_layers_leave_int8_until_the_bound_holds(network: nn.Module, mixed: Optimized) -> None:
    images, labels = digits()
    assert {layer.name: layer.precision for layer in mixed.layers}["4"] != "int8"  # it reads the spoiled map
    assert "int8" in {layer.precision for layer in mixed.layers}
    report, some, right = mixed.accuracy, images[800:1700], labels[800:1700]
    assert report is not None
    with torch.no_grad():
        before = network(some).argmax(1) == right
    after = torch.cat([mixed(one).argmax(1) for one in some.split(7)]) == right
    assert (report.images, report.right) == (900, int(before.sum()))
    assert report.only_float == int((before & ~after).sum())
    assert report.only_mixed == int((after & ~before).sum())
    assert report.loss <= 0.005
    low, high = report.interval
    assert low < report.loss < high
    assert report.seconds < report.float_seconds
    assert "auto (" in mixed.sentence
    assert f"{report.top1_before:.2%} → {report.top1_after:.2%} on 900\xa0validation images" in mixed.sentence


def test_int8_alone_would_lose_more_than_the_bound(network: nn.Module) -> None:
    images, _ = digits()
    with pytest.raises(UsageError, match="^in int8 Sequential"):
        optimize(network, images[:1], precision="int8", calibration=images[:100])


def test_a_time_limit_keeps_the_bound_and_counts_what_is_untried(
    network: nn.Module, mixed: Optimized, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mixed.accuracy is not None
    assert mixed.accuracy.untried == 0
    monkeypatch.setattr(mixed_precision, "SEARCH_SECONDS", 0.0)
    hurried = mixture(network)
    assert hurried.accuracy is not None
    assert hurried.accuracy.loss <= 0.005
    assert hurried.accuracy.untried == len(hurried.layers) == 5
    assert "the time limit left a lower precision of 5\xa0layers untried" in hurried.sentence


def test_many_validation_images_are_sampled_and_the_result_is_checked_on_all(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    find = mixed_precision.ValidationImages.find_right

    def counted(images: Any, run: Any, batch_size: int | None, chosen: Tensor | None = None) -> tuple[Tensor, int]:
        counts.append(900 if chosen is None else len(chosen))
        return find(images, run, batch_size, chosen)

    monkeypatch.setattr(mixed_precision.ValidationImages, "find_right", counted)
    monkeypatch.setattr(mixed_precision, "PASSES", 1e9)
    mixed = mixture(network)
    assert set(counts) == {553, 900}
    assert mixed.accuracy is not None
    assert mixed.accuracy.images == 900
    assert mixed.accuracy.loss <= 0.005
    assert mixed.accuracy.untried == 0


def test_a_sound_network_is_int8_throughout() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    images, _ = digits()
    with torch.no_grad():
        own = network(images).argmax(1)
    mixed = mixture(network, 0.02, validation=(images, own))
    assert {layer.precision for layer in mixed.layers} == {"int8"}


def test_batches_of_a_loader_give_the_same(network: nn.Module, mixed: Optimized) -> None:
    images, labels = digits()
    loader = torch.utils.data.DataLoader(list(zip(images[800:1700], labels[800:1700], strict=True)), batch_size=64)
    assert mixture(network, validation=loader).accuracy == mixed.accuracy
    assert mixture(network, validation=iter(loader)).accuracy == mixed.accuracy


def test_a_layer_that_is_no_faster_keeps_its_precision(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def layers(search: MixedPrecisionSearch) -> Mapping[str, Mapping[int, float]]:
        return {one: {r: 1.0 for group in search.groups for r in group} for one in ("fp32", "bf16", "int8")}

    monkeypatch.setattr(MixedPrecisionSearch, "_measure_layers", layers)
    monkeypatch.setattr(MixedPrecisionSearch, "_compare", lambda _, several: [1.0, *[2.0] * (len(several) - 1)])
    assert {layer.precision for layer in mixture(network).layers} == {"fp32"}


@pytest.mark.parametrize("share", [0.005, 0.01, 0.1, 0.5])
def test_the_needed_images_are_the_fewest_whose_interval_is_within_the_bound(share: float) -> None:
    from svertka.confidence_intervals import paired_difference_interval

    needed = count_needed_images(share)
    assert paired_difference_interval(0, 0, needed)[1] <= share < paired_difference_interval(0, 0, needed - 1)[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"validation": None}, r"^precision='auto' needs validation=, images and labels on which the loss"),
        ({"calibration": None}, r"^precision='auto' needs calibration=, some hundred typical images"),
        ({"dense": "fp32"}, r"^precision='auto' chooses the precision of dense layers, too; give it alone"),
        ({"count": 300}, r"^validation= has 300.images, too few for max_loss=0.005: with fewer than 553 the 95 % "
                         r"interval .*; give more, or at least max_loss=0.01$"),
        ({"max_loss": 0.0}, r"^max_loss=0.0 must be a share above 0 and below 1"),
        ({"max_loss": float("nan")}, r"^max_loss=nan must be a share above 0 and below 1"),
        ({"max_loss": "0.5%"}, r"^max_loss='0.5%' must be a share above 0 and below 1"),
        ({"validation": digits()[0]}, r"^validation= is of type Tensor; give \(images, labels\) or an iterable"),
        ({"validation": []}, r"^validation= has no images; give \(images, labels\)"),
        ({"validation": [digits()[0]]}, r"^validation= has a batch that is no pair of images and labels"),
        ({"validation": (digits()[0], digits()[1].float())}, r"^validation= has labels of shape \(1797,\) float32 "),
        ({"validation": (digits()[0], digits()[1][:5])}, r"^validation= has labels of shape \(5,\) int64 for 1,797.im"),
        ({"validation": (digits()[0], digits()[1] + 1)}, r"^validation= has labels from 1 to 10, and the network "),
        ({"validation": (digits()[0], digits()[1] - 1)}, r"^validation= has labels from -1 to 8, and the network has"),
        ({"validation": (digits()[0] * torch.nan, digits()[1])}, r"^validation= has images with values that are not "),
        ({"validation": (digits()[0][:, :, :8], digits()[1])}, r"^validation= has images of 1×8×16 and the example's"),
        ({"validation": (digits()[0], digits()[1].roll(7))}, r"^Sequential classifies [\d,]+ of 1,797.validation images"
                                                             r" correctly, which is no better than chance among 10"),
    ],
)  # fmt: skip
def test_what_bounds_nothing_is_refused(network: nn.Module, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        mixture(network, **settings)


def test_validation_belongs_to_auto(network: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"^validation= and max_loss= are read only with precision='auto'; leave them"):
        optimize(network, digits()[0][:1], validation=digits())
    with pytest.raises(UsageError, match=r"^precision='auto' chooses the precision of dense layers, too"):
        optimize(network, digits()[0][:1], dense="auto")


def test_a_network_without_class_scores_is_refused(network: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"^the output of the network is \(16, 32, 4, 4\), and only the loss of class"):
        mixture(network[:7])


def test_a_file_keeps_the_report_and_refuses_an_impossible_one(mixed: Optimized, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    mixed.save(path)
    loaded, images = Optimized.load(path), digits()[0][:3]
    assert loaded.accuracy == mixed.accuracy
    assert loaded.layers == mixed.layers
    assert torch.equal(loaded(images), mixed(images))
    json.dumps(loaded.to_dict(), allow_nan=False)
    tensors, header = read_tensors_and_header(path)
    for change in (
        {"images": 0},
        {"right": 10**6},
        {"only_mixed": -1},
        {"seconds": "fast"},
        {"other": 1},
        {"threads": 1.5},
    ):
        (content,) = header["optimized"]["sizes"]
        changed = content | {"accuracy": content["accuracy"] | change}
        write_tensors(path, tensors, {"optimized": header["optimized"] | {"sizes": [changed]}})
        with pytest.raises(RunError, match=r"network.safetensors is damaged \("):
            Optimized.load(path)


@pytest.mark.large
@pytest.mark.timeout(600)
def test_resnet20_keeps_its_accuracy_on_photographs(shared_data: Path) -> None:
    """On 600 test images of CIFAR-10 that neither calibrated the network nor bounded its loss."""
    from svertka.classifier import Classifier

    classifier = Classifier.load(f"resnet20:{shared_data / 'weights' / 'resnet20-cifar10.safetensors'}")
    dataset = open_source("cifar10")
    assert isinstance(dataset.images, ArrayImages)
    test = np.flatnonzero(dataset.parts == "test")[:1400]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(dataset.images.array[test]) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(dataset.labels[test])
    mixed = optimize(
        classifier.network, images[:1], precision="auto", calibration=images[1200:],
        validation=(images[:600], labels[:600]),
    )  # fmt: skip
    assert mixed.accuracy is not None
    assert mixed.accuracy.loss <= 0.005
    assert "int8" in {layer.precision for layer in mixed.layers}
    held, right = images[600:1200], labels[600:1200]
    with torch.no_grad():
        float_classes = torch.cat([classifier.network(some).argmax(1) for some in held.split(100)])
    classes = torch.cat([mixed(some).argmax(1) for some in held.split(100)])
    assert (classes == float_classes).double().mean() > 0.97
    assert abs(int((classes == right).sum()) - int((float_classes == right).sum())) <= 6
