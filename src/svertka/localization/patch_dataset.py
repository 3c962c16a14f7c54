"""Patches of many pictures, as if they were pictures of their own: what a head is trained on, given boxes.

Source: Oquab, Bottou, Laptev & Sivic 2014, §3.2.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.compiler.optimize import fastest
from svertka.data.bounding_boxes import BACKGROUND, Annotation, Box
from svertka.data.dataset import Dataset, Ints, Pictures, Pixels
from svertka.data.prefetch import ahead
from svertka.data.preprocessing import Preprocess, resized
from svertka.device import device_of
from svertka.errors import DataError, PictureError
from svertka.graph.shared_crops import Windows, windows
from svertka.localization.patch_grid import BACKGROUND_SHARE, Level, covered_alike, labels_of, levels
from svertka.localization.score_maps import shown
from svertka.malloc import give_back_freed_memory
from svertka.progress import progress

CHUNK = 32  # pictures that are decoded together
WHOLE = -1  # in place of a level: what a classifier is shown of a picture that it is to name, its central square
CENTRAL = 0.5  # a patch that shares more than this of what it and that square cover shows the same
TOGETHER = 16  # central squares that go through the network together


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of `pictures`: each a picture of its own, and a row of squares as the network sees them.

    `window`, `stride`, `share`, `cut`: of the network, as `graph.windows.Windows` has them, the last as `place`.
    `sizes`: height and width of the pictures, by their index. `places`: the picture of each patch, its level, its row
    and its column there, (P, 4); for a whole picture the level `WHOLE`, and zeros. `labels`: (P,), of a class, or as
    many as there are classes for background.
    """

    pictures: Pictures
    preprocess: Preprocess
    window: tuple[int, int]
    stride: tuple[int, int]
    share: float
    cut: int
    sizes: Mapping[int, tuple[int, int]]
    places: Ints
    labels: Ints

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """The picture, and the edges of the patch in it."""
        if self.is_whole[index]:
            return self.pictures.name(int(self.places[index, 0]))
        return f"{self.pictures.name(int(self.places[index, 0]))} {self.edges(index)}"

    @property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        """Which of them are whole pictures, (P,)."""
        found: npt.NDArray[np.bool_] = self.places[:, 1] == WHOLE
        return found

    def digest(self, index: int) -> bytes:
        """Equal for equal places in pictures of equal content."""
        return self.digest_in(self.pictures.digest(int(self.places[index, 0])), index)

    def digest_in(self, content: bytes, index: int) -> bytes:
        """The same, where the digest of the picture is known."""
        place = f"{self.places[index, 1:].tolist()} {self.window} {self.stride}"
        return hashlib.blake2b(content + place.encode(), digest_size=16).digest()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the patch in its picture."""
        left, top, right, bottom = self.edges(index)
        return bottom - top, right - left

    def read(self, index: int, min_side: int | None = None) -> Pixels:
        """What the patch holds of its picture, (H, W, 3) uint8."""
        left, top, right, bottom = self.edges(index)
        return self.pictures.read(int(self.places[index, 0]))[top:bottom, left:right]

    def edges(self, index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the picture, pixels."""
        picture, level, row, column = self.places[index].tolist()
        if level == WHOLE:
            height, width = self.sizes[picture]
            return central(height, width, self.preprocess)
        (there,) = self._levels(picture)[level].edges(np.array([(row, column)]))
        left, top, right, bottom = np.rint(there).astype(int).tolist()
        return left, top, right, bottom

    def __getitem__(self, indices: Ints) -> Pixels:
        """The squares at `indices`, (B, height, width, C) uint8, cut from the resized pictures."""
        squares = np.empty((len(indices), *self.window, self.preprocess.channels), np.uint8)
        for rgb, level, some in self._by_level(indices):
            if level is None:
                squares[some] = self._central_square(rgb)
                continue
            whole = resized(rgb, *level.size, self.preprocess.channels)
            for place, (row, column) in zip(some, self.places[indices[some], 2:].tolist(), strict=True):
                y, x = row * self.stride[0], column * self.stride[1]
                squares[place] = whole[y : y + self.window[0], x : x + self.window[1]]
        return squares

    @property
    def dearness(self) -> float:
        """What the features cost, beside those of patch by patch: the first layers run over all once."""
        shown_one_by_one = len(self) * self.window[0] * self.window[1]
        found = {(picture, level) for picture, level, *_ in self.places[~self.is_whole].tolist()}
        slid_over = sum(int(np.prod(self._levels(picture)[level].size)) for picture, level in found)
        return self.share + (1 - self.share) * slid_over / max(shown_one_by_one, 1)

    @torch.inference_mode()
    def features(self, network: nn.Module, indices: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """What `network`, which takes the squares, gives for those at `indices`: some of these, and (n, D) for them.

        It has the layers of the network that the patches were cut out for, but for some last ones. Its first layers run
        over each picture at each level once.
        """
        yield from self._whole_features(network, indices[self.is_whole[indices]])
        indices = indices[~self.is_whole[indices]]
        parts = windows(network, (1, self.preprocess.channels, *self.window), self.cut)
        parts.rest = fastest(parts.rest, parts.shape, len(indices))
        for rgb, level, some in self._by_level(indices):
            assert level is not None
            picture = shown(self.preprocess, rgb, level).to(device_of(network), memory_format=torch.channels_last)
            yield indices[some], parts(picture, self.places[indices[some], 2:])

    def _whole_features(self, network: nn.Module, indices: Ints) -> Iterator[tuple[Ints, Tensor]]:
        """The same for whole pictures, which the network is shown as ever."""
        network = fastest(network, (self.preprocess.channels, *self.window), len(indices))
        for start in range(0, len(indices), TOGETHER):
            some = indices[start : start + TOGETHER]
            squares = torch.from_numpy(self[some]).permute(0, 3, 1, 2)
            shown_whole = self.preprocess.standardise(squares).contiguous(memory_format=torch.channels_last)
            yield some, network(shown_whole.to(device_of(network)))

    def _central_square(self, rgb: Pixels) -> Pixels:
        """What of a picture (H, W, 3) the network is shown when it is to name it, (height, width, C)."""
        square = self.preprocess.square(rgb)
        top, left = ((side - window) // 2 for side, window in zip(square.shape, self.window, strict=False))
        return square[top : top + self.window[0], left : left + self.window[1]]

    def _by_level(self, indices: Ints) -> Iterator[tuple[Pixels, Level | None, Ints]]:
        """Each picture at each level that has patches among `indices`, and where in `indices` these stand.

        None in place of a level: the picture whole.
        """
        of_picture, of_level = self.places[indices, :2].T
        there = np.unique(of_picture).tolist()
        decoded = (rgb for some in ahead(self._rgb, there, torch.get_num_threads(), 2) for rgb in some)
        for picture, rgb in zip(there, decoded, strict=True):
            here = of_picture == picture
            # The largest first: the maps of the others then fit into the memory that its maps leave.
            for number in np.unique(of_level[here])[::-1].tolist():
                level = None if number == WHOLE else self._levels(picture)[number]
                yield rgb, level, np.flatnonzero(here & (of_level == number))
            give_back_freed_memory()  # the maps of the next picture have other sizes, and hardly fit into what is kept

    def _rgb(self, picture: int) -> Pixels:
        with _telling(self.pictures, picture):
            return self.pictures.read(picture)

    def _levels(self, picture: int) -> list[Level]:
        return levels(*self.sizes[picture], self.window, self.stride)


def cut_out(
    dataset: Dataset,
    indices: Ints,
    annotations: Mapping[int, Annotation],
    preprocess: Preprocess,
    network: nn.Module,
    *,
    seed: int,
    threads: int,
) -> Patches:
    """The patches of the pictures at `indices` of `dataset` that a head for `network` learns from.

    Each picture is one of them, of the class that it has, so that the classifier can name whole pictures, too;
    background that shows nearly the same is left out. Of a picture with an annotation, those that show an object, and a
    tenth of all others, drawn at random with `seed`. Of one without, only those that hold most of it, as what the
    picture is labelled with: where in it the object is, nobody says.

    Raises:
        DataError: a box lies outside its picture, or a picture is too small or cannot be read.
        UsageError: the network cannot be followed step by step.
    """
    parts = windows(network, preprocess.input_shape)
    names = tuple(name for name in dataset.names if name != BACKGROUND)
    background = len(names)
    sizes: dict[int, tuple[int, int]] = {}
    places: list[Ints] = []
    labels: list[Ints] = []

    def size_of(picture: int) -> tuple[int, int]:
        with _telling(dataset.pictures, picture):
            return dataset.pictures.size(picture)

    with progress("cutting patches", len(indices)) as shown_progress:
        chunks = ahead(size_of, indices.tolist(), threads, CHUNK)
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
            for number, level in enumerate(_levels_of(dataset.pictures, picture, height, width, parts)):
                edges = level.edges(level.places)
                of_all = labels_of(edges, boxes, names)
                drawn = draws.random(len(of_all)) < (BACKGROUND_SHARE if knows_background else 0.0)
                kept = (of_all != background) | (drawn & (covered_alike(edges, middle) <= CENTRAL))
                there = level.places[kept]
                places.append(np.concatenate([np.full((len(there), 2), (picture, number)), there], axis=1))
                labels.append(of_all[kept])
            shown_progress.advance()
    return Patches(
        dataset.pictures,
        preprocess,
        parts.window,
        parts.stride,
        parts.share,
        parts.place,
        sizes,
        np.concatenate(places).astype(np.int64),
        np.concatenate(labels).astype(np.int64),
    )


def central(height: int, width: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the network is shown of a picture that it is to name, pixels."""
    side = max(1, round(min(height, width) * min(1.0, preprocess.size / preprocess.resize)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _levels_of(pictures: Pictures, picture: int, height: int, width: int, parts: Windows) -> list[Level]:
    try:
        return levels(height, width, parts.window, parts.stride)
    except PictureError as error:
        raise DataError(f"{pictures.name(picture)} has {error}; take it away, and start again") from error


@contextmanager
def _telling(pictures: Pictures, picture: int) -> Iterator[None]:
    """Say of a picture that cannot be read in the body which one it is."""
    try:
        yield
    except PictureError as error:
        name = pictures.name(picture)
        raise DataError(f"{name} cannot be read: {error}; put it right or take it away, and start again") from error
