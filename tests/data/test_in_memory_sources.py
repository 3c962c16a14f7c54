"""Sources in memory: every layout gives the pixels that went in; what cannot be used is refused in one sentence."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset, TensorDataset

from svertka.curation.dataset_check import check
from svertka.data import in_memory_sources
from svertka.data.dataset import ArrayImages
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.in_memory_sources import TorchDatasetImages, open_in_memory
from svertka.data.source_opener import open_source
from svertka.errors import ImageError, SvertkaError, UsageError

PHOTOGRAPHS = np.stack(load_sample_images().images)[:, 100:164, 200:248]  # two of 64×48 pixels
GRAY = PHOTOGRAPHS[..., 1]
LABELS = np.array([7, -3])


class Items(Dataset[Any]):
    """A PyTorch Dataset of given items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return item() if callable(item) else item


class Twins(Dataset[Any]):
    """A Dataset whose images have another brightness each time."""

    count = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        return np.full((4 + index, 4), self.count, np.uint8), "ab"[index % 2]


LAYOUTS = {
    "channels last": (PHOTOGRAPHS, PHOTOGRAPHS),
    "channels first": (PHOTOGRAPHS.transpose(0, 3, 1, 2), PHOTOGRAPHS),
    "a tensor": (torch.from_numpy(PHOTOGRAPHS).permute(0, 3, 1, 2), PHOTOGRAPHS),
    "gray": (GRAY, GRAY[..., None]),
    "gray, channels last": (GRAY[..., None], GRAY[..., None]),
    "gray, channels first": (GRAY[:, None], GRAY[..., None]),
    "every second row": (np.repeat(PHOTOGRAPHS, 2, 1)[:, ::2], PHOTOGRAPHS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pixels(layout: str) -> None:
    images, expected = LAYOUTS[layout]
    of_arrays = open_in_memory((images, LABELS))
    of_items = open_in_memory(TensorDataset(torch.as_tensor(np.asarray(images)), torch.from_numpy(LABELS)))
    for dataset in (of_arrays, of_items):
        assert dataset.names == ("-3", "7")
        assert dataset.labels.tolist() == [1, 0]
        for index in range(2):
            assert (dataset.images.read(index) == expected[index]).all()
            assert dataset.images.size(index) == (64, 48)
            assert dataset.images.digest(index) == hashlib.blake2b(expected[index].tobytes(), digest_size=16).digest()


def test_items_of_several_sizes_are_read_again_when_needed() -> None:
    photograph = Image.fromarray(PHOTOGRAPHS[0])
    items = [photograph, photograph.crop((0, 0, 20, 30)), np.asarray(photograph.convert("L"))]
    dataset = open_in_memory(Items([(image, name) for image, name in zip(items, ("b", "a", "b"), strict=True)]))
    assert isinstance(dataset.images, TorchDatasetImages)
    assert (dataset.names, dataset.labels.tolist()) == (("a", "b"), [1, 0, 1])
    assert (dataset.images.read(1) == PHOTOGRAPHS[0][:30, :20]).all()
    assert (dataset.images.read(2) == np.asarray(photograph.convert("L"))[..., None]).all()
    assert [dataset.images.size(index) for index in range(3)] == [(64, 48), (30, 20), (64, 48)]


def test_items_beyond_the_memory_limit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory_sources, "MAX_KEPT_BYTES", PHOTOGRAPHS[0].nbytes)
    pairs = Items(list(zip(PHOTOGRAPHS, "ab", strict=True)))
    assert isinstance(open_in_memory(pairs).images, TorchDatasetImages)
    monkeypatch.undo()
    assert isinstance(open_in_memory(pairs).images, ArrayImages)


def test_a_dataset_with_random_transforms_is_refused() -> None:
    with pytest.raises(ImageError, match="differs each time it is read; remove random transforms"):
        open_in_memory(Twins()).images.read(0)


def test_pairs_are_the_files_of_a_folder(digit_folder: Path) -> None:
    folder = open_folder(digit_folder)
    pairs = [(path, path.parent.name) for path in sorted(digit_folder.rglob("*.png"))]
    dataset = open_in_memory(pairs)
    assert dataset.names == folder.names
    assert {(dataset.images.digest(i), int(dataset.labels[i])) for i in range(len(dataset))} == {
        (folder.images.digest(i), int(folder.labels[i])) for i in range(len(folder))
    }
    assert dataset.images.name(5) == str(pairs[5][0])


def test_a_dataset_of_svertka_is_taken_as_it_is(digit_folder: Path) -> None:
    folder = open_folder(digit_folder)
    assert open_source(folder) is folder
    with pytest.raises(UsageError, match="columns=path=a are for a table, but the source is not a table"):
        open_source(folder, columns="path=a")


def test_a_source_in_memory_cannot_be_opened_by_its_name() -> None:
    with pytest.raises(UsageError, match="<arrays> were images in memory; pass them again in Python, or name a folder"):
        open_source(open_in_memory((GRAY, LABELS)).source)


def fail() -> None:
    raise OSError("no such image\nat all")


WRONG: dict[str, tuple[Any, str]] = {
    "floats": ((PHOTOGRAPHS / 255, LABELS), r"images are float64; give uint8 .*\(255 \* images\).round\(\)"),
    "NaN": ((np.full((2, 4, 4), np.nan), LABELS), "images are float64; give uint8"),
    "bfloat16": ((torch.zeros(2, 4, 4, dtype=torch.bfloat16), LABELS), "images are bfloat16; give uint8"),
    "int64": ((GRAY.astype(int), LABELS), "images are int64; give uint8 values from 0 to 255$"),
    "one image": ((GRAY[0], LABELS), r"images have shape \(64, 48\); give \(N, H, W\), \(N, H, W, 3\)"),
    "two channels": ((PHOTOGRAPHS[..., :2], LABELS), r"images have shape \(2, 64, 48, 2\); give"),
    "five axes": ((PHOTOGRAPHS[None], LABELS), r"images have shape \(1, 2, 64, 48, 3\); give"),
    "either way": ((np.zeros((2, 3, 8, 3), np.uint8), LABELS), "channels may be first or last"),
    "no images": ((GRAY[:0], LABELS[:0]), r"images have shape \(0, 64, 48\), which has no pixels"),
    "no pixels": ((GRAY[:, :0], LABELS), r"images have shape \(2, 0, 48\), which has no pixels"),
    "too few labels": ((GRAY, [1]), "there are 2 images and 1 labels; give one label per image"),
    "a label of 2": ((GRAY, np.array([[0, 1], [1, 2]])), r"label 1 is array\(\[1, 2\]\); give a list of strings"),
    "a column of labels": ((GRAY, np.array([[0], [1]])), r"one value of 0 or 1 for each image.*; give shape \(N,\)"),
    "labels in a cube": ((GRAY, np.zeros((2, 1, 1))), r"labels have shape \(2, 1, 1\); give \(N,\) classes or num"),
    "labels of two kinds": ([("a.png", ["x"]), ("b.png", "y")], r"label 0 is \['x'\]; give a list of strings for each"),
    "float labels": ((GRAY, np.array([0.0, 1.0])), r"2 whole values 0, 1, …; give integers if they are classes"),
    "a huge number": ((GRAY, np.array([0.5, 1e300])), r"label 1 is 1e\+300, beyond ±1e\+30; give numbers in a larger"),
    "an infinite number": ((GRAY, np.array([0.5, np.inf])), "label 1 is inf; give numbers that are finite"),
    "a NaN label": ((GRAY, ["a", float("nan")]), "label 1 is nan; give integers or strings"),
    "a missing label": ((GRAY, ["a", None]), "label 1 is None; give integers or strings"),
    "boolean labels": ((GRAY, [True, False]), "label 0 is True; give integers or strings"),
    "an empty label": ((GRAY, ["a", " "]), "label 1 is empty; give the name of a class"),
    "mixed labels": ((GRAY, ["a", 1]), "some labels are integers and some are strings"),
    "one label": ((GRAY, "cat"), "labels are of type str; give an array or a list"),
    "no labels": (PHOTOGRAPHS, r"source is an array without labels; give the pair \(images, labels\)"),
    "a dict": ({"a.png": "cat"}, r"source is a dict; give the pair \(images, labels\), or a list"),
    "an empty list": ([], "source is an empty list; it must hold labeled images"),
    "paths alone": (["a.png", "b.png"], r"item 0 of source is 'a.png'; give a \(path, label\) pair"),
    "an image for a path": ([(GRAY[0], "a")], r"item 0 of source is .*; give a \(path, label\) pair"),
    "an empty path": ([("", "a")], "a path is empty"),
    "NUL in a path": ([("a\0b", "a")], "holds a NUL character"),
    "an empty Dataset": (Items([]), "source is an empty Items; it must hold labeled images"),
    "items of one": (Items([GRAY[0]]), r"item 0 of source is of type ndarray; give \(image, label\)"),
    "items as dicts": (Items([{"image": GRAY[0]}]), r"item 0 of source is of type dict; give \(image, label\)"),
    "ToTensor": (Items([(torch.zeros(3, 8, 8), 1)]), "the image of item 0 is float32; give uint8 .*round"),
    "a path in an item": (Items([("a.png", 1)]), "the image of item 0 is of type str; give a PIL image or an array"),
    "a volume": (Items([(np.zeros((4, 4, 4), np.uint8), 1)]), r"image of item 0 has shape \(4, 4, 4\); give \(H, W\)"),
    "an exception": (Items([fail]), r"item 0 of source cannot be read \(OSError\(.*\); fix or remove it"),
    "a label of no kind": (Items([(GRAY[0], {"a": 1})]), r"label 0 is {.a.: 1}; give integers or strings"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused_in_one_sentence(name: str) -> None:
    source, sentence = WRONG[name]
    with pytest.raises(SvertkaError, match=sentence) as refused:
        open_source(source)
    assert "\n" not in str(refused.value)


KINDS = st.sampled_from([np.uint8, np.int16, np.float32, np.bool_, np.complex64, np.dtype("U3"), np.dtype(object)])
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
LABEL_LISTS = st.lists(st.one_of(st.integers(), st.text(max_size=3), st.floats(), st.none(), st.booleans()), max_size=5)


@settings(max_examples=200, deadline=None)
@given(images=st.tuples(KINDS, SHAPES).flatmap(lambda kind: arrays(*kind)), labels=LABEL_LISTS)
def test_any_arrays_are_read_or_refused(images: npt.NDArray[Any], labels: list[Any]) -> None:
    dataset, refusal = None, ""
    try:
        dataset = open_source((images, labels))
    except SvertkaError as error:
        refusal = str(error)
    if dataset is None:
        assert refusal
        assert "\n" not in refusal
        return
    assert images.dtype == np.uint8
    assert len(dataset) == len(dataset.images) == len(images) == len(labels)
    assert [dataset.names[label] for label in dataset.labels] == [str(label) for label in labels]
    read = np.stack([dataset.images.read(index) for index in range(len(dataset))])
    assert sorted(set(read.ravel().tolist())) == sorted(set(images.ravel().tolist()))


def test_check_reports_images_in_memory() -> None:
    images = np.concatenate([GRAY, GRAY[:1], np.zeros_like(GRAY[:1])])
    found = check((images, ["a", "b", "a", "a"]))
    assert found.classes == {"a": 3, "b": 1}
    assert [copies.paths for copies in found.duplicates] == [("image #0", "image #2")]
    assert (found.modes, found.sizes) == ({"L": 4}, ((48, 64),) * 3)
    assert check((images, [1] * 4)).problems == ("<arrays> has only one class, 1; a classifier needs two or more",)
    sizes = Items([(PHOTOGRAPHS[0], "a"), (GRAY[0, :50], "b")])
    assert check(sizes).modes == {"RGB": 1, "L": 1}
    assert check(Twins()).bad[0] == (
        "item #0",
        "it differs each time it is read; remove random transforms from the Dataset",
    )


def test_labels_and_numbers_in_memory() -> None:
    rows = [["cat"], [], ["dog", "cat"]]
    images = np.zeros((3, 8, 8), np.uint8)
    several = open_in_memory((images, rows))
    assert (several.task.kind, several.names) == ("multi-label", ("cat", "dog"))
    assert several.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    of_files = open_in_memory([("a.png", {"cat"}), ("b.png", frozenset()), ("c.png", ("cat", "dog"))])
    assert (of_files.task, of_files.labels.tolist()) == (several.task, several.labels.tolist())
    of_bits = open_in_memory((images, torch.tensor([[True, False], [False, False], [True, True]])))
    assert (of_bits.names, of_bits.labels.tolist()) == (("0", "1"), several.labels.tolist())
    one_hot = open_in_memory((images, np.eye(3)))
    assert (one_hot.task.is_single_label, one_hot.labels.tolist()) == (True, [0, 1, 2])
    for numbers in (np.array([[1.0], [2.0], [5.0]]), [1.5, 2.0, 5.0], torch.tensor([1.5, 2, 5])):
        found = open_in_memory((images, numbers))
        assert (found.task.kind, found.names, found.labels[2]) == ("regression", ("target",), 5.0)
