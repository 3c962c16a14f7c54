"""Labeled images given as Python objects: arrays, a list of (path, label) pairs, or a Dataset of (image, label).

A label is a class, several labels, or a number.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from svertka.data.dataset import ArrayImages, Dataset, FileImages, Ints, Pixels
from svertka.data.folder_and_table_sources import natural_sort_key
from svertka.data.target_columns import MANY_NUMBERS
from svertka.errors import DataError, ImageError, UsageError
from svertka.files import parse_path
from svertka.progress import progress
from svertka.tasks import LARGEST_NUMBER, MultiLabel, Regression
from svertka.text_width import shorten

# How runs name such sources. No path looks like this, and nothing can be opened by it.
ARRAYS, FILES, ITEMS = "<arrays>", "<list of files>", "<dataset>"
IN_MEMORY = (ARRAYS, FILES, ITEMS)

MAX_KEPT_BYTES = 2**30  # images of a Dataset that are kept; those of larger ones are read again when needed

SHAPES = "(N, H, W), (N, H, W, 3) or (N, 3, H, W)"
CHANNELS = (1, 3)
NUMBER = "target"  # name of a number, as of the column of a table


@runtime_checkable
class Indexable(Protocol):
    """What has a length and items by number, such as a list or a `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Array = npt.NDArray[Any] | torch.Tensor
Source = str | PathLike[str] | Dataset | Indexable


def open_in_memory(source: Indexable) -> Dataset:
    """Return the labeled images of a source that is not named by a path.

    Args:
        source: One of
            - a pair of arrays: images uint8 of shape (N, H, W), (N, H, W, 3) or (N, 3, H, W), and N labels;
            - a list of (path, label) pairs;
            - a map-style Dataset of (image, label), as PyTorch has them. An image is a PIL image or an array, uint8,
              of shape (H, W), (H, W, 3) or (3, H, W).
            A label is a class, an integer or a string; several labels, a list or set of strings or K values of 0 and
            1; or a number, a float. In arrays: (N,) integers are classes; (N, K) values of 0 and 1 are K labels, or
            classes if each row has one 1; and floats (N,) or (N, 1) are numbers. Floats (N,) that could be the numbers
            of classes are refused.

    Returns:
        The images; no part is named, so that training splits them.

    Raises:
        UsageError: The source is none of these, is empty, or has an image or label that cannot be used.
        DataError: An item of the Dataset cannot be read.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        raise UsageError("source is an array without labels; give the pair (images, labels)")
    if isinstance(source, dict):
        raise UsageError("source is a dict; give the pair (images, labels), or a list of (path, label) pairs")
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray | torch.Tensor):
        return _from_arrays(*source)
    if len(source) == 0:
        raise UsageError(f"source is an empty {type(source).__name__}; it must hold labeled images")
    return _from_pairs(source) if isinstance(source, list | tuple) else _from_items(source)


def _from_arrays(images: Array, labels: Any) -> Dataset:
    stack = _channels_last(_as_uint8(images, "images are"), "images", SHAPES, batched=True)
    if not isinstance(labels, np.ndarray | torch.Tensor | list | tuple):
        raise UsageError(f"labels are of type {type(labels).__name__}; give an array or a list of integers or strings")
    given = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    if isinstance(given, np.ndarray) and given.ndim not in (1, 2):
        raise UsageError(
            f"labels have shape {_shape(given)}; give (N,) classes or numbers, or (N, K) values of 0 and 1"
        )
    if len(given) != len(stack):
        raise UsageError(f"there are {len(stack):,} images and {len(given):,} labels; give one label per image")
    return _dataset(ARRAYS, ArrayImages(np.ascontiguousarray(stack), "image"), list(given))


def _from_pairs(pairs: Sequence[Any]) -> Dataset:
    paths = []
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str | PathLike)):
            raise UsageError(f"item {index} of source is {shorten(repr(pair))}; give a (path, label) pair")
        paths.append(str(parse_path(pair[0])))
    return _dataset(FILES, FileImages(Path(), paths), [pair[1] for pair in pairs])


def _from_items(source: Indexable) -> Dataset:
    """Read all items once, for their labels and content hashes; keep the images if they are small and of one shape."""
    labels: list[Any] = []
    hashes: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    kept: list[Pixels] | None = []
    kept_bytes = 0
    with progress("reading", len(source), "images") as shown:
        for index in range(len(source)):
            pixels, label = _read_item(source, index)
            labels.append(label)
            hashes.append(_digest(pixels))
            sizes.append((pixels.shape[0], pixels.shape[1]))
            kept_bytes += pixels.nbytes
            if kept and (kept[0].shape != pixels.shape or kept_bytes > MAX_KEPT_BYTES):
                kept = None
            if kept is not None:
                kept.append(pixels)
            shown.advance()
    if kept is not None:
        return _dataset(ITEMS, ArrayImages(np.stack(kept), "item"), labels)
    return _dataset(ITEMS, TorchDatasetImages(source, hashes, sizes), labels)


class TorchDatasetImages:
    """Images of a Dataset of (image, label), read whenever they are needed.

    Args:
        source: The Dataset.
        hashes: Content hash of each image, 16 bytes.
        sizes: Height and width of each image, pixels.
    """

    def __init__(self, source: Indexable, hashes: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> None:
        self.source, self.hashes, self.sizes = source, hashes, sizes
        self._lock = threading.Lock()  # a Dataset need not be safe for threads

    def __len__(self) -> int:
        return len(self.hashes)

    def name(self, index: int) -> str:
        """Return "item #INDEX"."""
        return f"item #{index}"

    def digest(self, index: int) -> bytes:
        """Return the hash of the pixels; equal to that of the same pixels in an array."""
        return self.hashes[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels."""
        return self.sizes[index]

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return the image as RGB, (H, W, 3) uint8.

        Raises:
            ImageError: As `pixels`.
        """
        pixels = self.pixels(index)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def pixels(self, index: int) -> Pixels:
        """Return the image as the Dataset has it, (H, W, 1) or (H, W, 3) uint8.

        Raises:
            ImageError: The Dataset returned another image before.
        """
        with self._lock:
            pixels, _ = _read_item(self.source, index)
        if _digest(pixels) != self.hashes[index]:
            raise ImageError("it differs each time it is read; remove random transforms from the Dataset")
        return pixels


def _read_item(source: Indexable, index: int) -> tuple[Pixels, Any]:
    """Return the image (H, W, 1 or 3) uint8 and the label of an item.

    Raises:
        UsageError: The item is not an image with its label.
        DataError: The Dataset raised an exception.
    """
    try:
        item = source[index]
    except Exception as error:  # whatever the code of the user raises
        raise DataError(f"item {index} of source cannot be read ({shorten(repr(error))}); fix or remove it") from error
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise UsageError(f"item {index} of source is of type {type(item).__name__}; give (image, label)")
    image, label = item
    what = f"the image of item {index}"
    if isinstance(image, Image.Image):
        array: npt.NDArray[Any] = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    elif isinstance(image, np.ndarray | torch.Tensor):
        array = _as_uint8(image, f"{what} is")
    else:
        raise UsageError(f"{what} is of type {type(image).__name__}; give a PIL image or an array of uint8")
    return np.ascontiguousarray(_channels_last(array, what, "(H, W), (H, W, 3) or (3, H, W)", batched=False)), label


def _channels_last(array: npt.NDArray[Any], what: str, shapes: str, *, batched: bool) -> Pixels:
    """Return images (…, H, W), (…, H, W, C) or (…, C, H, W) as (…, H, W, C), C being 1 or 3."""
    inner = array.shape[1:] if batched else array.shape
    have = f"{what} {'have' if batched else 'has'} shape {_shape(array)}"
    if len(inner) == 2:
        array, inner = array[..., None], (*inner, 1)
    elif len(inner) != 3 or not (inner[0] in CHANNELS or inner[2] in CHANNELS):
        raise UsageError(f"{have}; give {shapes}")
    elif inner[0] in CHANNELS and inner[2] in CHANNELS:
        raise UsageError(
            f"{have}, in which the channels may be first or last; give images of more than 3 pixels a side"
        )
    if not array.size:
        raise UsageError(f"{have}, which has no pixels; give {shapes}")
    return array if inner[2] in CHANNELS else np.moveaxis(array, -3, -1)


def _dataset(source: str, images: Any, labels: list[Any]) -> Dataset:
    """Return the dataset of `images` with these labels; classes are sorted, integers by value."""
    labels = [one.detach().cpu().numpy() if isinstance(one, torch.Tensor) else one for one in labels]
    parts = np.full(len(labels), "", "<U5")
    if all(_is_number(one) for one in labels):
        return Dataset(source, (NUMBER,), images, _numbers(labels), parts, task=Regression())
    if any(_is_several(one) for one in labels):
        names, targets = _several_labels(labels)
        if isinstance(labels[0], np.ndarray) and (targets.sum(1) == 1).all():  # one-hot, as in tables: classes
            return Dataset(source, names, images, targets.argmax(1).astype(np.int64), parts)
        return Dataset(source, names, images, targets, parts, task=MultiLabel())
    values = [_label(label, index) for index, label in enumerate(labels)]
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        raise UsageError("some labels are integers and some are strings; give one kind")
    key: Callable[[Any], Any] = natural_sort_key if str in kinds else int
    classes = sorted(set(values), key=key)
    number = {value: place for place, value in enumerate(classes)}
    indices: Ints = np.array([number[value] for value in values], dtype=np.int64)
    return Dataset(source, tuple(map(str, classes)), images, indices, parts)


def _is_number(label: Any) -> bool:
    """Return whether a label is a number to predict: a float, or an array of one float."""
    return isinstance(label, float) or (
        isinstance(label, np.ndarray | np.floating) and label.size == 1 and label.dtype.kind == "f"
    )


def _is_several(label: Any) -> bool:
    """Return whether a label is a collection: of names, or of values of 0 and 1."""
    return isinstance(label, set | frozenset | list | tuple) or (isinstance(label, np.ndarray) and label.ndim == 1)


def _numbers(labels: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Return the numbers (N,).

    Raises:
        UsageError: One is NaN or infinite, or they could be the numbers of classes.
    """
    values = np.array([float(np.asarray(one).reshape(())) for one in labels])
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UsageError(f"label {bad[0]} is {values[bad[0]]}; give numbers that are finite")
    large = np.flatnonzero(np.abs(values) > LARGEST_NUMBER)
    if len(large):
        raise UsageError(
            f"label {large[0]} is {values[large[0]]:g}, beyond ±{LARGEST_NUMBER:g}; give numbers in a larger unit"
        )
    distinct = np.unique(values)
    if np.ndim(labels[0]) == 0 and len(distinct) <= MANY_NUMBERS and (distinct == np.rint(distinct)).all():
        raise UsageError(
            f"labels are floats with the {len(distinct)} whole values {', '.join(f'{one:g}' for one in distinct[:3])}, "
            "…; give integers if they are classes, or shape (N, 1) if they are numbers to predict"
        )
    return values


def _several_labels(labels: Sequence[Any]) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Return the names of K labels, and which of them each image has, (N, K) float32.

    Raises:
        UsageError: A label is neither a set of strings nor an array of 0 and 1, or the arrays differ in length.
    """
    if all(isinstance(one, set | frozenset | list | tuple) and all(isinstance(name, str) for name in one)
           for one in labels):  # fmt: skip
        names = sorted({name for one in labels for name in one}, key=natural_sort_key)
        if "" in names or not names:
            raise UsageError("a label is an empty string, or there is none; give the names of labels")
        return tuple(names), np.array([[name in one for name in names] for one in labels], np.float32)
    rows = [np.asarray(one) for one in labels]
    for index, row in enumerate(rows):
        if row.ndim != 1 or row.shape != rows[0].shape or not np.isin(row, (0, 1)).all():
            raise UsageError(
                f"label {index} is {shorten(repr(labels[index]))}; give a list of strings for each image, or as many "
                "values of 0 and 1 for each"
            )
    if len(rows[0]) < 2:
        raise UsageError("labels have one value of 0 or 1 for each image, which are two classes; give shape (N,)")
    return tuple(map(str, range(len(rows[0])))), np.stack(rows).astype(np.float32)


def _label(label: Any, index: int) -> int | str:
    """Return a label as an int or a str.

    Raises:
        UsageError: It is neither, or an empty string.
    """
    if isinstance(label, torch.Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, str):
        if not label.strip():
            raise UsageError(f"label {index} is empty; give the name of a class")
        return str(label)
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return int(label)
    raise UsageError(f"label {index} is {shorten(repr(label))}; give integers or strings")


def _digest(pixels: Pixels) -> bytes:
    """Return the content hash of one image, (H, W, C) uint8, as of an image in an array."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def _as_uint8(array: Array, what: str) -> Pixels:
    """Return an array or tensor of uint8 as an array; `what` begins the sentence that refuses another."""
    name = str(array.dtype).removeprefix("torch.")
    if name != "uint8":
        advice = "; values from 0 to 1 become that by (255 * images).round()" if "float" in name else ""
        raise UsageError(f"{what} {name}; give uint8 values from 0 to 255{advice}")
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def _shape(array: npt.NDArray[Any]) -> str:
    return f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"
