"""The check of labels on photographs with planted errors, and on features of which the answer is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svertka.curation import label_check
from svertka.curation.label_check import LabelFindings, check_labels
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.in_memory_sources import open_in_memory
from svertka.transfer.backbone_features import BackboneFeatures, compute_backbone_features

Checked = Callable[..., LabelFindings]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """`checked(features, labels, contents=…, alike=…, groups=…)`: the findings for images with these features."""

    def check(features, labels, contents=None, alike=(), groups=None) -> LabelFindings:
        labels = np.asarray(labels, np.int64)
        count = len(labels)
        images = ArrayImages(np.zeros((count, 1, 1, 1), np.uint8), "image")
        names = tuple(f"class {number}" for number in range(labels.max() + 1))
        groups = None if groups is None else np.asarray(groups)
        dataset = Dataset("photos", names, images, labels, np.full(count, "", "<U5"), groups=groups)
        values = np.asarray(features, np.float32)
        monkeypatch.setattr(
            label_check,
            "compute_backbone_features",
            lambda _, indices, **__: BackboneFeatures(indices, values, "given"),
        )
        contents = contents or [number.to_bytes(4) for number in range(count)]
        return check_labels(dataset, contents, np.arange(count), alike)

    return check


def blobs(per_class: list[int], seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features around a center for each class, far apart, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    centers = rng.normal(size=(len(per_class), 16))
    return centers[labels] + spread * rng.normal(size=(len(labels), 16)), labels


def test_flipped_labels_of_photographs_are_found(shared_data: Path) -> None:
    paths = [path for name in ("cat", "dog") for path in sorted((shared_data / "cats-dogs" / name).iterdir())[:25]]
    flipped = {str(paths[place]) for place in (3, 11, 30, 42)}
    pairs = [
        (str(path), ("dog" if path.parent.name == "cat" else "cat") if str(path) in flipped else path.parent.name)
        for path in paths
    ]
    dataset = open_in_memory(pairs)
    digests = [dataset.images.digest(index) for index in range(50)]
    found = check_labels(dataset, digests, np.arange(50), [], threads=1)
    assert flipped <= {one.path for one in found.errors}
    assert {one.path for one in found.errors[:3]} < flipped
    assert len(found.errors) <= 8
    assert found.checked == 50
    scores = [one.score for one in found.errors]
    assert scores == sorted(scores, reverse=True)
    first = found.errors[0]
    assert {first.label, first.suggested} == {"cat", "dog"}
    assert len(first.neighbors) == 5
    agreeing = sum(one.label == first.suggested for one in first.neighbors)
    assert first.reason == f"{agreeing} of the 5 most similar images are labeled {first.suggested}"


def test_flips_are_found_in_any_number_of_classes(checked: Checked) -> None:
    for per_class in ([20, 20], [40] * 6, [5, 200]):
        features, labels = blobs(per_class)
        flipped = np.array([1, len(labels) - 2])
        labels[flipped] = (labels[flipped] + 1) % len(per_class)
        found = checked(features, labels)
        assert {one.index for one in found.errors[:2]} == set(flipped.tolist())
        assert len(found.errors) < 4
        assert all(
            one.suggested == f"class {(int(labels[one.index]) - 1) % len(per_class)}" for one in found.errors[:2]
        )


def test_a_copy_does_not_confirm_a_wrong_label(checked: Checked) -> None:
    features, labels = blobs([30, 30])
    features = np.concatenate([features, features[[4, 4, 4]]])
    labels = np.concatenate([labels, [1, 1, 1]])
    labels[4] = 1  # an image of class 0, four times in class 1
    contents = [number.to_bytes(4) for number in [*range(60), 4, 4, 4]]
    assert {one.index for one in checked(features, labels, contents).errors} == {4, 60, 61, 62}
    alike = [[4, 60, 61, 62]]
    found = checked(features, labels, alike=alike)
    assert {one.index for one in found.errors} == {4, 60, 61, 62}
    assert not {one.index for one in found.errors[0].neighbors} & {4, 60, 61, 62}


def test_images_of_one_group_are_in_one_fold(checked: Checked) -> None:
    """Each patient's images lie together, and some patients have another label than their surroundings."""
    features, labels = blobs([60, 60])
    patients = np.arange(120) // 4
    labels[patients == 3] = 1
    found = checked(features, labels, groups=[f"patient {number}" for number in patients])
    assert {one.index for one in found.errors} == {12, 13, 14, 15}


