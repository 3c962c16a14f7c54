"""Cache of preprocessed images: each is decoded once, then read from the disk."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch

from svertka import distributed
from svertka.data.content_hash import hash_images, hash_names, is_identified_by_name, unwrap_subset
from svertka.data.dataset import ArrayImages, Dataset, EncodedImages, FileImages, Images, Ints, Pixels, get_decoding
from svertka.data.disk_cache import INDEX_ENTRY, REPORTED_BYTES, RecordStore, report_disk_use
from svertka.data.gpu_jpeg import GpuDecodedSquares
from svertka.data.image_io import (
    REDUCED_ABOVE,
    SUFFIXES,
    TURNED,
    DecodingOptions,
    decode_image,
    measure_intensity_range,
    read_header,
)
from svertka.data.jpeg_header import read_plain_jpeg_size
from svertka.data.packed_image import HEAD, ImageInfo, PackedImage, SquareSettings, read_info
from svertka.data.parallel_map import map_chunks
from svertka.data.pixel_statistics import SquareImages
from svertka.data.preprocessing import Fit, Interpolation, select_used_region
from svertka.data.sharded_images import ShardImages
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import ImageError, StorageError
from svertka.files import cache_folder, format_bytes, lock_file, read_json, write_json
from svertka.progress import FirstSentence, progress

__all__ = ["PreparedImages", "SquareImages", "prepare_images"]

VERSION = 3  # of the results of `image_io.decode_image` and `PackedImage`; part of the folder's name
IN_MEMORY = 2**29  # bytes of squares of an array that are kept in memory; larger ones are computed when needed
CHUNK_BYTES = 2**24  # of squares per write to the disk
AT_ONCE = 16  # images whose headers a thread reads before it hands them over
CHUNK = 256  # images per write at most: they are lost if the process is killed before
SAMPLED = 32  # images whose sizes predict the size of the cache
SURVEYED = 1000  # images in shards, or of very many files, whose sizes are taken for those of all
STREAMED = "images in shards are decoded at each read"
STREAMED_ABOVE = 50_000  # files that are not decoded before they are needed
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # of files that are not cut off
END_BYTES = 1024  # at the end of a file, among which its end must be
TOGETHER = 8  # images that a thread decodes at a time


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images of a data set as squares of one size.

    Attributes:
        rows: `rows[indices]` is (B, S, S, C) uint8.
        digests: Content digest of each image, 16 bytes, or that of `hash_names`; b"" for an unreadable file.
        bad: Index and reason of each unreadable image.
        info: By index, what is known of each readable image in a file.
        stored: Number of images that are on disk.
        decoded: Number of contents that this process decoded now.
        unstored: Why some images are not on disk, a sentence; None if all are, or are in memory.
    """

    rows: SquareImages
    digests: list[bytes]
    bad: dict[int, str]
    info: dict[int, ImageInfo]
    stored: int
    decoded: int
    unstored: str | None

    def with_resize(self, resize: int) -> "PreparedImages | None":
        """Return squares of another size without reading the files again; None if squares of this size are stored."""
        if not isinstance(self.rows, _Squares):
            return None
        layout = replace(self.rows.layout, resize=resize, side=resize)
        return replace(self, rows=_Squares(self.rows.images, layout, self.rows.threads))


