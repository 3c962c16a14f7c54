"""Features of frozen layers in a folder or an object store, through which machines and later jobs share them.

    LOCATION/NETWORK-SHAPE-PRECISION-VERSION-CHUNK.safetensors

A chunk is of consecutive images of a data set, with about 32 MB of features, and CHUNK is a hash of their keys, so that
the same images, weights and preprocessing have the same chunks in every job. Its file holds the features of the images
that can be read, and the places of these in the chunk.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from svertka import distributed
from svertka.data.dataset import Ints
from svertka.data.disk_cache import ArrayStore
from svertka.data.shard_storage import ShardLocation
from svertka.errors import DataError, RunError, StorageError
from svertka.progress import progress, say
from svertka.tensor_files import read_tensors_and_header, write_tensors

CHUNK_BYTES = 2**25

NOTHING = np.zeros(0, np.int64)

# Computes and stores the features of the given images of each variant.
Compute = Callable[[Sequence[Ints]], None]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive images of a data set.

    Attributes:
        name: Name of the file.
        variant: Number of the augmented variant.
        indices: The images, (n,) int64.
        keys: Their keys in the store.
    """

    name: str
    variant: int
    indices: Ints
    keys: list[bytes]

    def missing(self, store: ArrayStore) -> Ints:
        """Return the images whose features are not stored on this machine."""
        return self.indices[store.find(self.keys) < 0]


def divide(store: ArrayStore, keys: Sequence[Mapping[int, bytes]]) -> list[Chunk]:
    """Return the chunks of a data set.

    Args:
        store: The store of the features on this machine.
        keys: For each variant the key of each image.
    """
    count = max(1, CHUNK_BYTES // store.row_bytes)
    chunks = []
    for variant, of_images in enumerate(keys):
        indices, some = np.fromiter(of_images, np.int64, len(of_images)), list(of_images.values())
        for start in range(0, len(some), count):
            part = some[start : start + count]
            name = f"{store.folder.name}-{hashlib.blake2b(b''.join(part), digest_size=16).hexdigest()}.safetensors"
            chunks.append(Chunk(name, variant, indices[start : start + count], part))
    return chunks


def exchange_features(
    store: ArrayStore,
    keys: Sequence[Mapping[int, bytes]],
    location: ShardLocation,
    compute: Compute,
) -> None:
    """Fill `store` with the features of all images, of which each chunk is computed by one process of the job.

    All processes must call this.

    Args:
        store: The store of the features on this machine.
        keys: For each variant the key of each image.
        location: The folder or URL that all machines share.
        compute: Computes features and puts them into `store`.

    Raises:
        StorageError: The features do not fit, in one of the processes.
        DataError: The location cannot be read or written.
    """
    chunks = divide(store, keys)
    wanted = [chunk for chunk in chunks if len(chunk.missing(store))]
    known = distributed.call_on_first(lambda: set(location.list_names()))
    needed = set().union(*distributed.all_gather({chunk.name for chunk in wanted})) - known
    fresh = [chunk for chunk in chunks if chunk.name in needed][distributed.rank() :: distributed.world_size()]

    def complete(chunk: Chunk) -> None:
        compute([chunk.missing(store) if variant == chunk.variant else NOTHING for variant in range(len(keys))])

    def upload() -> None:
        for chunk in fresh:
            complete(chunk)
            _upload(chunk, store, location)

    def download() -> None:
        with progress("reading shared features", len(mine), "files") as shown:
            for chunk in mine:
                if len(chunk.missing(store)) and not _download(chunk, store, location):
                    complete(chunk)
                shown.advance(1)

    distributed.call_on_all(upload, StorageError)
    place, count = distributed.place_among_equals(store.identity())
    mine = [chunk for chunk in chunks if chunk in wanted][place::count]
    distributed.call_on_all(download, StorageError)


def _upload(chunk: Chunk, store: ArrayStore, location: ShardLocation) -> None:
    positions = store.find(chunk.keys)
    found = np.flatnonzero(positions >= 0)  # without images that cannot be read
    features, places = torch.from_numpy(store.gather(positions[found])), torch.from_numpy(found)
    with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
        write_tensors(Path(folder) / chunk.name, {"features": features, "places": places})
        location.put(chunk.name, Path(folder) / chunk.name)


def _download(chunk: Chunk, store: ArrayStore, location: ShardLocation) -> bool:
    """Put the features of a chunk into the store; return False, with a message, if its file cannot be used."""
    what = location.describe(chunk.name)
    try:
        content = location.read(chunk.name)
        with tempfile.TemporaryDirectory(prefix="svertka-") as folder:
            (Path(folder) / chunk.name).write_bytes(content)
            tensors = read_tensors_and_header(Path(folder) / chunk.name)[0]
        features, places = tensors["features"].numpy(), tensors["places"].tolist()
        if features.shape != (len(places), *store.row_shape) or features.dtype != store.dtype:
            raise DataError(f"it holds {features.dtype} {features.shape}")
        if not set(places) <= set(range(len(chunk.keys))):
            raise DataError(f"it holds features of {len(places)} images, which are not those of {len(chunk.keys)}")
    except (DataError, RunError, KeyError) as error:
        say(f"{what} cannot be used ({error}); its features are computed again")
        return False
    return bool((store.append([chunk.keys[place] for place in places], features) >= 0).all())
