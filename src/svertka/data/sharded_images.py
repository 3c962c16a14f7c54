"""Labeled images in shards: tar files in the WebDataset format, local or remote, read by byte range."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svertka.data.dataset import Dataset, EncodedImages, Images, Ints, Subset, hash_content
from svertka.data.file_accounting import FileAccount
from svertka.data.image_io import DEFAULT, DecodedImage, DecodingOptions
from svertka.data.shard_cache import LocalBytes, RemoteBytes, ShardBytes
from svertka.data.shard_index import FILE, ShardIndex
from svertka.data.shard_scan import parse_class_names, scan_shards
from svertka.data.shard_storage import ShardLocation, open_location
from svertka.errors import DataError, ImageError, UsageError
from svertka.files import os_error_to_storage_error, parse_path, read_regular_file

SHUFFLED = 4096  # images between which an epoch's order mixes neighbors of a shard
LANES = 16  # sequences of shards that are read side by side, so that each of up to 16 machines reads only its own
MOST_NAME_BYTES = 2**26  # of a file of class names
TAR_BLOCK, NAME_BYTES = 512, 100  # of a tar header, which begins with the name


class ShardImages(EncodedImages):
    """Images in shards.

    Args:
        location: Where the shards are.
        index: Their index.
        content: The bytes of the shards.
        decoding: How the images are decoded.
    """

    def __init__(
        self, location: ShardLocation, index: ShardIndex, content: ShardBytes, decoding: DecodingOptions = DEFAULT
    ) -> None:
        self.location, self.index, self.content, self.decoding = location, index, content, decoding
        self.shard_of = index.shard_of
        self._verified = np.zeros(len(index), bool)  # images that were compared with their digest

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """Return the shard and the name in its tar header."""
        shard, start, _ = self._range(index)
        what = self.location.describe(self.index.shards[shard].name)
        try:
            header = self.content.read(shard, start - TAR_BLOCK, start)
        except DataError:
            return f"{what}, byte {start:,}"
        return f"{what}: {header[:NAME_BYTES].rstrip(bytes(1)).decode(errors='replace')}"

    def digest(self, index: int) -> bytes:
        """Return the digest that the index has of an image."""
        return bytes(self.index.digests[index])

    def digests(self, indices: Ints) -> list[bytes]:
        """Return the digests that the index has of the images at `indices` (n,), 16 bytes each."""
        chosen = np.ascontiguousarray(self.index.digests[indices])
        found: list[bytes] = chosen.view(f"V{chosen.shape[1]}")[:, 0].tolist()
        return found

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width that the index has of an image."""
        height, width = self.index.sizes[index].tolist()
        return height, width

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded image; when it is read for the first time, it is compared with its digest.

        Raises:
            DataError: Its shard cannot be read, or has another content than its index says.
        """
        place = self._range(index)
        content = self.content.read(*place)
        if self._verified[index]:
            return content
        if hash_content(content) != self.digest(index):
            self.content.forget(*place)
            content = self.content.read(*place)
            if hash_content(content) != self.digest(index):
                what = self.location.describe(self.index.shards[place[0]].name)
                raise DataError(
                    f"{what} has another content at byte {place[1]:,} than its index says; copy both again, or write "
                    "both again with svertka shard"
                )
        self._verified[index] = True
        return content

    def decode(self, index: int, min_side: int | None = None) -> DecodedImage:
        """Return the decoded image.

        Raises:
            ImageError: It cannot be decoded, or is RGB of 16 bits per value.
        """
        image = super().decode(index, min_side)
        if image.deep and self.decoding.bands is None:
            raise ImageError("it has 16 bits per value, and shards hold 8; train on the files themselves")
        return image

    def with_decoding(self, decoding: DecodingOptions) -> "ShardImages":
        """Return the same images, decoded as `decoding` says."""
        other = ShardImages(self.location, self.index, self.content, decoding)
        other._verified = self._verified
        return other

    def request(self, indices: Ints) -> None:
        """Begin to fetch the shards' blocks with the images at `indices`, which will be read soon."""
        self.content.request(map(self._range, indices.tolist()))

    def shuffle(self, rng: np.random.Generator, indices: Ints) -> Ints:
        """Return `indices` (n,) int64 in a random order in which shards are read one after the other.

        The shards are permuted, and their images divided into `LANES` sequences of equal length. In each sequence, an
        image moves back by up to `SHUFFLED` / `LANES` places. The order takes one image of each sequence in turn.
        """
        rank = rng.permutation(len(self.index.shards))
        in_order = indices[np.lexsort((indices, rank[self.shard_of[indices]]))]
        order = np.empty_like(indices)
        for number, lane in enumerate(np.array_split(in_order, LANES)):
            places = np.arange(len(lane)) + rng.uniform(0, SHUFFLED / LANES, len(lane))
            order[number::LANES] = lane[np.argsort(places, kind="stable")]
        return order

    def _range(self, index: int) -> tuple[int, int, int]:
        """Return the shard of an image and where its bytes begin and end."""
        start = int(self.index.offsets[index])
        return int(self.shard_of[index]), start, start + int(self.index.lengths[index])


