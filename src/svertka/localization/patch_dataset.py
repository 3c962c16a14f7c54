"""Patches of many images, as if they were images of their own: what a head is trained on, given boxes.

Source: Oquab, Bottou, Laptev & Sivic 2014, §3.2.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.bounding_boxes import BACKGROUND, Annotation, Box
from svertka.data.dataset import Dataset, Images, Ints, Pixels
from svertka.data.parallel_map import map_chunks
from svertka.data.pixel_statistics import Rows
from svertka.data.preprocessing import Preprocess, resize_image
from svertka.errors import DataError, ImageError
from svertka.localization.patch_grid import BACKGROUND_SHARE, SCALES, Level, covered_alike, labels_of, levels
from svertka.progress import progress

CHUNK = 32  # images whose sizes are read together
WHOLE = -1  # in place of a level: what a classifier is shown of an image that it is to name, its central square
CENTRAL = 0.5  # a patch that shares more than this of what it and that square cover shows the same
KEPT = 2  # decoded images: the next batch goes on in the one in which the last one ended


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of `pictures`: each an image of its own, and a row as a network of `preprocess` sees it.

    `squares`: of the whole images, by their index. `sizes`: height and width of the images, by their index. `places`:
    the image of each patch, its level, its row and its column there, (P, 4); for a whole image the level `WHOLE`, and
    zeros. `labels`: (P,), of a class, or as many as there are classes for background.
    """

    pictures: Images
    squares: Rows
    preprocess: Preprocess
    sizes: Mapping[int, tuple[int, int]]
    places: Ints
    labels: Ints

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """The image, and the edges of the patch in it."""
        if self.is_whole[index]:
            return self.pictures.name(int(self.places[index, 0]))
        return f"{self.pictures.name(int(self.places[index, 0]))} {self.edges(index)}"

    @cached_property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        """Which of them are whole images, (P,)."""
        found: npt.NDArray[np.bool_] = self.places[:, 1] == WHOLE
        return found

    def digest(self, index: int) -> bytes:
        """Equal for equal places in images of equal content."""
        return self.digest_in(self.pictures.digest(int(self.places[index, 0])), index)

    def digest_in(self, content: bytes, index: int) -> bytes:
        """The same, where the digest of the image is known."""
        place = f"{self.places[index, 1:].tolist()} {self.preprocess.size}"
        return hashlib.blake2b(content + place.encode(), digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the patch in its image."""
        left, top, right, bottom = self.edges(index)
        return bottom - top, right - left

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """What the patch holds of its image, (H, W, 3) uint8."""
        left, top, right, bottom = self.edges(index)
        return self.pictures.read(int(self.places[index, 0]))[top:bottom, left:right]

    def edges(self, index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the image, pixels."""
        picture, level, row, column = self.places[index].tolist()
        if level == WHOLE:
            return central(*self.sizes[picture], self.preprocess)
        (there,) = _levels(*self.sizes[picture], self.preprocess)[level].edges(np.array([(row, column)]))
        left, top, right, bottom = np.rint(there).astype(int).tolist()
        return left, top, right, bottom

    def __getitem__(self, indices: Ints) -> Pixels:
        """The rows at `indices`, (B, size, size, C) uint8; of whole images, what a classifier is shown of them."""
        size, channels = self.preprocess.size, self.preprocess.channels
        rows = np.empty((len(indices), size, size, channels), np.uint8)
        is_whole, of_picture = self.is_whole[indices], self.places[indices, 0]
        squares = self.squares[of_picture[is_whole]]
        offset = (squares.shape[1] - size) // 2
        rows[is_whole] = squares[:, offset : offset + size, offset : offset + size]

        def cut(picture: int) -> None:
            rgb = self._decoded(picture)
            scale = rgb.shape[0] / self.sizes[picture][0], rgb.shape[1] / self.sizes[picture][1]
            for place in np.flatnonzero(~is_whole & (of_picture == picture)).tolist():
                left, top, right, bottom = self.edges(int(indices[place]))
                tops, lefts = _scaled(top, bottom, scale[0]), _scaled(left, right, scale[1])
                rows[place] = resize_image(rgb[tops, lefts], size, size, channels)

        # One image at a time for each thread: large ones take much memory.
        for _ in map_chunks(cut, np.unique(of_picture[~is_whole]).tolist(), torch.get_num_threads(), 1):
            pass
        return rows

    @cached_property
    def _decoded(self) -> Callable[[int], Pixels]:
        """Gives an image, (H, W, 3) uint8, at least as large as its smallest patches need it."""
        enough = math.ceil(max(SCALES) * self.preprocess.size)

        @lru_cache(KEPT)
        def read(picture: int) -> Pixels:
            with _telling(self.pictures, picture):
                return self.pictures.read(picture, min_side=enough)

        return read


def _scaled(begin: int, end: int, scale: float) -> slice:
    """The pixels from `begin` to `end` of an image, in the same at another `scale`; one at least."""
    first = round(begin * scale)
    return slice(first, max(round(end * scale), first + 1))


def cut_out(
    dataset: Dataset,
    indices: Ints,
    annotations: Mapping[int, Annotation],
    squares: Rows,
    preprocess: Preprocess,
    *,
    seed: int,
    threads: int,
) -> Patches:
    """The patches of the images at `indices` of `dataset` that a head learns from; `squares`: of its images.

    Each image is one of them, of the class that it has, so that the classifier can name whole images, too;
    background that shows nearly the same is left out. Of an image with an annotation, those that show an object, and a
    tenth of all others, drawn at random with `seed`. Of one without, only those that hold most of it, as what the
    image is labelled with: where in it the object is, nobody says.

    Raises:
        DataError: a box lies outside its image, or an image is too small or cannot be read.
    """
    names = tuple(name for name in dataset.names if name != BACKGROUND)
    background = len(names)
    sizes: dict[int, tuple[int, int]] = {}
    places: list[Ints] = []
    labels: list[Ints] = []

    def size_of(picture: int) -> tuple[int, int]:
        with _telling(dataset.images, picture):
            return dataset.images.size(picture)

    with progress("cutting patches", len(indices)) as shown_progress:
        chunks = map_chunks(size_of, indices.tolist(), threads, CHUNK)
        for picture, (height, width) in zip(indices.tolist(), (size for some in chunks for size in some), strict=True):
            sizes[picture] = height, width
            annotation = annotations.get(picture)
            name = dataset.names[dataset.labels[picture]]
            boxes: tuple[Box, ...]
            if annotation is None:
                boxes = () if name == BACKGROUND else (Box(name, 0, 0, width, height),)
            else:
                annotation.check(width, height)
                boxes = annotation.boxes
            knows_background = annotation is not None or name == BACKGROUND
            middle = central(height, width, preprocess)
            places.append(np.array([(picture, WHOLE, 0, 0)]))
            labels.append(np.array([background if name == BACKGROUND else names.index(name)]))
            draws = np.random.default_rng((seed, picture))
            for number, level in enumerate(_levels_of(dataset.images, picture, height, width, preprocess)):
                edges = level.edges(level.places)
                of_all = labels_of(edges, boxes, names)
                drawn = draws.random(len(of_all)) < (BACKGROUND_SHARE if knows_background else 0.0)
                kept = (of_all != background) | (drawn & (covered_alike(edges, middle) <= CENTRAL))
                there = level.places[kept]
                places.append(np.concatenate([np.full((len(there), 2), (picture, number)), there], axis=1))
                labels.append(of_all[kept])
            shown_progress.advance()
    return Patches(
        dataset.images,
        squares,
        preprocess,
        sizes,
        np.concatenate(places).astype(np.int64),
        np.concatenate(labels).astype(np.int64),
    )


def central(height: int, width: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the network is shown of a picture that it is to name, pixels."""
    side = max(1, round(min(height, width) * min(1.0, preprocess.size / preprocess.resize)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _levels(height: int, width: int, preprocess: Preprocess) -> list[Level]:
    """Those of an image of `height` × `width`, whose windows are squares of as many pixels as the network takes."""
    return levels(height, width, (preprocess.size, preprocess.size), (1, 1))


def _levels_of(pictures: Images, picture: int, height: int, width: int, preprocess: Preprocess) -> list[Level]:
    try:
        return _levels(height, width, preprocess)
    except ImageError as error:
        raise DataError(f"{pictures.name(picture)} has {error}; take it away, and start again") from error


@contextmanager
def _telling(pictures: Images, picture: int) -> Iterator[None]:
    """Say of a picture that cannot be read in the body which one it is."""
    try:
        yield
    except ImageError as error:
        name = pictures.name(picture)
        raise DataError(f"{name} cannot be read: {error}; put it right or take it away, and start again") from error
