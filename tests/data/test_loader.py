import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.data.augmentation import Flip, PadCrop, RandomCrop
from svertka.data.loader import PREFETCHERS, BatchLoader
from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.data.preprocessing import Preprocess
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import DataError, UsageError

COUNT = 103
PREPROCESS = Preprocess(size=12, resize=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def make(rows):
    def make(indices=None, **settings):
        indices = np.arange(COUNT) if indices is None else indices
        return BatchLoader(rows, np.arange(COUNT) % 7, indices, PREPROCESS, **{"batch_size": 20, **settings})

    return make


def gathered(batches, epoch=0, first_step=0):
    """All of an epoch at once: images, labels, indices."""
    parts = list(batches.epoch(epoch, first_step))
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return images, labels, np.concatenate([part.indices for part in parts])


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_epoch_has_every_image_once_in_its_own_order(make):
    batches = make(np.arange(3, COUNT), shuffle=True)
    assert batches.steps == 5
    orders = []
    for epoch in (0, 1, 2):
        _, labels, indices = gathered(batches, epoch)
        assert sorted(indices) == list(range(3, COUNT))
        assert np.array_equal(labels, indices % 7)
        orders.append(indices.tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert gathered(make(np.arange(3, COUNT), shuffle=True), 1)[2].tolist() == orders[1]
    assert gathered(make(np.arange(3, COUNT), shuffle=True, seed=1), 1)[2].tolist() != orders[1]


def test_unshuffled_batches_come_as_they_stand_and_the_last_may_be_smaller(make):
    indices = np.array([9, 4, 4, 100, 7])
    parts = list(make(indices, batch_size=2).epoch(0))
    assert [part.indices.tolist() for part in parts] == [[9, 4], [4, 100], [7]]
    assert [part.count for part in parts] == [2, 2, 1]


def test_images_are_what_prediction_would_give_the_network(make, rows):
    images, _, indices = gathered(make(shuffle=True))
    center = rows[indices, 2:14, 2:14].transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(values)[:, None, None] for values in (PREPROCESS.mean, PREPROCESS.std))
    assert images.dtype == torch.float32
    # float32: values up to 3
    assert np.allclose(images.numpy(), (center - mean) / std, rtol=0, atol=1e-6)


@pytest.mark.parametrize("augmentations", [(), (PadCrop(), Flip(), RandomCrop())])
def test_prefetching_changes_nothing(make, augmentations):
    plain, ahead = (
        gathered(make(shuffle=True, augmentations=augmentations, prefetch=prefetch), 4) for prefetch in (False, True)
    )
    for one, other in zip(plain, ahead, strict=True):
        assert np.array_equal(one, other)
    assert not threads()


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("first_step", [0, 1, 4, 5, 6])
def test_an_epoch_resumes_at_a_step(make, prefetch, first_step):
    batches = make(shuffle=True, augmentations=(PadCrop(), Flip()), prefetch=prefetch)
    whole = list(batches.epoch(2))
    rest = list(batches.epoch(2, first_step))
    assert len(rest) == 6 - first_step
    for one, other in zip(whole[first_step:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert np.array_equal(one.indices, other.indices)


def test_mixed_images_are_those_of_the_batch_with_both_labels(make):
    weights = torch.linspace(0.5, 2, COUNT)
    plain, mixed = (
        list(make(shuffle=True, weights=weights, mixing=mixing).epoch(1))
        for mixing in (MixupAndCutmix(), MixupAndCutmix(mixup=0.5))
    )
    for one, other in zip(plain, mixed, strict=True):
        assert one.mixed is None
        assert torch.equal(one.labels, other.labels)
        before = one.images.roll(1, 0)
        shares = other.mixed.shares[:, None, None, None]
        assert torch.allclose(other.images, shares * one.images + (1 - shares) * before, atol=1e-5)
        assert torch.equal(other.mixed.labels, one.labels.roll(1))
        assert torch.equal(other.mixed.weights, one.weights.roll(1))


def test_an_image_alone_in_its_batch_is_not_mixed(make):
    indices, mixing = np.arange(3), MixupAndCutmix(mixup=1.0)
    *_, alone = make(indices, batch_size=2, mixing=mixing).epoch(0)
    *_, plain = make(indices, batch_size=2).epoch(0)
    assert alone.mixed is None
    assert torch.equal(alone.images, plain.images)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_mixed_images_do_not_depend_on_the_number_of_processes(make, world):
    settings = {"shuffle": True, "augmentations": (PadCrop(),), "mixing": MixupAndCutmix(mixup=0.3, cutmix=1.0)}
    alone = list(make(**settings).epoch(1))
    for rank in range(world):
        for whole, part in zip(alone, make(**settings, rank=rank, world=world).epoch(1), strict=True):
            assert torch.equal(part.images, torch.tensor_split(whole.images, world)[rank])
            assert torch.equal(part.mixed.labels, torch.tensor_split(whole.mixed.labels, world)[rank])
            assert torch.equal(part.mixed.shares, torch.tensor_split(whole.mixed.shares, world)[rank])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_every_batch(make, world):
    settings = {"shuffle": True, "augmentations": (PadCrop(), Flip())}
    alone = list(make(**settings).epoch(1))
    shares = [list(make(**settings, rank=rank, world=world).epoch(1)) for rank in range(world)]
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert [part.count for part in parts] == [whole.count] * world
        for rank, part in enumerate(parts):
            assert np.array_equal(part.indices, np.array_split(whole.indices, world)[rank])
            assert torch.equal(part.images, torch.tensor_split(whole.images, world)[rank])
    # 103 images leave 3 for the last batch: the fourth process has none, and must still take part.
    assert len(shares[-1][-1].images) == (0 if world == 4 else 1)
    assert shares[-1][-1].images.shape[1:] == (3, 12, 12)


def test_stopping_early_ends_the_threads(make):
    stream = make(shuffle=True, prefetch=True).epoch(0)
    next(stream)
    assert 0 < len(threads()) <= PREFETCHERS
    stream.close()
    assert not threads()


@pytest.mark.parametrize("prefetch", [False, True])
def test_what_goes_wrong_in_the_rows_reaches_the_consumer(make, prefetch):
    class Broken:
        def __len__(self):
            return COUNT

        def __getitem__(self, indices):
            if 50 in indices:
                raise OSError("the disk is gone")
            return np.zeros((len(indices), 16, 16, 3), np.uint8)

    batches = make(prefetch=prefetch)
    batches.rows = Broken()
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch.indices for batch in batches.epoch(0))
    assert len(seen) == 2
    assert not threads()


def test_memory_order_is_the_one_asked_for(rows, make):
    plain, last = (
        next(iter(make(memory_format=order, augmentations=(PadCrop(), Flip())).epoch(0))).images
        for order in (torch.contiguous_format, torch.channels_last)
    )
    assert plain.stride() == (432, 144, 12, 1)
    assert last.stride() == (432, 1, 36, 3)
    assert torch.equal(plain, last)
    gray = Preprocess(size=12, resize=16, mean=(0.5,), std=(0.5,))
    batches = BatchLoader(rows[..., :1], np.zeros(COUNT, np.int64), np.arange(COUNT), gray, batch_size=4)
    assert next(iter(batches.epoch(0))).images.stride() == (144, 144, 12, 1)


def test_a_batch_that_cannot_be_filled_is_said(make):
    with pytest.raises(UsageError, match="batch_size=104 exceeds the 103 images; use at most 103"):
        make(batch_size=104, shuffle=True)
    assert make(batch_size=104).steps == 1  # to score them, it need not be full
    with pytest.raises(UsageError, match="batch_size=0 must be at least 1"):
        make(batch_size=0)


@given(st.integers(2, 90), st.integers(2, 40), st.integers(1, 3))
def test_no_batch_is_a_single_image_and_processes_share_them_all(count, size, world):
    size = min(size, count)
    rows = np.zeros((count, 1, 1, 1), np.uint8)
    preprocess = Preprocess(size=1, resize=1, mean=(0.0,), std=(1.0,))
    shares = []
    for rank in range(world):
        batches = BatchLoader(
            rows,
            np.zeros(count, np.int64),
            np.arange(count),
            preprocess,
            batch_size=size,
            shuffle=True,
            rank=rank,
            world=world,
        )
        shares.append([batch.indices for batch in batches.epoch(0)])
        assert len(shares[-1]) == batches.steps
        assert [batch.indices.tolist() for batch in batches.epoch(0, 1)] == [some.tolist() for some in shares[-1][1:]]
    assert sorted(np.concatenate([some for share in shares for some in share]).tolist()) == list(range(count))
    assert min(sum(map(len, whole)) for whole in zip(*shares, strict=True)) >= 2


class Damaged:
    """Rows of which some cannot be decoded."""

    def __init__(self, rows, bad):
        self.rows, self.bad = rows, bad

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        places = np.flatnonzero(np.isin(indices, self.bad))
        if len(places):
            raise UnreadableRowsError(places, [(f"{index}.jpg", "truncated") for index in indices[places].tolist()])
        return self.rows[indices]


@pytest.mark.parametrize("settings", [{}, {"prefetch": True}, {"mixing": MixupAndCutmix(mixup=0.4)}])
def test_unreadable_images_are_left_out_of_their_batches(rows, make, capsys, settings):
    bad = [5, 50, 51]
    whole = make(shuffle=True, seed=3, **settings)
    damaged = make(shuffle=True, seed=3, **settings)
    damaged.rows = Damaged(rows, bad)
    for epoch in (0, 1):
        for one, other in zip(whole.epoch(epoch), damaged.epoch(epoch), strict=True):
            order = one.indices.tolist()
            before = dict(zip(order, [order[-1], *order], strict=False))  # with which an image is mixed
            lost = [one for one in order if one in bad or ("mixing" in settings and before[one] in bad)]
            assert other.indices.tolist() == [one for one in order if one not in lost]
            assert other.count == one.count
            kept = torch.from_numpy(~np.isin(one.indices, lost))
            assert (one.images[kept] == other.images).all()
            assert (one.labels[kept] == other.labels).all()
    said = capsys.readouterr().err
    assert [said.count(f"left out: {index}.jpg cannot be read: truncated") for index in bad] == [1, 1, 1]


def test_ranks_keep_their_shares_if_an_image_is_unreadable(rows, make):
    shares = [make(shuffle=True, rank=rank, world=2) for rank in range(2)]
    for share in shares:
        share.rows = Damaged(rows, [7])
    seen = sorted(index for share in shares for batch in share.epoch(0) for index in batch.indices.tolist())
    assert seen == [index for index in range(COUNT) if index != 7]


def test_more_than_a_tenth_of_unreadable_images_are_an_error(rows, make):
    batches = make(shuffle=True)
    batches.rows = Damaged(rows, list(range(11)))
    with pytest.raises(DataError, match=r"11 of 103 images cannot be read, more than a tenth, such as \d+.jpg"):
        list(batches.epoch(0))
    few = make(np.arange(20))
    few.rows = Damaged(rows, [1, 2, 3])
    with pytest.raises(DataError, match=r"3 of 20 images cannot be read, more than a tenth, such as \d+.jpg"):
        list(few.epoch(0))