def test_classes_of_few_images_are_not_judged_and_said(checked: Checked) -> None:
    features, labels = blobs([30, 30, 1, 3, 4])
    found = checked(features, labels)
    assert found.checked == 60
    assert found.notes == (
        "the labels of 3 classes are not checked, which have fewer than 5 different images: class 2, class 3, class 4; "
        "add some",
    )
    assert {one.label for one in found.errors} <= {"class 0", "class 1"}


def test_a_class_of_identical_images_is_one_image(checked: Checked) -> None:
    features, labels = blobs([30, 30, 30])
    features[60:] = features[60]
    contents = [number.to_bytes(4) for number in [*range(60), *[60] * 30]]
    found = checked(features, labels, contents)
    assert found.checked == 60
    assert "the labels of 1 class are not checked" in found.notes[0].replace("class is", "class are")
    assert found.errors == ()


@pytest.mark.parametrize("per_class", [[40], [30, 2], [3, 3, 3]])
def test_too_little_to_judge_is_a_sentence(checked: Checked, per_class: list[int]) -> None:
    found = checked(*blobs(per_class))
    assert found.checked == 0
    assert found.errors == found.ambiguous == ()
    assert found.error is None
    assert "not checked" in found.notes[0]
    assert (found.compared > 0) == (sum(per_class) >= 20) == (not any("are too few" in note for note in found.notes))


def test_without_readable_images_nothing_is_checked(shared_data: Path) -> None:
    dataset = open_in_memory([(str(shared_data / "README.md"), "cat")])
    found = check_labels(dataset, [b""], np.empty(0, np.int64), [])
    assert found.sentences() == ["labels are not checked: no image can be read"]


def test_shuffled_labels_are_not_judged(checked: Checked) -> None:
    features, labels = blobs([40, 40])
    found = checked(features, np.random.default_rng(0).permutation(labels))
    assert found.errors == ()
    assert found.checked == 0
    assert "the features do not tell the classes apart" in found.notes[0]


def test_a_thousand_classes(checked: Checked, large_count: Callable[[int, int], int]) -> None:
    classes = large_count(60, 1000)
    features, labels = blobs([6] * classes)
    labels[7] = 0
    found = checked(features, labels)
    assert found.checked == 6 * classes
    assert 7 in {one.index for one in found.errors}


def test_confused_classes_are_listed_with_an_interval_that_holds_the_share(checked: Checked) -> None:
    features, labels = blobs([150, 150, 150])
    between = features[labels == 0].mean(0) + features[labels == 1].mean(0)
    unclear = np.random.default_rng(1).choice(300, 60, replace=False)
    features[unclear] = between / 2 + 0.3 * np.random.default_rng(2).normal(size=(60, 16))
    found = checked(features, labels)
    (pair,) = found.ambiguous
    assert pair.classes == ("class 0", "class 1")
    assert pair.images == 300
    assert 0.01 < pair.interval[0] < pair.share < pair.interval[1]
    assert len(pair.indices) == 6
    assert set(pair.indices) <= set(unclear.tolist())


def test_an_image_of_no_class_is_an_outlier(checked: Checked) -> None:
    features, labels = blobs([50, 50])
    features[7] = 5 * np.random.default_rng(9).normal(size=16)
    found = checked(features, labels)
    assert [one.index for one in found.outliers] == [7]
    assert found.outliers[0].score > 2
    assert "times as far" in found.outliers[0].reason


def test_features_do_not_depend_on_which_other_images_there_are(shared_data: Path) -> None:
    pairs = [(str(path), path.parent.name) for path in sorted((shared_data / "cats-dogs").glob("*/*1.jpg"))[:6]]
    dataset = open_in_memory([*pairs, (str(shared_data / "README.md"), "cat")])
    everything = compute_backbone_features(dataset, np.arange(7), threads=1)
    assert everything.indices.tolist() == list(range(6))  # the last is no image
    assert everything.values.shape == (6, 1280)
    some = compute_backbone_features(dataset, np.array([4, 1]), threads=1)
    assert some.values == pytest.approx(everything.values[some.indices], abs=1e-4)
