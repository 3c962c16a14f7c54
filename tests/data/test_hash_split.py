import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.data.dataset import PARTS
from svertka.data.hash_split import hash_to_unit_interval, split_by_hash
from svertka.errors import UsageError

few = settings(max_examples=60, deadline=None)  # a busy machine is no failure

Images = list[tuple[int, int]]  # (content, label); equal contents are copies

images = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=120)
shares = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.6])


def content(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def divide(
    some: Images, val: float = 0.1, test: float = 0.0, parts: list[str] | None = None, *, stratified: bool = False
) -> list[str]:
    """The part of each image."""
    digests = [content(number) for number, _ in some]
    labels = np.array([label for _, label in some], dtype=np.int64)
    given_parts = np.array([""] * len(some) if parts is None else parts, dtype="<U5")
    chosen = split_by_hash(digests, labels, given_parts, val, test, stratified=stratified)
    assert list(chosen) == list(PARTS)
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(len(some)))
    assert all((np.diff(indices) > 0).all() and indices.dtype == np.int64 for indices in chosen.values())
    part_of = {index: part for part, indices in chosen.items() for index in indices.tolist()}
    return [part_of[index] for index in range(len(some))]


def one_label_each(some: Images) -> Images:
    return [(number, number % 4) for number, _ in some]


@few
@given(images, shares, st.sampled_from([0.0, 0.1, 0.3]), st.booleans())
def test_copies_are_never_on_both_sides(some: Images, val: float, test: float, stratified: bool) -> None:
    parts: dict[int, set[str]] = {}
    for (number, _), part in zip(some, divide(some, val, test, stratified=stratified), strict=True):
        parts.setdefault(number, set()).add(part)
    assert all(len(these) == 1 for these in parts.values())


@few
@given(images, st.sampled_from([0.05, 0.1, 0.3]), st.sampled_from([0.0, 0.1, 0.6]), st.booleans())
def test_every_class_can_be_learned_and_chosen_by(some: Images, val: float, test: float, stratified: bool) -> None:
    some = one_label_each(some)
    chosen = divide(some, val, test, stratified=stratified)
    for label in range(4):
        contents = {number for number, its in some if its == label}
        parts = {part for (_, its), part in zip(some, chosen, strict=True) if its == label}
        if len(contents) == 1:
            assert parts == {"train"}
        elif contents:
            assert parts >= {"train", "val"}


@few
@given(images, images)
def test_files_that_come_later_move_none_of_a_class_that_was_well(some: Images, more: Images) -> None:
    some, more = one_label_each(some), one_label_each(more)
    before, after = divide(some, 0.3, 0.2), divide(some + more, 0.3, 0.2)[: len(some)]
    for label in range(4):
        mine = [index for index, (_, its) in enumerate(some) if its == label]
        by_hash = {_by_hash(some[index][0], 0.3, 0.2) for index in mine}
        if by_hash >= {"train", "val"}:
            assert [before[index] for index in mine] == [after[index] for index in mine]


@few
@given(images, shares, st.sampled_from([0.0, 0.1, 0.3]), st.booleans())
def test_stratified_every_small_class_has_its_share(some: Images, val: float, test: float, as_copies: bool) -> None:
    some = one_label_each(some * 2 if as_copies else some)
    chosen = divide(some, val, test, stratified=True)
    for label in range(4):
        parts = {number: part for (number, its), part in zip(some, chosen, strict=True) if its == label}
        taken = list(parts.values())
        assert abs(taken.count("val") - val * len(parts)) <= 1
        assert abs(taken.count("test") - test * len(parts)) <= 1


@few
@given(images, shares, st.sampled_from([0.0, 0.1, 0.3]), st.booleans(), st.randoms())
def test_the_order_of_the_files_does_not_matter(some: Images, val: float, test: float, stratified, random) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert dict(zip(some, divide(some, val, test, stratified=stratified), strict=True)) == dict(
        zip(shuffled, divide(shuffled, val, test, stratified=stratified), strict=True)
    )


@few
@given(st.lists(st.sampled_from(["", "train", "val", "test"]), min_size=1, max_size=60), shares)
def test_parts_of_the_source_stay(parts: list[str], val: float) -> None:
    chosen = divide([(index, index % 2) for index in range(len(parts))], val, 0.3, parts)
    for own, part in zip(parts, chosen, strict=True):
        if own in ("val", "test"):
            assert part == own
        else:
            allowed = {"train"} | ({"val"} - set(parts)) | ({"test"} - set(parts))
            assert part in allowed


def test_a_copy_in_two_published_parts_stays_in_both() -> None:

    assert divide([(1, 0), (1, 0), (2, 0)], parts=["train", "test", "train"])[1] == "test"


def test_shares_are_met_and_one_does_not_move_the_other() -> None:
    many = [(number, 0) for number in range(20_000)]
    small = np.array(divide(many, 0.1, 0.0))
    with_test = np.array(divide(many, 0.1, 0.2))
    larger = np.array(divide(many, 0.3, 0.2))
    # Three standard deviations of a binomial share.
    assert np.mean(small == "val") == pytest.approx(0.1, abs=0.0064)
    assert np.mean(with_test == "test") == pytest.approx(0.2, abs=0.0085)
    assert ((small == "val") == (with_test == "val")).all()
    assert ((with_test == "test") == (larger == "test")).all()
    assert not ((with_test == "val") & (larger != "val")).any()


def test_positions_are_the_same_for_ever() -> None:
    # (printf "svertka split"; cat digest) | b2sum -l 64. Others would move images of everyone from train to val.
    assert hash_to_unit_interval(b"") == pytest.approx(0x236D710A304C0E9B / 2**64, abs=2**-50)
    assert hash_to_unit_interval(content(0)) == pytest.approx(0xCB4E17D9CD2763FA / 2**64, abs=2**-50)


@few
@given(images)
def test_no_val_is_taken_where_none_is_asked_for(some: Images) -> None:
    assert set(divide(some, 0.0)) == {"train"}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (1.0, 0.0), (0.5, 0.5), (0.1, -0.1), (float("nan"), 0.0)])
def test_shares_that_cannot_be(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="below 1"):
        divide([(0, 0)], val, test)


def test_a_thousand_small_classes_are_quick() -> None:
    many = [(number, number % 1000) for number in range(5_000)]
    chosen = np.array(divide(many, 0.01)).reshape(5, 1000)
    assert (chosen == "val").any(axis=0).all()
    assert (chosen == "train").any(axis=0).all()


def _by_hash(number: int, val: float, test: float) -> str:
    u = hash_to_unit_interval(content(number))
    return "val" if u < val else "test" if u >= 1 - test else "train"
