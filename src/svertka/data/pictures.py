"""The squares of a data set's pictures: each decoded once, then read from the disk."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import simplejpeg

from svertka import distributed
from svertka.data.ahead import ahead
from svertka.data.dataset import ArrayPictures, Dataset, Ints, Pictures, Pixels
from svertka.data.digests import digests, origin
from svertka.data.images import PIXEL_LIMIT, SUFFIXES
from svertka.data.preprocess import central_square
from svertka.data.statistics import Rows
from svertka.data.store import Store
from svertka.errors import DataError, PictureError, StorageError
from svertka.files import cache_folder, in_bytes, locked, read_json, write_json
from svertka.progress import progress

__all__ = ["Prepared", "Rows", "prepare"]

VERSION = 1  # of what read_picture and central_square make of a picture; another finds nothing stored
IN_MEMORY = 2**29  # bytes of squares, made from an array, that are kept in memory rather than on disk
CHUNK_BYTES = 2**24  # of squares between two writes to the disk, and
CHUNK = 256  # pictures at most, since each is lost if the process is killed before the write


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set's squares.

    `rows[indices]`: those of the pictures at `indices` (B,), as (B, S, S, C) uint8. `digests`: of their contents, 16
    bytes each, b"" for a file that cannot be read. `bad`: pictures that have no square, by index, and why. `stored`:
    pictures whose square is on disk. `decoded`: contents that this process decoded now. `unstored`: why not every
    square is on disk, a sentence; None if all are, or are in memory.
    """

    rows: Rows
    digests: list[bytes]
    bad: dict[int, str]
    stored: int
    decoded: int
    unstored: str | None


def prepare(
    dataset: Dataset, resize: int, channels: int, pad_to: int = 0, *, threads: int, cache_limit: int | None = None
) -> Prepared:
    """The pictures of `dataset` as `central_square` makes them, ready to be read in any order.

    Files are decoded once, by `threads` threads, and their squares stored in the cache folder, found again by their
    content; `cache_limit`: bytes that all stored squares may take there (None: as `Store` says). Those for which there
    is no room, or no disk that can be written, are decoded whenever asked for. Of several processes each decodes its
    share, and all return when all are done. Pictures in memory stay there, unless their squares are very large.
    """
    squares = _Squares(dataset.pictures, resize, channels, max(resize, pad_to), threads)
    contents, unreadable = digests(dataset.pictures, threads)
    source, where = origin(dataset.pictures)
    if isinstance(source, ArrayPictures):
        if source.array.shape[1:] == squares.shape and resize == squares.side:
            return Prepared(_ArrayRows(source.array, where), contents, {}, 0, 0, None)
        if len(where) * squares.bytes <= IN_MEMORY:
            everything = np.arange(len(where), dtype=np.int64)
            return Prepared(_ArrayRows(squares[everything], everything), contents, {}, 0, len(where), None)
    return _through_store(squares, contents, unreadable, cache_limit)


class _ArrayRows:
    """Rows of an array in memory; `where` (N,) says which of them each picture is."""

    def __init__(self, array: Pixels, where: Ints) -> None:
        self.array, self.where = array, where

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, indices: Ints) -> Pixels:
        return self.array[self.where[indices]]


class _Squares:
    """Rows decoded whenever asked for."""

    def __init__(self, pictures: Pictures, resize: int, channels: int, side: int, threads: int) -> None:
        self.pictures, self.resize, self.channels, self.side, self.threads = pictures, resize, channels, side, threads
        self.shape = (side, side, channels)
        self.bytes = side * side * channels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Ints) -> Pixels:
        rows = np.empty((len(indices), *self.shape), np.uint8)
        for place, square in enumerate(self._pool.map(self._again, indices.tolist())):
            rows[place] = square
        return rows

    def square(self, index: int) -> Pixels:
        """The square of picture `index`.

        Raises:
            PictureError: it cannot be read.
        """
        picture = self.pictures.read(index, min_side=self.resize)
        return central_square(picture, self.resize, self.channels, pad_to=self.side)

    def _again(self, index: int) -> Pixels:
        try:
            return self.square(index)
        except PictureError as error:
            name = self.pictures.name(index)
            raise DataError(f"{name} cannot be read: {error}; put it right or take it away, and start again") from error

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="squares")


class _StoredRows:
    """Rows of `store` at `positions` (N,), and from `squares` where the position is -1."""

    def __init__(self, store: Store, positions: Ints, squares: _Squares) -> None:
        self.store, self.positions, self.squares = store, positions, squares

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, indices: Ints) -> Pixels:
        positions = self.positions[indices]
        away = positions < 0
        if not away.any():
            return self.store.gather(positions)
        rows = np.empty((len(positions), *self.squares.shape), np.uint8)
        rows[~away] = self.store.gather(positions[~away])
        rows[away] = self.squares[indices[away]]
        return rows


