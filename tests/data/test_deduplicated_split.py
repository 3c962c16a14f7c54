"""No image of one part, nor a copy of it, is in another: for every layout that a generator thinks of."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.data.dataset import PARTS, ArrayImages, Dataset
from svertka.data.deduplicated_split import DatasetSplit, split_by_content_as_before, split_dataset
from svertka.data.hash_split import STRATIFIED_BELOW
from svertka.errors import DataError

few = settings(max_examples=40, deadline=None)

# (content, label, part that the source names, group, in which crowd of near-duplicates or 0)
Image = tuple[int, int, str, str, int]
images = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(0, 2),
        st.sampled_from(["", "", "", "train", "val", "test"]),
        st.sampled_from(["", "p", "q", "r", "s", "t"]),
        st.integers(0, 12),
    ),
    min_size=12,
    max_size=80,
)
shares = st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.1, 0.3), (0.3, 0.2)])


def content(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def dataset_of(some: list[Image], *, named: bool, grouped: bool) -> Dataset:
    array = np.zeros((len(some), 1, 1, 1), np.uint8)
    return Dataset(
        "x",
        ("a", "b", "c"),
        ArrayImages(array, "x"),
        np.array([label for _, label, *_ in some], dtype=np.int64),
        np.array([part if named else "" for _, _, part, *_ in some], dtype="<U5"),
        groups=np.array([group for *_, group, _ in some]) if grouped else None,
    )


def crowds(some: list[Image]) -> list[list[int]]:
    """Near-duplicates, two or three of each, so that none is a crowd; one image of each content."""
    found: dict[int, list[int]] = {}
    seen: set[int] = set()
    for index, (number, *_, crowd) in enumerate(some):
        if crowd and number not in seen and len(found.get(crowd, [])) < 2:
            found.setdefault(crowd, []).append(index)
        seen.add(number)
    return [group for group in found.values() if len(group) == 2]


def division_of(
    some: list[Image], val: float, test: float, *, named: bool, grouped: bool, **options: Any
) -> DatasetSplit:
    dataset = dataset_of(some, named=named, grouped=grouped)
    digests = [content(number) for number, *_ in some]
    return split_dataset(dataset, digests, np.arange(len(some)), val, test, alike=crowds(some), **options)


@few
@given(images, shares, st.booleans(), st.integers(0, 2))
def test_no_content_is_in_two_parts(some: list[Image], share: tuple[float, float], named: bool, turn: int) -> None:
    division = division_of(some, *share, named=named, grouped=False, turn=turn)
    held = {part: {some[i][0] for i in division.indices[part]} for part in PARTS}
    assert not held["train"] & held["test"]
    assert not held["train"] & held["val"]
    assert not held["val"] & held["test"]
    everything = np.concatenate(list(division.indices.values())).tolist()
    assert len(everything) == len(set(everything))
    left_out = set(range(len(some))) - set(everything)
    counted = sum(one.count for one in division.overlaps if "left out" in one.how)
    assert counted == len(left_out)
    for index in left_out:  # only what the source itself has twice
        assert some[index][0] in held["train"] | held["val"] | held["test"]


@few
@given(images, shares, st.integers(0, 2))
def test_near_duplicates_are_kept_together(some: list[Image], share: tuple[float, float], turn: int) -> None:
    division = division_of(some, *share, named=False, grouped=False, turn=turn)
    part_of = {some[i][0]: part for part, indices in division.indices.items() for i in indices.tolist()}
    # A content with several labels belongs to several classes, each of which may need it.
    labels = {number: {label for other, label, *_ in some if other == number} for number, *_ in some}
    for one, other in crowds(some):
        if max(len(labels[some[i][0]]) for i in (one, other)) == 1:
            assert part_of[some[one][0]] == part_of[some[other][0]]


@few
@given(images, shares, st.integers(0, 2))
def test_a_group_is_kept_together(some: list[Image], share: tuple[float, float], turn: int) -> None:
    try:
        division = division_of(some, *share, named=False, grouped=True, turn=turn)
    except DataError:  # copies and groups together may leave one unit of a class
        return
    parts_of: dict[str, set[str]] = {}
    for part, indices in division.indices.items():
        for i in indices.tolist():
            parts_of.setdefault(some[i][3], set()).add(part)
    assert all(len(parts) == 1 for group, parts in parts_of.items() if group)
    assert {some[i][1] for i in division.indices["train"]} == {label for _, label, *_ in some}


@few
@given(images, shares, st.sets(st.integers(0, 40)), st.booleans(), st.booleans())
def test_inherited_images_are_never_val_or_test(
    some: list[Image], share: tuple[float, float], known: set[int], named: bool, grouped: bool
) -> None:
    inherited = frozenset(map(content, known))
    try:
        division = division_of(some, *share, named=named, grouped=grouped, inherited=inherited)
    except DataError:
        return
    for part in ("val", "test"):
        assert not {some[i][0] for i in division.indices[part]} & known


def test_large_classes_without_copies_groups_and_look_alikes_are_split_as_before() -> None:
    count = 3 * STRATIFIED_BELOW
    some: list[Image] = [(number, number % 3, "", "", 0) for number in range(count)]
    dataset, digests = dataset_of(some, named=False, grouped=False), [content(number) for number in range(count)]
    for turn in (0, 3):
        now = split_dataset(dataset, digests, np.arange(count), 0.1, 0.2, alike=[], turn=turn).indices
        before = split_by_content_as_before(dataset, digests, np.arange(count), 0.1, 0.2, turn=turn).indices
        assert all(np.array_equal(now[part], before[part]) for part in PARTS)


def test_small_classes_are_in_each_part_in_their_shares() -> None:
    classes = np.repeat([0, 1, 2], [155, 40, 15])
    some: list[Image] = [(number, int(label), "", "", 0) for number, label in enumerate(classes)]
    dataset, digests = dataset_of(some, named=False, grouped=False), [content(number) for number in range(210)]
    for turn in range(5):
        parts = split_dataset(dataset, digests, np.arange(210), 0.1, 0.2, alike=[], turn=turn).indices
        assert {part: np.bincount(classes[parts[part]]).tolist() for part in parts} == {
            "train": [108, 28, 10],
            "val": [16, 4, 2],
            "test": [31, 8, 3],
        }


def test_overlaps_between_parts_are_counted_and_named() -> None:
    some: list[Image] = [(number, number % 3, "train", "", 0) for number in range(100)]
    some += [(number, number % 3, "test", "", 0) for number in (*range(97, 100), *range(200, 257))]
    division = division_of(some, 0.0, 0.0, named=True, grouped=False)
    (overlap,) = division.overlaps
    expected = "3 of 60 test images (5.0 %) are copies of training images and are left out: x #100, x #101, x #102"
    assert overlap.sentence == expected
    assert overlap.is_large
    assert len(division.indices["test"]) == 57
    few_of_many = [*some, *((number, 0, "test", "", 0) for number in range(300, 600))]
    (overlap,) = division_of(few_of_many, 0.0, 0.0, named=True, grouped=False).overlaps
    assert not overlap.is_large


def test_near_duplicates_and_groups_across_parts_are_noted() -> None:
    some: list[Image] = [(n, n % 3, "train", f"g{n}", n if n in (1, 2) else 0) for n in range(60)]
    some += [(100 + n, n % 3, "val", f"g{n + 50}", n if n in (1, 2) else 0) for n in range(20)]
    said = [one.sentence for one in division_of(some, 0.0, 0.0, named=True, grouped=True).overlaps]
    assert said == [
        "2 of 20 val images (10.0 %) are near-duplicates of training images: x #61, x #62",
        "10 of 20 val images (50.0 %) are of groups that are in the training set, too: g50, g51, g52 and 7 more",
    ]


def test_a_large_group_of_look_alikes_is_split_with_a_note() -> None:
    some: list[Image] = [(number, number % 3, "", "", 0) for number in range(100)]
    dataset, digests = dataset_of(some, named=False, grouped=False), [content(number) for number in range(100)]
    division = split_dataset(dataset, digests, np.arange(100), 0.2, 0.0, alike=[list(range(80))])
    assert len(division.indices["val"]) > 5
    assert division.notes == (
        "80 images look nearly the same, too many to keep them in one part; if they belong together, as frames of a "
        "film do, say so with --group",
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_groups_are_divided_in_about_the_shares_and_classes_asked_for(share: float) -> None:
    random = np.random.default_rng(0)
    some: list[Image] = []
    for group in range(60):
        labels = random.choice(3, random.integers(5, 15), p=(0.6, 0.3, 0.1))
        some += [(len(some) + number, int(label), "", f"g{group}", 0) for number, label in enumerate(labels)]
    for turn in range(3):
        val = division_of(some, share, 0.0, named=False, grouped=True, turn=turn).indices["val"]
        assert len(val) / len(some) == pytest.approx(share, abs=0.05)
        labels = np.array([some[i][1] for i in val])
        assert (labels == 2).mean() == pytest.approx(0.1, abs=0.05)


def test_one_large_group_stays_in_train() -> None:
    some: list[Image] = [(number, int(number % 3 == 0), "", "large", 0) for number in range(70)]
    some += [(70 + number, number % 2, "", f"g{number // 2}", 0) for number in range(20)]
    for turn in range(5):
        val = division_of(some, 0.1, 0.0, named=False, grouped=True, turn=turn).indices["val"]
        assert 0 < len(val) <= 20


def test_classes_of_one_group_each_cannot_be_divided() -> None:
    some: list[Image] = [(number, number % 3, "", f"g{number % 3}", 0) for number in range(30)]
    with pytest.raises(DataError, match="x cannot be split by groups: a has only one group, and val needs one"):
        division_of(some, 0.1, 0.0, named=False, grouped=True)
    assert len(division_of(some, 0.0, 0.0, named=False, grouped=True).indices["train"]) == 30


def test_copies_of_other_classes_are_noted() -> None:
    some: list[Image] = [(number % 28, number % 3, "", "", 0) for number in range(30)]
    assert division_of(some, 0.0, 0.0, named=False, grouped=False).notes == (
        "2 images are copies of one of another class, so that one label is wrong: x #0 = x #28, x #1 = x #29",
    )


def test_inherited_images_are_noted() -> None:
    some: list[Image] = [(number, number % 3, "train" if number < 60 else "test", "", 0) for number in range(80)]
    inherited = frozenset(map(content, [*range(20), 70, 71]))
    division = division_of(some, 0.2, 0.0, named=True, grouped=False, inherited=inherited)
    assert division.notes == ("20 images trained the weights that it starts from, and cannot be taken for val or test",)
    assert [one.sentence for one in division.overlaps] == [
        "2 of 20 test images (10.0 %) trained the weights that it starts from and are left out: x #70, x #71"
    ]


@pytest.mark.parametrize("test", [0.0, 0.2])
@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_part_of_copies_alone_is_left_out_and_something_is_left_to_choose_by(
    part: str, test: float, grouped: bool
) -> None:
    learned: list[Image] = [(number, number % 3, "train", f"g{number // 3}", 0) for number in range(60)]
    copies: list[Image] = [(number, number % 3, part, f"g{number // 3}", 0) for number in range(40)]
    division = division_of([*learned, *copies], 0.2, test, named=True, grouped=grouped)
    said = [one.sentence for one in division.overlaps]
    assert said[0].startswith(f"40 of 40 {part} images (100.0 %) are copies of training images and are left out")
    held = {one: {[*learned, *copies][i][0] for i in division.indices[one]} for one in PARTS}
    assert all(index < 60 for some in division.indices.values() for index in some)
    assert len(held["val"]) >= 6
    assert (len(held["test"]) >= 6) == (test > 0)
    assert not held["train"] & (held["val"] | held["test"])
    is_taken = any("taken from the training images instead" in note for note in division.notes)
    assert is_taken == (part == "val" or test > 0)


def test_some_copies_in_test_leave_all_of_val() -> None:
    learned: list[Image] = [(number, number % 2, "train", "", 0) for number in range(60)]
    tested: list[Image] = [(number, number % 2, "test", "", 0) for number in range(30, 90)]
    division = division_of([*learned, *tested], 0.2, 0.0, named=True, grouped=False)
    alone = division_of(learned, 0.2, 0.0, named=False, grouped=False)
    assert division.indices["val"].tolist() == alone.indices["val"].tolist()
    assert sorted(division.indices["test"].tolist()) == list(range(90, 120))