def prepare_images(
    dataset: Dataset,
    resize: int,
    channels: int,
    pad_to: int = 0,
    *,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    only: Ints | None = None,
    threads: int,
    cache_limit: int | None = None,
    survey: bool = False,
) -> PreparedImages:
    """Prepare the images of a data set as squares that can be read in any order.

    Each file is decoded once and stored in the cache folder under its content digest; an image smaller than its square
    is stored at its own size. Images that do not fit, or that the disk returns damaged, are decoded whenever they are
    read. In a distributed job each process decodes its share, and all return when all are done. Images in memory stay
    there. Images in shards, and those of more than `STREAMED_ABOVE` files, are decoded whenever they are read; of files
    the headers and ends are read before. Of more than `content_hash.NAMED_ABOVE` files, only a sample of headers is
    read, and the digests are those of names and sizes.

    Args:
        dataset: The images.
        resize: Side to which images are resized, pixels.
        channels: 1, 3 or the number of bands.
        pad_to: Pad the squares with zeros to this side, pixels.
        fit, interpolation: How an image becomes square, as in `Preprocess`.
        only: Indices of the wanted images, (n,) int64; the others are not read and get no digest. None for all.
        threads: Number of threads that decode.
        cache_limit: Bytes that all stored images may take. None: as `RecordStore` decides.
        survey: Only measure the range of 16-bit images; they get no row.
    """
    images = (dataset if only is None else dataset.take(only)).images
    layout = SquareSettings(resize, channels, max(resize, pad_to), fit, interpolation)
    squares = _Squares(images, layout, threads, survey=survey)
    source, where = unwrap_subset(images)
    if isinstance(source, FileImages) and len(images) > STREAMED_ABOVE:
        prepared = _survey_by_name(squares) if is_identified_by_name(images) else _survey_all(squares)
        return prepared if only is None else _scatter(only, len(dataset), prepared)
    contents, unreadable = hash_images(images, threads)
    if isinstance(source, ShardImages):
        source.content.limit_cache(cache_limit)
        prepared = PreparedImages(squares, contents, {}, _sample_infos(source, where), 0, 0, STREAMED)
    elif isinstance(source, ArrayImages):
        rows: SquareImages = squares
        everything = np.arange(len(where), dtype=np.int64)
        if source.array.shape[1:] == squares.layout.shape and resize == squares.layout.side:
            rows = _ArrayRows(source.array, where)
        elif len(where) * squares.layout.bytes <= IN_MEMORY:
            rows = _ArrayRows(squares[everything], everything)
        prepared = PreparedImages(rows, contents, {}, {}, 0, 0, None)
    else:
        prepared = _through_store(squares, contents, unreadable, cache_limit)
    return prepared if only is None else _scatter(only, len(dataset), prepared)


def decode_on_gpu(rows: SquareImages, device: torch.device) -> SquareImages:
    """Return rows whose JPEGs are decoded on a GPU, if `rows` are decoded whenever they are read; else `rows`."""
    if not isinstance(rows, _Squares) or not isinstance(rows.source, EncodedImages):
        return rows
    source, where = rows.source, rows.where
    return GpuDecodedSquares(
        rows, lambda index: source.read_bytes(int(where[index])), rows.layout, rows.decoding, rows.pool, device
    )


def _sample_infos(images: ShardImages, where: Ints) -> dict[int, ImageInfo]:
    """Return the sizes of some of the images at `where`, evenly spread, by their places in it."""
    return {place: ImageInfo("", images.size(int(where[place]))) for place in _spread_evenly(len(where))}


def _spread_evenly(count: int) -> list[int]:
    """Return up to `SURVEYED` of the numbers 0 to `count` − 1, ascending and evenly spread."""
    found: list[int] = np.unique(np.linspace(0, count - 1, min(SURVEYED, count)).astype(np.int64)).tolist()
    return found


def _survey_all(squares: "_Squares") -> PreparedImages:
    """Return images that are decoded at each read, with the facts that their headers state; each file is read once."""
    known: dict[int, ImageInfo | str] = {}

    def inspect(index: int, content: bytes) -> None:
        known[index] = squares.try_info(index, content)

    contents, unreadable = hash_images(squares.images, squares.threads, inspect)
    return _decoded_at_each_read(squares, contents, unreadable, known)


