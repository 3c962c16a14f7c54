"""Patches of images as training data for a head, labeled from bounding boxes.

Source: Oquab, Bottou, Laptev & Sivic 2014, §3.2.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.box_annotations import BACKGROUND, Annotation, Box
from svertka.data.dataset import Dataset, Images, Ints, Pixels
from svertka.data.parallel_map import map_chunks
from svertka.data.pixel_statistics import SquareImages
from svertka.data.preprocessing import Preprocess, resize_image
from svertka.errors import DataError, ImageError
from svertka.localization.patch_labels import intersection_over_union, label_patches
from svertka.localization.patch_pyramid import (
    SCALES,
    PyramidLevel,
    pyramid_levels,
)
from svertka.progress import progress

BACKGROUND_SHARE = 0.1  # share of the patches without an object that are trained on
CHUNK = 32  # images whose sizes are read together
WHOLE_IMAGE = -1  # in place of a level: the central square, which a classifier of whole images sees
MAX_OVERLAP = 0.5  # with the central square (intersection over union), above which a background patch is left out
CACHED_IMAGES = 2  # decoded images; a batch often begins in the image in which the last one ended


@dataclass(frozen=True, eq=False)
class PatchDataset:
    """P patches of images, each used like an image of its own.

    Attributes:
        images: The images.
        squares: Prepared squares of the whole images, by the index of the image.
        preprocess: Preprocessing of the network.
        sizes: Height and width of the images, by the index of the image.
        places: For each patch the index of its image, its level, and its row and column there, (P, 4); for a whole
            image the level is `WHOLE_IMAGE`, row and column are 0.
        labels: Class of each patch, (P,); background has the index after the last class.
    """

    images: Images
    squares: SquareImages
    preprocess: Preprocess
    sizes: Mapping[int, tuple[int, int]]
    places: Ints
    labels: Ints

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Return the name of the image, and the edges of the patch in it."""
        if self.is_whole[index]:
            return self.images.name(int(self.places[index, 0]))
        return f"{self.images.name(int(self.places[index, 0]))} {self.edges(index)}"

    @cached_property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        """Whether each patch is a whole image, (P,)."""
        found: npt.NDArray[np.bool_] = self.places[:, 1] == WHOLE_IMAGE
        return found

    def digest(self, index: int) -> bytes:
        """Return a digest that is equal for equal places in images of equal content."""
        return self.digest_in(self.images.digest(int(self.places[index, 0])), index)

    def digest_in(self, content: bytes, index: int) -> bytes:
        """Return `digest` from the digest `content` of the image."""
        place = f"{self.places[index, 1:].tolist()} {self.preprocess.size}"
        return hashlib.blake2b(content + place.encode(), digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of the patch, pixels of its image."""
        left, top, right, bottom = self.edges(index)
        return bottom - top, right - left

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """Return the pixels of the patch, (H, W, 3) uint8."""
        left, top, right, bottom = self.edges(index)
        return self.images.read(int(self.places[index, 0]))[top:bottom, left:right]

    def edges(self, index: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the patch, pixels of its image."""
        image, level, row, column = self.places[index].tolist()
        if level == WHOLE_IMAGE:
            return central_square_edges(*self.sizes[image], self.preprocess)
        (there,) = _levels(*self.sizes[image], self.preprocess)[level].edges(np.array([(row, column)]))
        left, top, right, bottom = np.rint(there).astype(int).tolist()
        return left, top, right, bottom

    @property
    def pixel_settings(self) -> str:
        """What decides which pixels the files of the images have, besides their content."""
        return getattr(self.squares, "pixel_settings", "")

    def __getitem__(self, indices: Ints) -> Pixels:
        """Return the patches at `indices`, resized, (B, size, size, C) uint8; of whole images, the central square."""
        size, channels = self.preprocess.size, self.preprocess.channels
        rows = np.empty((len(indices), size, size, channels), np.uint8)
        is_whole, of_image = self.is_whole[indices], self.places[indices, 0]
        squares = self.squares[of_image[is_whole]]
        offset = (squares.shape[1] - size) // 2
        rows[is_whole] = squares[:, offset : offset + size, offset : offset + size]

        def cut(image: int) -> None:
            rgb = self._decoded(image)
            scale = rgb.shape[0] / self.sizes[image][0], rgb.shape[1] / self.sizes[image][1]
            for place in np.flatnonzero(~is_whole & (of_image == image)).tolist():
                left, top, right, bottom = self.edges(int(indices[place]))
                tops, lefts = _scaled(top, bottom, scale[0]), _scaled(left, right, scale[1])
                rows[place] = resize_image(rgb[tops, lefts], size, size, channels, self.preprocess.interpolation)

        # One image at a time for each thread: large ones take much memory.
        for _ in map_chunks(cut, np.unique(of_image[~is_whole]).tolist(), torch.get_num_threads(), 1):
            pass
        return rows

    @cached_property
    def _decoded(self) -> Callable[[int], Pixels]:
        """A function that decodes an image, (H, W, 3) uint8, at least as large as its smallest patches need."""
        enough = math.ceil(max(SCALES) * self.preprocess.size)

        @lru_cache(CACHED_IMAGES)
        def read(image: int) -> Pixels:
            with _naming_image(self.images, image):
                return self.images.read(image, min_side=enough)

        return read


def _scaled(begin: int, end: int, scale: float) -> slice:
    """Return `begin` to `end`, pixels of an image, for the image resized by `scale`; at least one pixel."""
    first = round(begin * scale)
    return slice(first, max(round(end * scale), first + 1))


def cut_training_patches(
    dataset: Dataset,
    indices: Ints,
    annotations: Mapping[int, Annotation],
    squares: SquareImages,
    preprocess: Preprocess,
    *,
    seed: int,
    threads: int,
) -> PatchDataset:
    """Return the patches that a head is trained on.

    Each whole image is one of them, with its own class, so that the classifier also recognizes whole images;
    background patches that show nearly the same are left out. Of an image with an annotation, all patches that show an
    object are taken, and a tenth of the others at random. Of an image without one, only patches that contain most of
    it are taken, with its class, since the place of the object is unknown.

    Args:
        dataset: The images.
        indices: Indices of those to cut.
        annotations: Boxes by index.
        squares: Prepared squares of all images of the data set.
        preprocess: Preprocessing of the network.
        seed: Seed of the random choice.
        threads: Threads that read sizes.

    Raises:
        DataError: A box lies outside its image, or an image is too small or cannot be read.
    """
    names = tuple(name for name in dataset.names if name != BACKGROUND)
    sizes: dict[int, tuple[int, int]] = {}
    places: list[Ints] = []
    labels: list[Ints] = []

    def size_of(index: int) -> tuple[int, int]:
        with _naming_image(dataset.images, index):
            return dataset.images.size(index)

    with progress("cutting patches", len(indices), "images") as shown_progress:
        chunks = map_chunks(size_of, indices.tolist(), threads, CHUNK)
        for index, size in zip(indices.tolist(), (size for chunk in chunks for size in chunk), strict=True):
            sizes[index] = size
            levels = _levels_or_refuse(dataset.images, index, *size, preprocess)
            name = dataset.names[dataset.labels[index]]
            central = central_square_edges(*size, preprocess)
            generator = np.random.default_rng((seed, index))
            of_image = _select_patches(levels, name, names, annotations.get(index), size, central, generator)
            places.append(np.insert(of_image[0], 0, index, axis=1))
            labels.append(of_image[1])
            shown_progress.advance()
    return PatchDataset(dataset.images, squares, preprocess, sizes, np.concatenate(places), np.concatenate(labels))


def _select_patches(
    levels: Sequence[PyramidLevel],
    name: str,
    names: tuple[str, ...],
    annotation: Annotation | None,
    size: tuple[int, int],
    central: tuple[int, int, int, int],
    generator: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Return level, row and column, (P, 3), and the label, (P,), of the patches of one image, called `name`."""
    height, width = size
    boxes: tuple[Box, ...] = () if name == BACKGROUND else (Box(name, 0, 0, width, height),)
    if annotation is not None:
        annotation.check(width, height)
        boxes = annotation.boxes
    background = len(names)
    background_share = BACKGROUND_SHARE if annotation is not None or name == BACKGROUND else 0.0
    places = [np.array([(WHOLE_IMAGE, 0, 0)])]
    labels = [np.array([background if name == BACKGROUND else names.index(name)])]
    for number, level in enumerate(levels):
        edges = level.edges(level.places)
        of_level = label_patches(edges, boxes, names)
        is_drawn = generator.random(len(of_level)) < background_share
        is_kept = (of_level != background) | (is_drawn & (intersection_over_union(edges, central) <= MAX_OVERLAP))
        places.append(np.insert(level.places[is_kept], 0, number, axis=1))
        labels.append(of_level[is_kept])
    return np.concatenate(places).astype(np.int64), np.concatenate(labels).astype(np.int64)


def central_square_edges(height: int, width: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part of an image that a classifier sees, pixels."""
    side = max(1, round(min(height, width) * min(1.0, preprocess.size / preprocess.resize)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _levels(height: int, width: int, preprocess: Preprocess) -> list[PyramidLevel]:
    """Return the levels of an image of `height` × `width` pixels, with windows of the size of the network's input."""
    return pyramid_levels(height, width, (preprocess.size, preprocess.size), (1, 1))


def _levels_or_refuse(
    images: Images, index: int, height: int, width: int, preprocess: Preprocess
) -> list[PyramidLevel]:
    """Return the levels of the image at `index`; raise DataError if it is too small."""
    try:
        return _levels(height, width, preprocess)
    except ImageError as error:
        raise DataError(f"{images.name(index)} has {error}; remove it and start again") from error


@contextmanager
def _naming_image(images: Images, index: int) -> Iterator[None]:
    """Raise DataError with the name of the image if it cannot be read in the body."""
    try:
        yield
    except ImageError as error:
        name = images.name(index)
        raise DataError(f"{name} cannot be read: {error}; fix or remove the file and start again") from error
