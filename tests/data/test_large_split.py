"""The split of very many images is that by hash, without copies across parts."""

import hashlib

import numpy as np
import pytest

from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.hash_split import split_by_hash
from svertka.data.large_split import fingerprint_large_dataset, split_large_dataset
from svertka.errors import UsageError

COUNT = 600


def dataset(parts: list[str] | None = None) -> Dataset:
    images = ArrayImages(np.zeros((COUNT, 1, 1, 1), np.uint8), "image")
    return Dataset("here", ("a", "b"), images, np.arange(COUNT) % 2, np.array(parts or [""] * COUNT, "<U5"))


def digests(copies: dict[int, int] | None = None) -> list[bytes]:
    return [
        hashlib.blake2b(str((copies or {}).get(number, number)).encode(), digest_size=16).digest()
        for number in range(COUNT)
    ]


EVERYTHING = np.arange(COUNT)


def test_it_is_the_split_by_hash():
    some = dataset()
    wanted = split_by_hash(digests(), some.labels, some.parts, 0.2, 0.1)
    found = split_large_dataset(some, digests(), EVERYTHING, 0.2, 0.1).indices
    assert {part: indices.tolist() for part, indices in found.items()} == {
        part: indices.tolist() for part, indices in wanted.items()
    }
    assert len(found["val"]) > 80


def test_copies_stay_together_and_another_turn_splits_differently():
    copies = {number: number - 300 for number in range(300, COUNT)}
    first, second = (split_large_dataset(dataset(), digests(copies), EVERYTHING, 0.3, 0, turn=turn) for turn in (0, 1))
    val = set(first.indices["val"].tolist())
    assert {number + 300 for number in val if number < 300} == {number for number in val if number >= 300}
    assert val != set(second.indices["val"].tolist())


def test_copies_of_training_images_are_left_out_of_named_parts():
    parts = ["train"] * 400 + ["val"] * 100 + ["test"] * 100
    found = split_large_dataset(dataset(parts), digests({450: 3, 550: 4, 460: 560}), EVERYTHING, 0.1, 0.1)
    assert set(range(400, 500)) - set(found.indices["val"].tolist()) == {450, 460}
    assert set(range(500, 600)) - set(found.indices["test"].tolist()) == {550}
    assert [(one.part, one.count, one.images) for one in found.overlaps] == [("test", 1, 100), ("val", 1, 100)]


def test_images_that_the_weights_were_trained_on_are_only_trained_on():
    inherited = frozenset(digests()[:100])
    found = split_large_dataset(dataset(), digests(), EVERYTHING, 0.5, 0, inherited=inherited).indices
    assert min(found["val"]) >= 100
    assert set(range(100)) <= set(found["train"].tolist())


def test_impossible_shares_are_refused():
    with pytest.raises(UsageError, match="must each be 0 or more and together below 1"):
        split_large_dataset(dataset(), digests(), EVERYTHING, 0.6, 0.6)


def test_the_fingerprint_depends_on_contents_classes_and_parts_but_not_on_the_order():
    some, contents = dataset(), digests()
    indices = split_large_dataset(some, contents, EVERYTHING, 0.2, 0).indices
    wanted = fingerprint_large_dataset(some, contents, EVERYTHING, indices)
    order = np.random.default_rng(0).permutation(COUNT)
    place = np.argsort(order)
    turned = {part: np.sort(place[chosen]) for part, chosen in indices.items()}
    assert fingerprint_large_dataset(some.take(order), [contents[i] for i in order], EVERYTHING, turned) == wanted
    other = {**indices, "val": indices["val"][1:], "test": indices["val"][:1]}
    assert fingerprint_large_dataset(some, contents, EVERYTHING, other) != wanted
    assert fingerprint_large_dataset(some, digests({7: 8}), EVERYTHING, indices) != wanted