def _survey_by_name(squares: "_Squares") -> PreparedImages:
    """Return images that are decoded at each read and identified by name, with the facts of some of their headers."""
    contents, unreadable = hash_names(squares.images, squares.threads)
    surveyed = [index for index in _spread_evenly(len(squares)) if index not in unreadable]
    found: list[ImageInfo | str] = []
    with progress("reading headers", len(surveyed), "images") as shown:
        for some in map_chunks(squares.try_info, surveyed, squares.threads, CHUNK, AT_ONCE):
            found += some
            shown.advance(len(some))
    return _decoded_at_each_read(squares, contents, unreadable, dict(zip(surveyed, found, strict=True)))


def _decoded_at_each_read(
    squares: "_Squares", contents: list[bytes], unreadable: dict[int, str], known: dict[int, ImageInfo | str]
) -> PreparedImages:
    """Return images that are decoded at each read; `known` has the facts of some of them, or why they are bad."""
    ordered = [(index, known[index]) for index in sorted(known)]
    bad = unreadable | {index: one for index, one in ordered if isinstance(one, str)}
    infos = {index: one for index, one in ordered if isinstance(one, ImageInfo)}
    unstored = f"of more than {STREAMED_ABOVE:,} files, images are decoded at each read"
    return PreparedImages(squares, contents, bad, infos, 0, 0, unstored)


def _scatter(indices: Ints, count: int, some: PreparedImages) -> PreparedImages:
    """Return what was prepared of the images at `indices` of `count`, by their indices among all."""
    where = np.full(count, -1, np.int64)
    where[indices] = np.arange(len(indices))
    found = [b""] * count
    for index, digest in zip(indices.tolist(), some.digests, strict=True):
        found[index] = digest
    bad = {int(indices[place]): reason for place, reason in some.bad.items()}
    facts = {int(indices[place]): fact for place, fact in some.info.items()}
    return replace(some, rows=_SomeRows(some.rows, where), digests=found, bad=bad, info=facts)


class _SomeRows:
    """Rows of some of the images; `where` (N,) is the row of each image, -1 if it has none."""

    def __init__(self, rows: SquareImages, where: Ints) -> None:
        self.rows, self.where = rows, where

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, indices: Ints) -> Pixels:
        places = self.where[indices]
        if len(places) and places.min() < 0:
            raise IndexError("the image was not prepared")
        return self.rows[places]

    @property
    def pixel_settings(self) -> str:
        """As in `_Squares`."""
        return getattr(self.rows, "pixel_settings", "")


def is_streamed(images: Images) -> bool:
    """Return whether images are decoded at each read: those in shards, and those of very many files."""
    source, where = unwrap_subset(images)
    return isinstance(source, ShardImages) or (isinstance(source, FileImages) and len(where) > STREAMED_ABOVE)


def find_images_with_unused_parts(images: Images, facts: Mapping[int, ImageInfo]) -> list[str]:
    """Return the path of each image whose file has pages or bands that are not used."""
    return [images.name(index) for index, one in sorted(facts.items()) if one.has_unused_parts]


def find_misnamed_images(images: Images, facts: Mapping[int, ImageInfo]) -> list[tuple[str, str]]:
    """Return the path and true format of each image whose suffix names another format."""
    found = []
    for index, one in sorted(facts.items()):
        if not one.format:  # not in a file of its own
            continue
        name = images.name(index)
        suffix = "." + name.rpartition(".")[2].lower()
        if SUFFIXES.get(suffix, one.format) != one.format:
            found.append((name, one.format))
    return found


class _ArrayRows:
    """Rows of an array in memory; `where` (N,) is the row of each image."""

    def __init__(self, array: Pixels, where: Ints) -> None:
        self.array, self.where = array, where

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, indices: Ints) -> Pixels:
        return self.array[self.where[indices]]


def _is_cut_off(name: str, content: bytes) -> bool:
    """Return whether a file of format `name` lacks its end, or has none that could be missing."""
    end = ENDS.get(name, b"")
    return not end or content.find(end, -END_BYTES) < 0


