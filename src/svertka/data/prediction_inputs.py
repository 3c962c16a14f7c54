"""Images as people name them to be looked at: files, folders, arrays in .npy files, images in memory."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Pixels
from svertka.data.file_accounting import FileAccount
from svertka.data.file_tree import SOME_SUFFIXES, is_image_content, list_tree
from svertka.data.image_io import DEFAULT, SUFFIXES, Decoding, format_of, measure_intensities, read_bytes
from svertka.data.label_tables import TABLE_SUFFIXES
from svertka.data.pixel_modes import Range
from svertka.data.preprocessing import ImageLike, load_image
from svertka.errors import DataError, ImageError, UsageError
from svertka.escaping import join_first
from svertka.files import read_start, shorten
from svertka.progress import say

Input = ImageLike | ImageError  # or why there is nothing to look at

ARRAY_LIMIT = 10**6  # images in one .npy file
MEASURED = 100  # images of 16 bits whose values are looked at
CHANNELS = (1, 3, 4)  # of an array that is one image: grey, RGB, RGBA


def list_inputs(images: Iterable[ImageLike]) -> list[tuple[str, Input]]:
    """All of `expanded`.

    Raises:
        UsageError: there is nothing that could be an image.
    """
    everything = list(expand_inputs(images))
    if all(isinstance(image, ImageError) for _, image in everything):
        reasons = join_first([f"{name}: {reason}" for name, reason in everything], separator="; ")
        raise UsageError(f"there is no image in what is named ({reasons or 'nothing'}); images end in {SOME_SUFFIXES}")
    return everything


def load_pixels(image: Input, decoding: Decoding = DEFAULT) -> Pixels:
    """`image` as (H, W, 3) uint8, RGB, whole.

    Raises:
        ImageError: it cannot be read, or is the reason why there is none.
    """
    if isinstance(image, ImageError):
        raise image
    return load_image(image, decoding=decoding)


def find_misnamed_files(images: Iterable[Input]) -> list[tuple[str, str]]:
    """Path and format of the files among `images` that are of another format than their name says."""
    found = []
    for image in images:
        if isinstance(image, str | PathLike):
            path = Path(image)
            with suppress(OSError, ValueError):
                name = format_of(read_start(path))
                if name is not None and path.suffix and SUFFIXES.get(path.suffix.lower()) != name:
                    found.append((str(image), name))
    return found


def sample_intensities(images: Iterable[Input], decoding: Decoding = DEFAULT) -> list[Range]:
    """The values that 16-bit files among `images` use, each lowest and highest; of many, `MEASURED` are looked at."""
    files = [Path(one) for one in images if isinstance(one, str | PathLike)]
    files = [path for path in files if SUFFIXES.get(path.suffix.lower()) != "JPEG"]  # which has 8 bits
    found = []
    for path in files[:: -(-len(files) // MEASURED) or 1]:
        with suppress(ImageError):
            found.append(measure_intensities(read_bytes(path, decoding), decoding))
    return [one for one in found if one is not None]


def expand_inputs(images: Iterable[ImageLike]) -> Iterator[tuple[str, Input]]:
    """Each of `images` with what to call it; a folder is all images in it, a .npy file the arrays in it.

    What cannot be looked at at all, such as a folder without an image, is the reason. What of a folder is left out is
    said on stderr.

    Raises:
        UsageError: a .npy file does not hold images.
    """
    for number, image in enumerate(images):
        if not isinstance(image, str | PathLike):
            yield f"#{number}", image
            continue
        text, path = os.fspath(image), Path(image)
        if not text:
            yield "", ImageError("no path; name a file or a folder")
        elif text.startswith(("http://", "https://")):
            yield text, ImageError("a web address; download the image and name the file")
        elif _is_folder(path):
            yield from _in_folder(path)
        elif path.suffix.lower() == ".npy":
            yield from ((f"{path}[{row}]", array) for row, array in enumerate(_read_array(path)))
        elif path.suffix.lower() in TABLE_SUFFIXES and not _is_image(path):
            yield str(path), ImageError("a table or a text, not an image; name the images, or their folder")
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


def _is_image(path: Path) -> bool:
    """Whether the content of `path` is an image, whatever its name says."""
    with suppress(OSError, ValueError):
        return is_image_content(read_start(path))
    return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _read_array(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise FileNotFoundError(2, "no such file")
        array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives, too
    except Exception as error:  # whatever a damaged header leads the reader to
        reason = shorten(" ".join((getattr(error, "strerror", None) or str(error)).split()), 200)
        raise UsageError(f"{path} cannot be read as an array ({reason}); save one of uint8 with numpy.save") from error
    if array.ndim == 3 and array.shape[2] in CHANNELS:  # one image, not many that are three pixels wide
        array = array[None]
    is_grey = array.ndim == 3 and array.shape[2] != 2
    fits = array.dtype in (np.uint8, np.uint16) and (is_grey or (array.ndim == 4 and array.shape[3] in CHANNELS))
    if fits and len(array) > ARRAY_LIMIT:
        raise UsageError(f"{path} holds {len(array):,} images, more than the limit of {ARRAY_LIMIT:,}; divide it")
    if not fits or not all(array.shape[1:]):
        raise UsageError(
            f"{path} holds {array.dtype} {array.shape}; it needs uint8 (N, H, W), (H, W, 3) or (N, H, W, 3)"
        )
    return array