ClassNames = str | os.PathLike[str] | Sequence[str]  # a text file of one class per line, or the names


def open_shards(source: str | os.PathLike[str], names: ClassNames | None = None) -> Dataset:
    """Open labeled images in shards.

    Args:
        source: A folder, a URL of one, a .tar file, or a pattern of them such as train-{000..012}.tar.
        names: The class names of shards that have no index. None: as a file beside them says, else their labels.

    Raises:
        UsageError: The scheme is unknown, the URL holds credentials, or the shards have an index, which has the names.
        DataError: There are no shards, they cannot be read, or do not agree with their index.
    """
    location = open_location(source)
    index = _read_index(location, None if names is None else read_class_names(names))
    shards = tuple(shard.name for shard in index.shards)
    if location.is_local:
        content: ShardBytes = LocalBytes(location, shards)
    else:
        sizes = tuple(shard.bytes for shard in index.shards)
        content = RemoteBytes(location, shards, sizes, index.fingerprint)
    images = ShardImages(location, index, content)
    account = FileAccount(notes=index.notes)
    return Dataset(location.source, index.names, images, index.labels, index.parts, account)


def read_class_names(names: ClassNames) -> tuple[str, ...]:
    """Return class names that are given as a sequence or in a text file, one per line.

    Raises:
        UsageError: There is no such file.
        DataError: It is empty or names a class twice.
    """
    if not isinstance(names, str | os.PathLike):
        return tuple(names)
    path = parse_path(names)
    try:
        return parse_class_names(read_regular_file(path, MOST_NAME_BYTES), str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"names={path} cannot be read ({error}); give a text file with one class per line") from error


def _read_index(location: ShardLocation, class_names: tuple[str, ...] | None) -> ShardIndex:
    """Return the index beside the shards, or else that of the shards themselves."""
    if location.names is None:
        listed = location.list_names()
        names = [name for name in listed if name.endswith(".tar")]
        if not names:
            raise DataError(f"{location.source} has no shards; they end in .tar")
        has_index = FILE in listed
        fragments = [name for name in listed if name.endswith(".safetensors") and name != FILE]
        if fragments and not has_index:
            raise DataError(f"{location.source} is not complete; run the svertka shard command that writes it again")
    else:
        names, has_index = list(location.names), location.exists(FILE)
    if not has_index:
        return scan_shards(location, names, _sizes(location, names), class_names)
    if class_names is not None:
        raise UsageError(f"{location.source} has an index with its class names; leave names (--names) out")
    index = _download_index(location)
    if location.names is not None:
        index = select_shards(index, location, names)
    present = set(names)
    missing = [shard.name for shard in index.shards if shard.name not in present]
    if missing:
        raise DataError(f"{location.describe(missing[0])} is missing, and the index names it; copy it back")
    if location.is_local:
        for shard, size in zip(index.shards, _sizes(location, [one.name for one in index.shards]), strict=True):
            if size != shard.bytes:
                raise DataError(
                    f"{location.describe(shard.name)} has {size:,} bytes, and its index says {shard.bytes:,}; copy it "
                    "again"
                )
    return index


def select_shards(index: ShardIndex, location: ShardLocation, names: Sequence[str]) -> ShardIndex:
    """Return the index of the shards `names` only."""
    wanted = set(names)
    unknown = wanted - {shard.name for shard in index.shards}
    if unknown:
        raise DataError(f"{location.describe(min(unknown))} is not in the index beside it; remove or correct the index")
    chosen = np.array([shard.name in wanted for shard in index.shards], bool)
    kept = chosen[index.shard_of]
    return ShardIndex(
        index.names,
        tuple(shard for shard, is_chosen in zip(index.shards, chosen, strict=True) if is_chosen),
        index.offsets[kept],
        index.lengths[kept],
        index.labels[kept],
        index.sizes[kept],
        index.digests[kept],
        index.notes,
    )


def _sizes(location: ShardLocation, names: Sequence[str]) -> list[int]:
    return [location.size(name) for name in names]


def _download_index(location: ShardLocation) -> ShardIndex:
    what = location.describe(FILE)
    if location.is_local:
        return ShardIndex.read(Path(location.path(FILE)), what)[0]
    content = location.read(FILE)
    with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
        copy = Path(folder) / FILE
        with os_error_to_storage_error(copy):
            copy.write_bytes(content)
        return ShardIndex.read(copy, what)[0]


def find_shards(images: Images) -> ShardImages | None:
    """Return the images in shards that `images` are, or are a subset of; None for other images."""
    while isinstance(images, Subset):
        images = images.images
    return images if isinstance(images, ShardImages) else None