class _Squares:
    """Rows that are decoded whenever they are read."""

    def __init__(self, images: Images, layout: SquareSettings, threads: int, *, survey: bool = False) -> None:
        self.images, self.layout, self.threads, self.survey = images, layout, threads, survey
        self.source, self.where = unwrap_subset(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Ints) -> Pixels:
        rows = np.empty((len(indices), *self.layout.shape), np.uint8)
        wanted = indices.tolist()

        bad: dict[int, tuple[str, str]] = {}

        def fill(start: int) -> None:
            for place in range(start, min(start + TOGETHER, len(wanted))):
                try:
                    rows[place] = self.square(wanted[place])
                except ImageError as error:
                    bad[place] = (self.images.name(wanted[place]), str(error))

        for _ in self.pool.map(fill, range(0, len(wanted), TOGETHER)):
            pass
        if bad:
            places = sorted(bad)
            raise UnreadableRowsError(np.array(places, np.int64), [bad[place] for place in places])
        return rows

    @property
    def decoding(self) -> DecodingOptions:
        """How the files are decoded."""
        return get_decoding(self.source)

    @property
    def pixel_settings(self) -> str:
        """What decides which pixels a file has, besides its content and the layout of the squares."""
        return f"version {VERSION}, 16-bit range {self.decoding.intensity_range}, {_reducing_limit(self.decoding)}"

    def row(self, index: int) -> PackedImage:
        """Return what is stored of image `index`.

        Raises:
            ImageError: The image cannot be read.
        """
        if not isinstance(self.source, EncodedImages):
            rgb = self.images.read(index, min_side=self.layout.resize)
            return PackedImage.from_image(rgb, self.layout, ImageInfo("", (rgb.shape[0], rgb.shape[1])))
        if self.survey and (facts := self._survey(self.source.read_bytes(int(self.where[index])))):
            return PackedImage(facts, np.empty((0, 0, 1), np.uint8))
        decoded = self.source.decode(int(self.where[index]), self.layout.resize)
        height, width, _ = decoded.pixels.shape
        info = ImageInfo(
            decoded.format, (height, width), decoded.deep, None, decoded.has_unused_parts, decoded.pixel_limit
        )
        return PackedImage.from_image(decoded.pixels, self.layout, info)

    def try_info(self, index: int, content: bytes | None = None) -> ImageInfo | str:
        """Return what the header of the file of image `index` states, or why the image cannot be read.

        The image is decoded if the header does not tell enough.

        Args:
            index: Index of the image.
            content: The file. None: it is read.
        """
        assert isinstance(self.source, FileImages)
        try:
            return self._info(index, self.source.read_bytes(int(self.where[index])) if content is None else content)
        except ImageError as error:
            return str(error)

    def _info(self, index: int, content: bytes) -> ImageInfo:
        size = read_plain_jpeg_size(content) if self.decoding.bands is None else None
        if size and size[0] * size[1] <= self.decoding.max_pixels and not _is_cut_off("JPEG", content):
            return ImageInfo("JPEG", size[::-1])
        header = read_header(content, self.decoding)
        if (
            header.deep
            or _is_cut_off(header.format, content)
            or header.size[0] * header.size[1] > self.decoding.max_pixels
        ):
            return self.row(index).info
        size = header.size if header.orientation in TURNED else header.size[::-1]
        return ImageInfo(header.format, size, has_unused_parts=header.has_unused_parts)

    def square(self, index: int) -> Pixels:
        """Return the square of image `index`.

        Raises:
            ImageError: The image cannot be read.
        """
        rgb = self.images.read(index, min_side=self.layout.resize)
        return self.layout.square(select_used_region(rgb, self.layout.fit))

    def _survey(self, content: bytes) -> ImageInfo | None:
        """Return the information on a 16-bit image with the range of its values, or on bands; None for other images."""
        header = read_header(content, self.decoding)
        if self.decoding.bands is not None:  # whether they can be read
            found = decode_image(content, decoding=self.decoding)
            return ImageInfo(
                found.format, (found.pixels.shape[0], found.pixels.shape[1]), True, None, False, found.pixel_limit
            )
        if not header.deep:
            return None
        intensities = measure_intensity_range(content, self.decoding)
        pixels = header.size[0] * header.size[1]
        return ImageInfo(header.format, header.size[::-1], True, intensities, header.has_unused_parts, pixels)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        return ThreadPoolExecutor(self.threads, thread_name_prefix="squares")


