"""Detection of data sets whose images have bands instead of colors, and measurement of their values."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from svertka.data.band_layout import BandLayout
from svertka.data.band_ranges import MAX_BANDS, BandRanges, BandType, choose_band_ranges
from svertka.data.content_hash import unwrap_subset
from svertka.data.dataset import Dataset, EncodedImages, FileImages, Ints
from svertka.data.image_io import detect_format, sample_bands
from svertka.data.multiband_file import describe_missing_decoder, read_band_layout
from svertka.errors import DataError, ImageError, UsageError

BAND_FORMATS = ("TIFF", "NumPy")
LOOKED_AT = 32  # files whose headers tell the bands of a data set; of images in shards, the first
MEASURED = 256  # training images whose values give the ranges


def find_bands(dataset: Dataset) -> BandRanges | None:
    """Return the bands of the images, with the ranges of their values in a sample; None if most are gray or RGB.

    Raises:
        UsageError: Most images are TIFF files of several bands, which cannot be decoded, because tifffile is missing.
    """
    source, where = unwrap_subset(dataset.images)
    if not isinstance(source, EncodedImages) or not len(where):
        return None
    count = min(LOOKED_AT, len(where))
    # Images in shards are read shard by shard, so only those of the first are looked at.
    looked_at = np.linspace(0, len(where) - 1, count) if isinstance(source, FileImages) else np.arange(count)
    layouts, missing = {}, None
    for index in np.unique(looked_at.astype(np.int64)).tolist():
        found = _read_bands(source, int(where[index]))
        layouts[index] = None if found is None else found[1]
        missing = missing or (None if found is None else describe_missing_decoder(found[0]))
    kinds = Counter(None if one is None else (one.count, one.dtype) for one in layouts.values())
    kind, _ = kinds.most_common(1)[0]
    if kind is None:
        return None
    if missing:
        raise UsageError(f"{dataset.source} has TIFF files of {kind[0]} bands: {missing}")
    alike = [index for index, one in layouts.items() if one is not None and (one.count, one.dtype) == kind]
    return _measure(dataset, alike, cast(BandType, kind[1]))


def measure_bands(dataset: Dataset, bands: BandRanges, indices: Ints) -> BandRanges:
    """Return the same bands with the ranges of the values of the images at `indices`; of many images, of a sample.

    Raises:
        DataError: None of the images can be read.
    """
    places = np.unique(np.linspace(0, len(indices) - 1, min(MEASURED, len(indices))).astype(np.int64))
    return _measure(dataset, indices[places].tolist(), bands.dtype)


def _read_bands(source: EncodedImages, place: int) -> tuple[bytes, BandLayout] | None:
    """Return a file whose bands are no colors, and can be used, with its header; None of another image."""
    try:
        content = source.read_bytes(place)
    except ImageError:
        return None
    layout = read_band_layout(content) if detect_format(content) in BAND_FORMATS else None
    return None if layout is None or layout.is_color or not 1 <= layout.count <= MAX_BANDS else (content, layout)


def _measure(dataset: Dataset, indices: Sequence[int], dtype: BandType) -> BandRanges:
    source, where = unwrap_subset(dataset.images)
    assert isinstance(source, EncodedImages)
    samples, reason = [], ""
    for index in indices:
        found = _read_bands(source, int(where[index]))
        if found is None:
            continue
        try:
            samples.append(sample_bands(*found, source.decoding))
        except ImageError as error:
            reason = f": {dataset.images.name(index)}: {error}"
        if dtype == "uint8" and samples:  # bytes stay as they are
            break
    counts = Counter(one.shape[1] for one in samples)
    if not counts:
        raise DataError(f"the images of several bands in {dataset.source} cannot be read{reason}")
    count, _ = counts.most_common(1)[0]
    return choose_band_ranges(dtype, [one for one in samples if one.shape[1] == count])
