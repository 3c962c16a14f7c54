"""Index of shards that another program wrote, made by reading each of them once."""

import hashlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from svertka.data.dataset import Ints, hash_content
from svertka.data.folder_and_table_sources import natural_sort_key
from svertka.data.image_io import DecodingOptions, read_image_size
from svertka.data.shard_index import ShardEntry, ShardIndex, merge_indexes
from svertka.data.shard_storage import ShardLocation
from svertka.data.split_names import find_split_name
from svertka.errors import DataError, ImageError, StorageError
from svertka.escaping import join_first
from svertka.files import cache_folder, format_bytes
from svertka.pages.number_format import count_with_noun
from svertka.progress import progress, say
from svertka.text_width import shorten

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "json")
LABEL_KEYS = ("cls", "label", "class", "class_id", "class_name")  # of a .json file, the first that is there
NAME_FILES = ("names.txt", "classes.txt", "class_names.txt", "classnames.txt")  # beside the shards, one class per line
AHEAD = 2**22  # bytes per read of a shard
BIG_LABEL = 2**20  # bytes; a larger label file is refused
THREADS = 8
LIMITS = DecodingOptions()


@dataclass
class _Sample:
    key: str
    label: str | int | None = None
    image: tuple[int, int, tuple[int, int], bytes] | None = None  # offset, length, size, digest


def scan_shards(
    location: ShardLocation, names: list[str], sizes: list[int], class_names: tuple[str, ...] | None = None
) -> ShardIndex:
    """Return the index of `names`, from the cache folder if they were read before.

    Args:
        location: Where the shards are.
        names: Their names.
        sizes: Their sizes, bytes.
        class_names: The class names. None: as a file beside the shards says, else the labels themselves.

    Raises:
        DataError: A shard is truncated, has no samples, or a sample twice or without a label; or the classes do not
            fit together.
    """
    class_names = class_names or _read_class_names(location)
    identity = repr((location.source, names, sizes, class_names, _stamps(location, names)))
    key = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=12).hexdigest()
    kept: Path | None = None
    try:
        kept = cache_folder("shards") / f"index-{key}.safetensors"
        if kept.exists():
            return ShardIndex.read(kept, str(kept))[0]
    except (StorageError, DataError):
        pass  # it cannot be kept, or is damaged: the shards are read again
    say(
        f"{location.source} has no index; reading {count_with_noun(len(names), 'shard')} once "
        f"({format_bytes(sum(sizes))}); svertka shard writes shards that have one"
    )
    with ThreadPoolExecutor(THREADS) as pool, progress("indexing", len(names), "shards") as shown:
        found = []
        for samples in pool.map(lambda name, size: _scan(location, name, size), names, sizes):
            found.append(samples)
            shown.advance()
    index = _combine(location, names, sizes, found, class_names)
    if kept is not None:
        try:
            index.write(kept)
        except StorageError as error:
            say(f"the index of {location.source} is not kept: {error}")
    return index


def _stamps(location: ShardLocation, names: list[str]) -> list[int]:
    """Return when local shards were last changed; remote shards are known by name and size."""
    return [Path(location.path(name)).stat().st_mtime_ns for name in names] if location.is_local else []


def _read_class_names(location: ShardLocation) -> tuple[str, ...] | None:
    """Return the class names from a file beside the shards; None without one."""
    for name in NAME_FILES:
        if location.exists(name):
            return parse_class_names(location.read(name), location.describe(name))
    return None


def parse_class_names(content: bytes, what: str) -> tuple[str, ...]:
    """Return the class names in a text file, one per line, whose name is `what`; raises DataError."""
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{what} names no class; give one class per line, in order")
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise DataError(f"{what} names {shorten(twice)} twice; give one class per line, in order")
    return tuple(names)


def _scan(location: ShardLocation, name: str, size: int) -> list[_Sample]:
    """Return the samples of one shard."""
    what = location.describe(name)
    samples: list[_Sample] = []
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=_ShardFile(location, name, size), mode="r:", bufsize=AHEAD) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                key, suffix = str(path.with_name(stem)) if stem else "", suffix.lower()
                if not key or suffix not in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES):
                    continue
                if not samples or samples[-1].key != key:
                    if key in seen:
                        raise DataError(f"{what} has the key {key} twice; write each sample once, its files together")
                    seen.add(key)
                    samples.append(_Sample(key))
                _add(samples[-1], archive, member, suffix, what)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{what} is no intact tar file ({error}); copy it again") from error
    whole = [sample for sample in samples if sample.image is not None]
    unlabeled = [sample.key for sample in whole if sample.label is None]
    if unlabeled:
        raise DataError(
            f"{what} has {count_with_noun(len(unlabeled), 'image')} without a label ({join_first(unlabeled)}); each "
            "needs a .cls file, or a .json file with the key label"
        )
    if not whole:
        raise DataError(f"{what} has no images; shards hold .jpg, .png or .webp files with .cls files of the same name")
    return whole