class _StoredRows:
    """Rows of `store` at `positions` (N,), or of `squares` where the position is -1 or the stored row is damaged."""

    def __init__(self, store: RecordStore, positions: Ints, squares: _Squares) -> None:
        self.store, self.positions, self.squares = store, positions, squares
        self._say_fault = FirstSentence()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def pixel_settings(self) -> str:
        """As in `_Squares`."""
        return self.squares.pixel_settings

    def __getitem__(self, indices: Ints) -> Pixels:
        rows = np.empty((len(indices), *self.squares.layout.shape), np.uint8)
        parts = np.array_split(np.arange(len(indices)), min(self.squares.threads, len(indices)) or 1)

        def read(part: Ints) -> list[int]:
            """Fill in the stored rows and return the places of the others."""
            return [place for place in part.tolist() if not self._read(int(indices[place]), rows[place])]

        # Each thread waits for the disk and checks or resizes rows, which releases the GIL.
        read_in = map(read, parts) if len(parts) == 1 else self.squares.pool.map(read, parts)
        left = np.array([place for some in read_in for place in some], np.int64)
        if len(left):
            try:
                rows[left] = self.squares[indices[left]]
            except UnreadableRowsError as error:
                raise UnreadableRowsError(left[error.places], error.images) from error
        return rows

    def _read(self, index: int, row: Pixels) -> bool:
        """Read image `index` into `row` (S, S, C); return whether it was stored intact."""
        position = int(self.positions[index])
        if position < 0:
            return False
        try:
            data = self.store.read(position)
        except StorageError as error:
            return self._tell(f"{error}; until then images are decoded at each read")
        if data is None:
            return self._tell(f"{self.squares.images.name(index)} is damaged in {self.store.folder}; decoding it again")
        row[...] = PackedImage.unpack(data).square(self.squares.layout)
        return True

    def _tell(self, sentence: str) -> bool:
        self._say_fault(sentence)
        return False


def _through_store(
    squares: _Squares, contents: list[bytes], unreadable: dict[int, str], limit: int | None
) -> PreparedImages:
    images = squares.images
    readable = [index for index in range(len(images)) if index not in unreadable]
    first: dict[bytes, int] = {}
    for index in readable:
        first.setdefault(contents[index], index)
    reasons = {content: reason for content, reason in _known_bad(squares.decoding).items() if content in first}
    store, unstored = _open_store(squares.layout, limit)
    missing = set(first) - set(reasons)
    found: dict[bytes, ImageInfo] = {}
    try:
        found = _found(store, missing, squares) if store is not None else {}
        missing -= found.keys()
    except StorageError as error:  # the cache folder has been removed meanwhile
        store, unstored = None, str(error)
    # A share of all, not of the missing ones, which differ between processes once one begins to store.
    place, count = distributed.place_among_equals(None if store is None else _identity(store))
    share = list(first)[place::count]
    share = [content for content in share if content in missing]
    _announce(squares, store, [first[content] for content in missing])
    fresh, known, unstored = _decode(squares, store, {content: first[content] for content in share}, unstored)
    known |= found
    lasting = {one: str(error) for one, error in fresh.items() if _lasts(error, images, first[one], contents)}
    for others in distributed.all_gather(({one: str(error) for one, error in fresh.items()}, known)):
        reasons.update(others[0])
        known = known | others[1]
    if lasting:
        _remember_bad(lasting, squares.decoding)

    bad = unreadable | {index: reasons[contents[index]] for index in readable if contents[index] in reasons}
    good = [index for index in readable if index not in bad]
    positions = np.full(len(images), -1, np.int64)
    try:
        if store is not None:
            positions[good] = _places(store, [contents[index] for index in good], squares)
            known |= {contents[i]: _info_at(store, int(positions[i])) for i in good if contents[i] not in known}
    except StorageError as error:
        store, unstored = None, str(error)
    stored = int((positions >= 0).sum())
    left = len(good) - stored
    return PreparedImages(
        rows=_StoredRows(store, positions, squares) if store is not None else squares,
        digests=contents,
        bad=bad,
        info={index: known[contents[index]] for index in good},
        stored=stored,
        decoded=len(share),
        unstored=f"{left} images are decoded at each read: {unstored}" if left else None,
    )


