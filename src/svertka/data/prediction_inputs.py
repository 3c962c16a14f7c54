"""Inputs of prediction: files, folders, .npy arrays and images in memory, expanded to single images."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from svertka.data.band_ranges import BandRanges
from svertka.data.dataset import IndexedImage, Pixels
from svertka.data.file_accounting import FileAccount
from svertka.data.file_tree import SOME_SUFFIXES, is_image_content, list_tree
from svertka.data.image_io import (
    DEFAULT,
    SUFFIXES,
    DecodingOptions,
    describe_misnamed,
    describe_unused_parts,
    detect_format,
    measure_intensity_range,
    measure_share_outside,
    read_bytes,
    read_header,
)
from svertka.data.label_tables import TABLE_SUFFIXES
from svertka.data.multiband_npy import HEADER_BYTES, may_be_bands
from svertka.data.preprocessing import ImageLike, load_rgb_image
from svertka.data.rgb_conversion import Range
from svertka.data.shard_storage import is_shard_source
from svertka.data.sharded_images import find_shards, open_shards
from svertka.errors import DataError, ImageError, UsageError
from svertka.escaping import join_first
from svertka.files import is_url, read_first_bytes
from svertka.progress import say
from svertka.text_width import shorten

Measured = TypeVar("Measured")
Input = ImageLike | IndexedImage | ImageError  # an image, or the reason why there is none

ARRAY_LIMIT = 10**6  # images in one .npy file
MEASURED = 100  # 16-bit images whose values are measured
CHANNELS = (1, 3, 4)  # of an array that is one image: grayscale, RGB, RGBA


def list_inputs(images: Iterable[ImageLike], bands: BandRanges | None = None) -> list[tuple[str, Input]]:
    """Return all of `expand_inputs` as a list.

    Raises:
        UsageError: None of the inputs can be an image.
    """
    everything = list(expand_inputs(images, bands))
    if all(isinstance(image, ImageError) for _, image in everything):
        reasons = join_first([f"{name}: {reason}" for name, reason in everything], separator="; ")
        raise UsageError(f"no image among the inputs ({reasons or 'nothing'}); images end in {SOME_SUFFIXES}")
    return everything


def load_pixels(image: Input, decoding: DecodingOptions = DEFAULT) -> Pixels:
    """Return an input as (H, W, 3) uint8, RGB, at full size.

    Raises:
        ImageError: The image cannot be read, or the input is an ImageError.
    """
    if isinstance(image, ImageError):
        raise image
    return load_rgb_image(image, decoding=decoding)


def describe_files(images: Iterable[Input], decoding: DecodingOptions = DEFAULT) -> list[str]:
    """Return sentences on files whose suffix names another format, and on those with unused pages or bands."""
    wrong, unused_parts = [], []
    for path in (Path(one) for one in images if isinstance(one, str | PathLike)):
        with suppress(OSError, ValueError, ImageError):
            name = detect_format(read_first_bytes(path))
            if name is not None and path.suffix and SUFFIXES.get(path.suffix.lower()) != name:
                wrong.append((str(path), name))
            if name == "TIFF" and read_header(read_bytes(path, decoding), decoding).has_unused_parts:
                unused_parts.append(str(path))
    return [*filter(None, (describe_misnamed(wrong), describe_unused_parts(unused_parts)))]


def sample_intensity_ranges(images: Iterable[Input], decoding: DecodingOptions = DEFAULT) -> list[Range]:
    """Return the lowest and highest value of 16-bit files among `images`; of at most `MEASURED` of them."""
    files = [Path(one) for one in images if isinstance(one, str | PathLike)]
    files = [path for path in files if SUFFIXES.get(path.suffix.lower()) != "JPEG"]  # always 8 bits
    return _measure_some(files, decoding, measure_intensity_range)


def sample_shares_outside(images: Iterable[Input], decoding: DecodingOptions) -> list[float]:
    """Return the share of values outside of the ranges of the bands, of at most `MEASURED` files among `images`."""
    files = [Path(one) for one in images if isinstance(one, str | PathLike)]
    return _measure_some(files, decoding, measure_share_outside)


def _measure_some(
    files: Sequence[Path], decoding: DecodingOptions, measure: Callable[[bytes, DecodingOptions], Measured | None]
) -> list[Measured]:
    """Return what `measure` returns for at most `MEASURED` of the files, evenly spread; without None."""
    found = []
    for path in files[:: -(-len(files) // MEASURED) or 1]:
        with suppress(ImageError):
            found.append(measure(read_bytes(path, decoding), decoding))
    return [one for one in found if one is not None]


def expand_inputs(images: Iterable[ImageLike], bands: BandRanges | None = None) -> Iterator[tuple[str, Input]]:
    """Yield each input with its name; a folder becomes its images, a .npy file its arrays.

    What cannot be an image, such as a folder without images, is yielded as an ImageError. Files of a folder that are
    left out are reported on stderr.

    Args:
        images: Paths, PIL images or arrays.
        bands: Of the network's images. With them, a .npy file of (H, W, C) is one image, as it is in a data set.

    Raises:
        UsageError: A .npy file does not hold images.
    """
    for number, image in enumerate(images):
        if not isinstance(image, str | PathLike):
            yield f"#{number}", image
            continue
        text, path = os.fspath(image), Path(image)
        if not text:
            yield "''", ImageError("empty path; name a file or a folder")
        elif is_url(text) and Path(text).suffix.lower() in SUFFIXES:
            yield text, ImageError("a URL; download the image and name the file")
        elif is_shard_source(text):
            yield from _in_shards(text)
        elif _is_folder(path):
            yield from _in_folder(path)
        elif path.suffix.lower() == ".npy" and not (bands is not None and _is_one_image(path)):
            yield from ((f"{path}[{row}]", array) for row, array in enumerate(_read_array(path, bands)))
        elif path.suffix.lower() in TABLE_SUFFIXES and not _is_image(path):
            yield str(path), ImageError("a table or text file, not an image; name the images or their folder")
        else:
            yield str(path), path


def _in_folder(folder: Path) -> Iterator[tuple[str, Input]]:
    try:
        tree = list_tree(folder)
    except DataError as error:
        yield str(folder), ImageError(str(error))
        return
    left_out = FileAccount(tuple(tree.left_out)).sentence()
    paths = tree.images()
    if not paths:
        yield str(folder), ImageError("holds no image" + (f" ({left_out})" if left_out else ""))
    elif left_out:
        say(f"{folder}: {left_out}")
    yield from ((str(folder / path), folder / path) for path in paths)


def _in_shards(source: str) -> Iterator[tuple[str, Input]]:
    try:
        images = find_shards(open_shards(source).images)
    except (DataError, UsageError) as error:
        yield source, ImageError(str(error))
        return
    assert images is not None
    for number, shard in enumerate(images.index.shards):
        indices = np.flatnonzero(images.shard_of == number).tolist()
        what = images.location.describe(shard.name)
        yield from ((f"{what}#{place}", IndexedImage(images, index)) for place, index in enumerate(indices))


def _is_image(path: Path) -> bool:
    """Return whether the content of `path` is an image, whatever its suffix."""
    with suppress(OSError, ValueError):
        return is_image_content(read_first_bytes(path))
    return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long
        return False


def _is_one_image(path: Path) -> bool:
    """Return whether a .npy file is not one of many images; a damaged one is refused as an image."""
    try:
        return path.is_file() and may_be_bands(read_first_bytes(path, HEADER_BYTES))
    except OSError:
        return True


def _read_array(path: Path, bands: BandRanges | None) -> npt.NDArray[np.generic]:
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError(2, "no such file")
        array: npt.NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r")  # np.load would also open archives
    except Exception as error:  # whatever a damaged header makes numpy raise
        reason = shorten(" ".join((getattr(error, "strerror", None) or str(error)).split()), 200)
        raise UsageError(f"{path} cannot be read as an array ({reason}); save one of uint8 with numpy.save") from error
    if bands is not None:
        fits = array.ndim == 4 and array.dtype == bands.dtype and array.shape[3] == len(bands)
        wanted = f"{bands.dtype} (H, W, {len(bands)}) or (N, H, W, {len(bands)})"
        return _check_array(path, array, wanted, fits=fits)
    if array.ndim == 3 and array.shape[2] in CHANNELS:  # one image, not many images three pixels wide
        array = array[None]
    is_gray = array.ndim == 3 and array.shape[2] != 2
    fits = array.dtype in (np.uint8, np.uint16) and (is_gray or (array.ndim == 4 and array.shape[3] in CHANNELS))
    return _check_array(path, array, "uint8 (N, H, W), (H, W, 3) or (N, H, W, 3)", fits=fits)


def _check_array(path: Path, array: npt.NDArray[np.generic], wanted: str, *, fits: bool) -> npt.NDArray[np.generic]:
    """Return `array`; raise UsageError if it does not fit, is empty or holds too many images."""
    if fits and len(array) > ARRAY_LIMIT:
        raise UsageError(f"{path} holds {len(array):,} images, more than the limit of {ARRAY_LIMIT:,}; split it")
    if not fits or not all(array.shape[1:]):
        raise UsageError(f"{path} holds {array.dtype} {array.shape}; it needs {wanted}")
    return array
