"""Stored features are what the frozen part gives; what changed is computed anew, and nothing else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from svertka.compiler.optimize import MANY_IMAGES, Optimized
from svertka.conv import native_support
from svertka.data.augmentation import Flip, PadCrop
from svertka.data.folder_and_table_sources import open_folder
from svertka.data.gpu_jpeg import GpuDecodedSquares
from svertka.data.image_disk_cache import prepare_images
from svertka.data.image_io import DecodingOptions
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import StorageError
from svertka.files import cache_folder
from svertka.models.registry import MODELS
from svertka.transfer import feature_cache as features_module
from svertka.transfer.feature_cache import (
    available_cache_bytes,
    cache_in_memory,
    cache_on_disk,
    count_missing,
    feature_bytes_per_image,
)
from svertka.transfer.freeze import FrozenPrefix, split_at_frozen

PICTURES = 40


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Counting(FrozenPrefix):
    """As `FrozenPrefix`; it counts the pictures that it is given."""

    seen = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return super().forward(inputs)


@pytest.fixture
def frozen() -> Counting:
    torch.manual_seed(0)
    made = split_at_frozen(MODELS["resnet20"].build(classes=10, channels=1, size=8), "layer3", (1, 1, 8, 8))
    assert made is not None
    return Counting(made.frozen.prefix)


def rows() -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:PICTURES] * 15.9).astype(np.uint8)[..., None]


def digests(pictures: np.ndarray) -> list[bytes]:
    return [one.tobytes() for one in pictures]


def batches(pictures: np.ndarray, **options: Any) -> BatchLoader:
    preprocess = options.pop("preprocess", Preprocess(size=8, resize=8, mean=(0.3,), std=(0.4,)))
    labels = np.arange(len(pictures)) % 10
    return BatchLoader(pictures, labels, np.arange(len(pictures)), preprocess, batch_size=16, **options)


SHAPE = (32, 4, 4)


@pytest.mark.usefixtures("quiet")
def test_features_in_the_same_batches_are_bit_identical(frozen: Counting) -> None:
    pictures = batches(rows())
    features = cache_on_disk(pictures, frozen, SHAPE, digests(rows()))
    for with_pictures, with_features in zip(pictures.epoch(0), features.epoch(0), strict=True):
        assert torch.equal(frozen(with_pictures.images), with_features.images)
        assert torch.equal(with_pictures.labels, with_features.labels)
        assert (with_pictures.indices == with_features.indices).all()


def test_features_in_other_batches_differ_by_rounding(frozen: Counting) -> None:
    pictures = batches(rows(), shuffle=True, seed=3)
    features = cache_on_disk(pictures, frozen, SHAPE, digests(rows()))
    for with_pictures, with_features in zip(pictures.epoch(5), features.epoch(5), strict=True):
        expected = frozen(with_pictures.images)
        assert (with_features.images - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("quiet")
@pytest.mark.skipif(bool(native_support.why_not()), reason="no kernels here")
def test_optimized_features_are_cached_bit_identically(frozen: Counting) -> None:
    pictures = batches(rows())
    expected = [frozen(batch.images) for batch in pictures.epoch(0)]
    frozen.optimize((1, 8, 8), MANY_IMAGES)
    assert isinstance(frozen.optimized, Optimized)
    features = cache_on_disk(pictures, frozen, SHAPE, digests(rows()))
    for batch, with_features, plain in zip(pictures.epoch(0), features.epoch(0), expected, strict=True):
        assert torch.equal(frozen(batch.images), with_features.images)
        assert (with_features.images - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize(("pictures", "hastened"), [(10, False), (16_383, False), (16_384, True)])
def test_frozen_part_is_optimized_for_many_images(frozen: Counting, pictures: int, hastened: bool) -> None:
    names = set(frozen.state_dict())
    frozen.optimize((1, 8, 8), pictures)
    assert (frozen.optimized is not None) == (hastened and not native_support.why_not())
    assert set(frozen.state_dict()) == names  # as which features are stored


def test_cached_features_are_not_computed_again(frozen: Counting) -> None:
    pictures = rows()
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    assert frozen.seen == PICTURES
    cache_on_disk(batches(pictures, shuffle=True, seed=1), frozen, SHAPE, digests(pictures))
    assert frozen.seen == PICTURES

    pictures[7] = 255 - pictures[7]
    features = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    assert frozen.seen == PICTURES + 1
    expected = frozen(batches(pictures).images(np.array([7]), 0))
    assert torch.allclose(features.images(np.array([7]), 0), expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_missing_features_are_counted_without_computing_any(frozen: Counting) -> None:
    pictures = rows()
    some, every = batches(pictures[:30]), batches(pictures)
    names = digests(pictures)
    assert count_missing(every, frozen, SHAPE, names) == PICTURES
    cache_on_disk(some, frozen, SHAPE, names)
    frozen.seen = 0
    assert count_missing(some, frozen, SHAPE, names) == 0
    assert count_missing(every, frozen, SHAPE, names) == 10
    assert count_missing(every, frozen, SHAPE, names, half=True) == PICTURES
    mirrored = batches(pictures, augmentations=(Flip(),))
    assert count_missing(mirrored, frozen, SHAPE, names, variants=3) == 3 * PICTURES
    assert frozen.seen == 0


def test_other_weights_or_preprocessing_miss_the_cache(frozen: Counting) -> None:
    pictures = rows()
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    brighter = Preprocess(size=8, resize=8, mean=(0.2,), std=(0.4,))
    cache_on_disk(batches(pictures, preprocess=brighter), frozen, SHAPE, digests(pictures))
    assert frozen.seen == 2 * PICTURES
    norm = next(module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean[0] += 1e-3
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    assert frozen.seen == 3 * PICTURES


def test_damaged_row_is_computed_again(frozen: Counting) -> None:
    pictures = rows()
    expected = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures)).images(np.arange(PICTURES), 0)
    (file,) = (cache_folder("features")).glob("*/rows")
    content = bytearray(file.read_bytes())
    content[5 * feature_bytes_per_image(SHAPE, half=False)] ^= 0x40
    file.write_bytes(content)
    again = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures)).images(np.arange(PICTURES), 0)
    assert frozen.seen == PICTURES + 1
    assert torch.allclose(again, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_half_precision_keeps_eleven_bits(frozen: Counting) -> None:
    pictures = rows()
    single = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures)).images(np.arange(PICTURES), 0)
    half = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures), half=True).images(np.arange(PICTURES), 0)
    assert half.dtype == torch.float32
    assert (half - single).abs().max() <= 2**-11 * single.abs().max()
    assert not torch.equal(half, single)


@pytest.mark.usefixtures("quiet")
def test_variants_follow_the_first_epochs_and_are_then_random(frozen: Counting) -> None:
    pictures = rows()
    changed = batches(pictures, augmentations=(PadCrop(pixels=1), Flip()), seed=5)
    features = cache_on_disk(changed, frozen, SHAPE, digests(pictures), variants=3)
    assert frozen.seen == 3 * PICTURES
    everything = np.arange(PICTURES)
    variants = [features.images(everything, variant) for variant in range(3)]
    for variant, found in enumerate(variants):
        expected = torch.cat([frozen(batch.images) for batch in changed.epoch(variant)])
        assert torch.equal(found, expected)
    later = [features.images(everything, epoch) for epoch in (3, 4)]
    assert not torch.equal(*later)
    for found in later:
        which = torch.stack([(found == one).flatten(1).all(1) for one in variants])
        assert which.any(0).all()
        assert which.any(1).all()  # each variant is drawn by some of 40


def test_full_cache_is_an_error(frozen: Counting, small_disk: Callable[[int], AbstractContextManager[None]]) -> None:
    pictures = rows()
    with pytest.raises(StorageError, match="no room for more features.*--cache-limit.*--no-cache"):
        cache_on_disk(
            batches(pictures), frozen, SHAPE, digests(pictures), limit=10 * feature_bytes_per_image(SHAPE, half=False)
        )
    with small_disk(30 * feature_bytes_per_image(SHAPE, half=False)), pytest.raises(StorageError):
        cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))  # what was written before serves


def test_available_bytes_respect_the_limit() -> None:
    assert available_cache_bytes(10_000) == pytest.approx(10_000, abs=feature_bytes_per_image((1,), half=False))
    assert feature_bytes_per_image(SHAPE, half=False) - feature_bytes_per_image(SHAPE, half=True) == 2 * 32 * 16


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("half", [False, True])
def test_features_in_memory_match_those_on_disk(frozen: Counting, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = rows()
    changed = batches(pictures, augmentations=(PadCrop(pixels=1), Flip()), seed=5)
    on_disk = cache_on_disk(changed, frozen, SHAPE, digests(pictures), variants=2, half=half)
    seen = frozen.seen
    in_memory = cache_in_memory(changed, frozen, SHAPE, variants=2, half=half)
    assert frozen.seen == seen + 2 * PICTURES
    monkeypatch.setattr(features_module, "IN_MEMORY", 0)
    each_time = cache_in_memory(changed, frozen, SHAPE, variants=2, half=half)
    for epoch in (0, 1, 2):
        for expected, one, other in zip(*(some.epoch(epoch) for some in (on_disk, in_memory, each_time)), strict=True):
            assert torch.equal(expected.images, one.images)
            assert other.images.numpy() == pytest.approx(expected.images.numpy(), abs=1e-3 if half else 1e-5)


@pytest.mark.usefixtures("quiet")
def test_row_damaged_during_training_is_computed_again(frozen: Counting) -> None:
    pictures = rows()
    features = cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    everything = np.arange(PICTURES)
    expected = features.images(everything, 0).clone()
    newest = max((cache_folder("features")).glob("*/rows"), key=lambda path: path.stat().st_mtime_ns)
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        file.write(b"\xff" * 64)
    assert features.images(everything, 0).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_cache_size_is_announced_before_computing(frozen: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = np.concatenate([rows() + np.uint8(shift) for shift in range(14)])
    cache_on_disk(batches(rows()), frozen, SHAPE, digests(rows()))
    assert capsys.readouterr().err == ""  # 83 kB are not worth a word
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    assert f"features will take about 1.08 MB in {cache_folder('features')}, of at most" in capsys.readouterr().err
    cache_on_disk(batches(pictures), frozen, SHAPE, digests(pictures))
    assert capsys.readouterr().err == ""  # they are there


def test_features_that_do_not_fit_are_not_computed(frozen: Counting) -> None:
    fit = 30 * feature_bytes_per_image(SHAPE, half=False)
    with pytest.raises(StorageError, match="no room for more features"):
        cache_on_disk(batches(rows()), frozen, SHAPE, digests(rows()), limit=fit)
    assert frozen.seen == 0
    assert sum(path.stat().st_size for path in cache_folder("features").glob("*/rows")) == 0


class Damaged:
    """Rows of which two cannot be decoded."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        bad = np.flatnonzero(np.isin(indices, [3, 30]))
        if len(bad):
            raise UnreadableRowsError(bad, [(f"{index}.jpg", "truncated") for index in indices[bad].tolist()])
        return self.pictures[indices]