def _identity(store: RecordStore) -> str | None:
    """Return the name of the store that processes share; None if the cache folder has been removed meanwhile."""
    try:
        return store.identity()
    except StorageError:
        return None


def _key(content: bytes, squares: _Squares, *, deep: bool) -> bytes:
    """Return the key of a row: the content and, for 16 bits, the range of values, which decides how it looks."""
    if not deep:
        return content
    asked = "survey" if squares.survey else f"range {squares.decoding.intensity_range}"
    return hashlib.blake2b(content + asked.encode(), digest_size=16).digest()


def _places(store: RecordStore, contents: Sequence[bytes], squares: _Squares) -> Ints:
    """Return the positions of the rows of 8-bit or 16-bit contents, (n,) int64, -1 if absent."""
    plain = store.find([_key(one, squares, deep=False) for one in contents])
    absent = np.flatnonzero(plain < 0).tolist()
    plain[absent] = store.find([_key(contents[place], squares, deep=True) for place in absent])
    return plain


def _info_at(store: RecordStore, position: int) -> ImageInfo:
    head = store.read(position, HEAD.size)
    assert head is not None  # only whole rows are checksummed
    return read_info(head)


def _open_store(layout: SquareSettings, limit: int | None) -> tuple[RecordStore | None, str]:
    """Open the store of these squares; return it and why it may be full, or None and why there is none."""
    fit = "" if layout.fit == "crop" else f"-{layout.fit}"
    fit += "" if layout.interpolation == "bilinear" else f"-{layout.interpolation}"
    name = f"squares-{layout.side}-{layout.channels}-resized-{layout.resize}{fit}-version-{VERSION}"
    try:
        store = RecordStore(cache_folder("pictures") / name, limit)
    except StorageError as error:
        return None, str(error)
    return store, f"they exceed the {format_bytes(store.limit)} that the cache may take"


def _found(store: RecordStore, wanted: set[bytes], squares: _Squares) -> dict[bytes, ImageInfo]:
    """Return the contents in `store` that are within the limit of pixels, and what is known of them.

    None, after emptying it, if others fill it and the wanted do not fit.
    """
    contents = list(wanted)
    places = zip(contents, _places(store, contents, squares).tolist(), strict=True)
    infos = {content: _info_at(store, place) for content, place in places if place >= 0}
    found = {content: info for content, info in infos.items() if info.pixel_limit <= squares.decoding.max_pixels}
    room = store.room_for(HEAD.size + squares.layout.bytes)
    crowded = len(contents) - len(found) > room and len(found) < len(store) / 2
    return {} if crowded and store.clear() else found