def _through_store(squares: _Squares, contents: list[bytes], unreadable: dict[int, str], limit: int | None) -> Prepared:
    pictures = squares.pictures
    keys = {i: _key(contents[i], pictures.name(i)) for i in range(len(pictures)) if i not in unreadable}
    first: dict[bytes, int] = {}
    for index, key in keys.items():
        first.setdefault(key, index)
    reasons = {key: reason for key, reason in _known_bad().items() if key in first}
    store, unstored = _open_store(squares, limit)
    missing = set(first) - set(reasons)
    try:
        missing -= _found(store, missing) if store is not None else set()
    except StorageError as error:  # the cache folder was taken away meanwhile
        store, unstored = None, str(error)
    # Not a share of the missing: another process may have begun to store them, and see others missing.
    share = list(first)[distributed.rank() :: distributed.world()]
    share = [key for key in share if key in missing]
    fresh, unstored = _decode(squares, store, {key: first[key] for key in share}, unstored)
    lasting = {key: str(error) for key, error in fresh.items() if _lasts(error, pictures, first[key], contents)}
    for others in distributed.gathered({key: str(error) for key, error in fresh.items()}):
        reasons.update(others)
    if lasting:
        _remember_bad(lasting)

    bad = unreadable | {index: reasons[key] for index, key in keys.items() if key in reasons}
    positions = np.full(len(pictures), -1, np.int64)
    good = [index for index in keys if index not in bad]
    try:
        positions[good] = store.find([keys[index] for index in good]) if store is not None else -1
    except StorageError as error:
        store, unstored = None, str(error)
    stored = int((positions >= 0).sum())
    left = len(pictures) - len(bad) - stored
    return Prepared(
        rows=_StoredRows(store, positions, squares) if store is not None else squares,
        digests=contents,
        bad=bad,
        stored=stored,
        decoded=len(share),
        unstored=f"{left} pictures are decoded again whenever they are needed: {unstored}" if left else None,
    )


def _key(content: bytes, name: str) -> bytes:
    """What a square is stored under: the content, and the format that the name claims, since that may make it bad."""
    claim = SUFFIXES.get(Path(name).suffix.lower(), "")
    return hashlib.blake2b(content + claim.encode(), digest_size=16).digest()


def _open_store(squares: _Squares, limit: int | None) -> tuple[Store | None, str]:
    """The store of these squares, and why there may be no room in it; None, and why there is none."""
    name = f"squares-{squares.side}-{squares.channels}-resized-{squares.resize}-version-{VERSION}"
    try:
        store = Store(cache_folder("pictures") / name, squares.shape, np.uint8, limit)
    except StorageError as error:
        return None, str(error)
    return store, f"they do not fit into the {in_bytes(store.limit)} that the cache may take"


def _found(store: Store, wanted: set[bytes]) -> set[bytes]:
    """The keys in `store`; none, after it was emptied, if others fill it and the wanted ones would not fit."""
    keys = list(wanted)
    found = {key for key, position in zip(keys, store.find(keys), strict=True) if position >= 0}
    crowded = len(keys) - len(found) > store.room() and len(found) < len(store) / 2
    return set() if crowded and store.clear() else found


def _decode(
    squares: _Squares, store: Store | None, indices: dict[bytes, int], unstored: str
) -> tuple[dict[bytes, PictureError], str]:
    """Decode the pictures at `indices` and store their squares: the bad ones, and why there may be no room."""

    def attempt(key: bytes) -> Pixels | PictureError:
        try:
            return squares.square(indices[key])
        except PictureError as error:
            return error

    bad: dict[bytes, PictureError] = {}
    keys = list(indices)
    chunk = max(min(CHUNK, CHUNK_BYTES // squares.bytes), squares.threads)
    with progress("decoding", len(keys)) as shown:
        for number, results in enumerate(ahead(attempt, keys, squares.threads, chunk)):
            good: dict[bytes, Pixels] = {}
            for key, result in zip(keys[number * chunk :], results, strict=False):
                if isinstance(result, PictureError):
                    bad[key] = result
                else:
                    good[key] = result
            if store is not None and good:
                try:
                    if (store.append(list(good), np.stack(list(good.values()))) < 0).any():
                        store = None  # full; the rest is decoded only to know which are bad
                except StorageError as error:
                    store, unstored = None, str(error)
            shown.advance(len(results))
    return bad, unstored


def _lasts(error: PictureError, pictures: Pictures, index: int, contents: list[bytes]) -> bool:
    """Whether the picture is bad by its content, not because the file or the memory was gone at that moment."""
    try:
        return not isinstance(error.__cause__, MemoryError) and pictures.digest(index) == contents[index]
    except PictureError:
        return False


def _bad_header() -> dict[str, object]:
    """What decides, besides the content, whether a picture is bad."""
    return {"version": VERSION, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__, "limit": PIXEL_LIMIT}


def _known_bad() -> dict[bytes, str]:
    """Pictures that were found bad before, by key, and why."""
    try:
        value = read_json(cache_folder("pictures") / "bad.json", 2**28)
        if value["header"] != _bad_header():
            return {}
        return {bytes.fromhex(key): str(reason) for key, reason in value["reasons"].items()}
    except (OSError, StorageError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # absent, or damaged: they are found again


def _remember_bad(reasons: dict[bytes, str]) -> None:
    with suppress(StorageError):
        folder = cache_folder("pictures")
        with locked(folder / "lock"):
            known = _known_bad() | reasons
            value = {"header": _bad_header(), "reasons": {key.hex(): reason for key, reason in known.items()}}
            write_json(folder / "bad.json", value)