def _add(sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, what: str) -> None:
    """Add one file of a shard to its sample."""
    twice = sample.image is not None if suffix in IMAGE_SUFFIXES else False
    if twice:
        raise DataError(f"{what} has two images under the key {sample.key}; give each its own key")
    if suffix not in IMAGE_SUFFIXES and member.size > BIG_LABEL:
        raise DataError(f"{what}: the label of {sample.key} has {member.size:,} bytes; write the class there")
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise DataError(f"{what} is truncated inside {sample.key}; copy it again")
    if suffix in IMAGE_SUFFIXES:
        try:
            size = read_image_size(content, LIMITS)
        except ImageError:
            size = (0, 0)  # left out below
        sample.image = (member.offset_data, member.size, size, hash_content(content))
    elif suffix == "cls":
        sample.label = _parse_label(content.decode(errors="replace").strip())
    elif sample.label is None:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        found = [value[key] for key in LABEL_KEYS if key in value] if isinstance(value, dict) else []
        if found and isinstance(found[0], int | str) and not isinstance(found[0], bool):
            sample.label = _parse_label(str(found[0]).strip())


def _parse_label(text: str) -> str | int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text or None


def _combine(
    location: ShardLocation,
    names: list[str],
    sizes: list[int],
    found: list[list[_Sample]],
    class_names: tuple[str, ...] | None,
) -> ShardIndex:
    """Return the index of the samples found in each shard."""
    labels = {sample.label for samples in found for sample in samples}
    if len({type(label) for label in labels}) > 1:
        word = next(label for label in labels if isinstance(label, str))
        raise DataError(f"{location.source}: some labels are numbers and some are names, such as {word}; use one kind")
    if class_names is None:
        if any(isinstance(label, int) for label in labels):
            class_names = tuple(map(str, range(1 + max(label for label in labels if isinstance(label, int)))))
        else:
            class_names = tuple(sorted((str(label) for label in labels), key=natural_sort_key))
    number = {name: place for place, name in enumerate(class_names)}

    def class_of(sample: _Sample, shard: str) -> int:
        place = sample.label if isinstance(sample.label, int) else number.get(str(sample.label), len(number))
        if place >= len(number):
            raise DataError(
                f"{location.describe(shard)}: {sample.key} has the label {sample.label}, which is none of the "
                f"{len(number):,} class names; correct the list of names"
            )
        return place

    part_of_folder = find_split_name(PurePosixPath(location.root).name)
    indexes, unreadable = [], []
    for name, size, samples in zip(names, sizes, found, strict=True):
        unreadable += [f"{name}: {sample.key}" for sample in samples if sample.image and not min(sample.image[2])]
        good = [(sample, sample.image) for sample in samples if sample.image and min(sample.image[2])]
        indexes.append(
            ShardIndex(
                class_names,
                (ShardEntry(name, size, len(good), find_split_name(name) or part_of_folder),),
                _column([image[0] for _, image in good]),
                _column([image[1] for _, image in good]),
                _column([class_of(sample, name) for sample, _ in good]),
                _column([image[2] for _, image in good]).reshape(-1, 2),
                np.frombuffer(b"".join(image[3] for _, image in good), np.uint8).reshape(-1, 16),
            )
        )
    merged = merge_indexes(indexes, class_names)
    if not len(merged):
        raise DataError(f"{location.source}: no image can be read, such as {unreadable[0]}; check the shards")
    if unreadable:
        notes = (f"left out: {len(unreadable):,} images that cannot be read: {join_first(unreadable)}",)
        merged = replace(merged, notes=notes)
    merged.check(location.source)
    return merged


def _column(values: list[int] | list[tuple[int, int]]) -> Ints:
    return np.array(values, np.int64)


class _ShardFile(io.RawIOBase):
    """A shard as a file that can be read forward and skipped through."""

    def __init__(self, location: ShardLocation, name: str, size: int) -> None:
        self.location, self.name, self.length = location, name, size
        self._position, self._start, self._content = 0, 0, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        self._position = base + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Return up to `count` bytes from the position on."""
        count = min(self.length - self._position if count < 0 else count, self.length - self._position)
        if count <= 0:
            return b""
        low = self._position - self._start
        if low < 0 or low + count > len(self._content):
            self._start, low = self._position, 0
            stop = min(self._position + max(count, AHEAD), self.length)
            self._content = self.location.read(self.name, self._position, stop)
        self._position += count
        return self._content[low : low + count]