def _announce(squares: _Squares, store: RecordStore | None, indices: Sequence[int]) -> None:
    """Report how much disk space the rows of the images at `indices` will take, before they are written."""
    if store is None or len(indices) * (squares.layout.bytes + INDEX_ENTRY.itemsize) < REPORTED_BYTES:
        return
    sizes = []
    for index in indices[:: -(-len(indices) // SAMPLED)]:
        with suppress(ImageError):
            height, width = squares.images.size(index)
            used = min(height, width) ** 2 if squares.layout.fit == "crop" else height * width
            sizes.append(min(max(3, squares.layout.channels) * used, squares.layout.bytes))
    report_disk_use("decoded images", len(indices) * float(np.mean(sizes or [squares.layout.bytes])), store)


def _decode(
    squares: _Squares, store: RecordStore | None, indices: dict[bytes, int], unstored: str
) -> tuple[dict[bytes, ImageError], dict[bytes, ImageInfo], str]:
    """Decode the images at `indices` and store their rows.

    Returns:
        The unreadable images and why, the information on the others, and why there may be no room.
    """

    def attempt(content: bytes) -> PackedImage | ImageError:
        try:
            return squares.row(indices[content])
        except ImageError as error:
            return error

    bad: dict[bytes, ImageError] = {}
    known: dict[bytes, ImageInfo] = {}
    contents = list(indices)
    chunk = max(min(CHUNK, CHUNK_BYTES // squares.layout.bytes), squares.threads)
    with progress("decoding", len(contents), "images") as shown:
        for number, results in enumerate(map_chunks(attempt, contents, squares.threads, chunk)):
            rows: dict[bytes, Pixels] = {}
            for content, result in zip(contents[number * chunk :], results, strict=False):
                if isinstance(result, ImageError):
                    bad[content] = result
                else:
                    known[content] = result.info
                    rows[_key(content, squares, deep=result.info.deep)] = result.pack()
            if store is not None and rows:
                try:
                    if (store.append_bytes(list(rows), list(rows.values())) < 0).any():
                        store = None  # full; the rest is decoded only to find unreadable images
                except StorageError as error:
                    store, unstored = None, str(error)
            shown.advance(len(results))
    return bad, known, unstored


def _lasts(error: ImageError, images: Images, index: int, contents: list[bytes]) -> bool:
    """Return whether an image is bad by its content, not because the file or memory was unavailable."""
    try:
        return not isinstance(error.__cause__, MemoryError) and images.digest(index) == contents[index]
    except ImageError:
        return False


def _reducing_limit(decoding: DecodingOptions) -> str:
    """Return from which number of pixels on images may be reduced while they are decoded."""
    return f"reduced above {min(decoding.max_pixels, REDUCED_ABOVE)} pixels"


def _bad_header(decoding: DecodingOptions) -> dict[str, object]:
    """Return what decides, besides the content, whether an image is bad."""
    decoders = {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__, "heif": _version_of("pillow-heif")}
    limits = {"pixels": decoding.max_pixels, "memory": decoding.max_memory}
    if decoding.bands is not None:
        decoders = {"tifffile": _version_of("tifffile"), "imagecodecs": _version_of("imagecodecs")}
    return {"version": VERSION} | decoders | limits


def _bad_file(decoding: DecodingOptions) -> Path:
    """Return the file of contents that were found bad: what is bad as RGB may be good as bands."""
    bands = decoding.bands
    return cache_folder("pictures") / ("bad.json" if bands is None else f"bad-{len(bands)}-{bands.dtype}.json")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _known_bad(decoding: DecodingOptions) -> dict[bytes, str]:
    """Return the contents that were found bad before, and why."""
    try:
        value = read_json(_bad_file(decoding), 2**28)
        if value["header"] != _bad_header(decoding):
            return {}
        return {bytes.fromhex(key): str(reason) for key, reason in value["reasons"].items()}
    except (OSError, StorageError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # absent or damaged: the bad images are found again


def _remember_bad(reasons: dict[bytes, str], decoding: DecodingOptions) -> None:
    with suppress(StorageError):
        folder = cache_folder("pictures")
        with lock_file(folder / "lock"):
            known = _known_bad(decoding) | reasons
            value = {"header": _bad_header(decoding), "reasons": {key.hex(): reason for key, reason in known.items()}}
            write_json(_bad_file(decoding), value)