@pytest.mark.parametrize("cache", [cache_on_disk, cache_in_memory])
def test_images_that_cannot_be_read_have_no_features(frozen, capsys, cache):
    pictures = rows()
    others = [index for index in range(PICTURES) if index not in (3, 30)]
    wanted = cache_in_memory(batches(pictures[others]), frozen, SHAPE).images(np.arange(len(others)), 0)
    keys = (digests(pictures),) if cache is cache_on_disk else ()
    for _ in range(2):
        found = list(cache(batches(Damaged(pictures)), frozen, SHAPE, *keys).epoch(0))
        assert np.concatenate([batch.indices for batch in found]).tolist() == others
        assert torch.allclose(torch.cat([batch.images for batch in found]), wanted, atol=1e-5)
        assert [batch.count for batch in found] == [16, 16, 8]
        assert "left out: 30.jpg cannot be read: truncated" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_features_of_other_pixels_of_the_same_files_are_not_found(frozen: Counting, tmp_path: Path) -> None:
    """The range of 16-bit values, limits at which decoding reduces images, and GPUs change pixels."""
    for number in range(12):
        deep = np.random.default_rng(number).integers(0, 1024, (8, 8), np.uint16)
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(deep).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    whole = open_folder(tmp_path)
    for step, (intensity_range, max_pixels, on_gpu, computed) in enumerate(
        [
            (None, None, False, 12),
            ((0, 1023), None, False, 12),
            ((0, 1023), None, False, 0),
            ((0, 1023), 10_000, False, 12),
            ((0, 1023), 10_000, True, 12),
        ]
    ):
        dataset = whole.with_decoding(DecodingOptions.up_to(max_pixels)).with_intensity_range(intensity_range)
        prepared = prepare_images(dataset, 8, 1, threads=1)
        loader = batches(prepared.rows)
        if on_gpu:
            loader.rows = GpuDecodedSquares(prepared.rows, None, None, None, None, torch.device("cpu"))  # type: ignore[arg-type]
        assert count_missing(loader, frozen, SHAPE, prepared.digests) == computed, step
        if not on_gpu:
            cache_on_disk(loader, frozen, SHAPE, prepared.digests)
