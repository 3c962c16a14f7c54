"""Cache of the features that the frozen part of a network computes, on disk or in memory."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from svertka import distributed
from svertka.data.content_hash import make_feature_key
from svertka.data.dataset import Ints
from svertka.data.disk_cache import INDEX_ENTRY, ArrayStore, report_disk_use
from svertka.data.loader import BatchLoader
from svertka.data.per_image_random_numbers import PerImageRandomNumbers
from svertka.data.pixel_statistics import FIRST
from svertka.data.shard_storage import ShardLocation
from svertka.data.unreadable_rows import read_readable_rows
from svertka.errors import StorageError
from svertka.files import cache_folder, format_bytes
from svertka.progress import progress, say
from svertka.transfer.feature_exchange import exchange_features
from svertka.transfer.freeze import FrozenPrefix

IN_MEMORY = 2**29  # largest size of features kept in memory, bytes
PIXELS_AT_ONCE = 2**20  # pixels per batch through the frozen layers
VERSION = 1  # of the computation; features of other versions are not found


def feature_batch_size(side: int) -> int:
    """Return how many images of `side` pixels to compute at once: more are not faster, and take more memory."""
    return max(1, PIXELS_AT_ONCE // side**2)


def feature_bytes_per_image(shape: tuple[int, ...], *, half: bool) -> int:
    """Return the bytes of the features of one image, float32 or float16 (`half`), on disk."""
    return int(np.prod(shape)) * (2 if half else 4) + INDEX_ENTRY.itemsize


def cache_on_disk(
    batches: BatchLoader,
    frozen: FrozenPrefix,
    shape: tuple[int, ...],
    digests: Sequence[bytes],
    *,
    variants: int = 1,
    half: bool = False,
    limit: int | None = None,
    shared: ShardLocation | None = None,
    title: str = "computing features",
) -> BatchLoader:
    """Return `batches` with features in place of images, computed once and stored in the cache folder.

    Rows are stored by hashes of the image content, the weights and the preprocessing: what exists is read, what changed
    is computed. A damaged row is computed again, also while it is trained on.

    Args:
        batches: Batches of images.
        frozen: The frozen part of the network.
        shape: Shape of the features of one image.
        digests: Content hash of each row of `batches`.
        variants: Augmented variants of each image; epoch k uses variant k, and a random one after the last.
        half: Whether to store float16.
        limit: Bytes of all cached features. None: a share of the free disk.
        shared: Where machines share features. None: each machine computes all of them.
        title: Title of the progress bar.

    Returns:
        Batches of features (B, *shape) float32.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    keys = _row_keys(batches, digests, variants)
    store = distributed.call_on_all(lambda: _open_store(frozen, shape, half=half, limit=limit), StorageError)

    def compute(missing: Sequence[Ints]) -> None:
        _compute(missing, store, keys, batches, title, frozen)

    if shared is not None:
        exchange_features(store, keys, shared, compute)
    else:
        # Processes with the same store share what is missing in it.
        place, count = distributed.place_among_equals(store.identity())
        missing = _find_missing(store, keys, batches)
        distributed.call_on_all(lambda: compute([np.array_split(some, count)[place] for some in missing]), StorageError)
    where = np.full((variants, len(batches.rows)), -1, np.int64)
    where[:, batches.indices] = [store.find(list(some.values())) for some in keys]
    again = _compute_on_read(batches, frozen, shape, half=half)

    def fetch(indices: Ints, chosen: Ints) -> torch.Tensor:
        try:
            return torch.from_numpy(store.gather(where[chosen, indices]))
        except (StorageError, IndexError):  # damaged since it was found, or before
            return again(indices, chosen)

    return _replace_images(batches, variants, fetch)


def count_missing(
    batches: BatchLoader,
    frozen: FrozenPrefix,
    shape: tuple[int, ...],
    digests: Sequence[bytes],
    *,
    variants: int = 1,
    half: bool = False,
    limit: int | None = None,
) -> int:
    """Return how many features `cache_on_disk`, with the same arguments, would compute: those that are not stored."""
    keys = _row_keys(batches, digests, variants)
    try:
        store = _open_store(frozen, shape, half=half, limit=limit)
        return sum(int((store.find(list(some.values())) < 0).sum()) for some in keys)
    except StorageError:
        return variants * len(batches.indices)


def _row_keys(batches: BatchLoader, digests: Sequence[bytes], variants: int) -> list[dict[int, bytes]]:
    """Return for each variant the key of the features of each row of `batches`."""
    changed, prepared = bool(batches.augmentations), _preprocessing_digest(batches)
    return [
        {
            index: make_feature_key(digests[index], prepared, variant if changed else 0)
            for index in batches.indices.tolist()
        }
        for variant in range(variants)
    ]


def _open_store(frozen: FrozenPrefix, shape: tuple[int, ...], *, half: bool, limit: int | None) -> ArrayStore:
    """Return the store of the features that `frozen` computes.

    Raises:
        StorageError: The cache folder cannot be used.
    """
    name = f"{_network_digest(frozen)}-{'x'.join(map(str, shape))}-{'half' if half else 'single'}-version-{VERSION}"
    return ArrayStore(cache_folder("features") / name, shape, np.float16 if half else np.float32, limit)


def cache_in_memory(
    batches: BatchLoader,
    frozen: FrozenPrefix,
    shape: tuple[int, ...],
    *,
    variants: int = 1,
    half: bool = False,
    title: str = "computing features",
) -> BatchLoader:
    """Return the same batches as `cache_on_disk`, kept in memory, or computed in every epoch if they exceed 512 MiB."""
    fetch = _compute_on_read(batches, frozen, shape, half=half)
    if feature_bytes_per_image(shape, half=half) * len(batches.indices) * variants <= IN_MEMORY:
        kept = torch.empty(variants, len(batches.rows), *shape, dtype=torch.float16 if half else torch.float32)
        with progress(title, variants * len(batches.indices), "images") as shown:
            for variant in range(variants):
                for some, features in _computed(batches, frozen, batches.indices, variant):
                    kept[variant, some] = features.to(kept)
                    shown.advance(len(some))

        def fetch(indices: Ints, chosen: Ints) -> torch.Tensor:
            return kept[torch.from_numpy(chosen), torch.from_numpy(indices)]

    return _replace_images(batches, variants, fetch)


def cache_on_disk_or_in_memory(
    batches: BatchLoader,
    frozen: FrozenPrefix,
    shape: tuple[int, ...],
    digests: Sequence[bytes],
    *,
    variants: int = 1,
    half: bool = False,
    limit: int | None = None,
    shared: ShardLocation | None = None,
    title: str = "computing features",
) -> BatchLoader:
    """Return the batches of `cache_on_disk`, or those of `cache_in_memory` if the disk has no room."""
    try:
        return cache_on_disk(
            batches, frozen, shape, digests, variants=variants, half=half, limit=limit, shared=shared, title=title
        )
    except StorageError as error:
        say(f"features are not stored on disk: {error}; they are computed again next time")
        return cache_in_memory(batches, frozen, shape, variants=variants, half=half, title=title)


# Rows and variants to features (B, *shape), float16 or float32.
Fetch = Callable[[Ints, Ints], torch.Tensor]


def _replace_images(batches: BatchLoader, variants: int, fetch: Fetch) -> BatchLoader:
    """Return batches of what `fetch` returns: variant k in epoch k, and a random one after the last."""

    def read(indices: Ints, epoch: int) -> torch.Tensor:
        draws = PerImageRandomNumbers(batches.seed, epoch, indices, place=len(batches.augmentations))
        drawn = draws.below(0, variants).numpy()
        chosen = np.full(len(indices), epoch) if epoch < variants else drawn
        features = fetch(indices, chosen).to(batches.device).float()
        layout = batches.memory_format if features.dim() == 4 else torch.contiguous_format
        return features.contiguous(memory_format=layout)

    return batches.with_images(read)


def _compute_on_read(batches: BatchLoader, frozen: FrozenPrefix, shape: tuple[int, ...], *, half: bool) -> Fetch:
    def fetch(indices: Ints, chosen: Ints) -> torch.Tensor:
        features = torch.empty(len(indices), *shape, dtype=torch.float16 if half else torch.float32)
        for variant in np.unique(chosen).tolist():
            places = np.flatnonzero(chosen == variant)
            features[torch.from_numpy(places)] = frozen(batches.images(indices[places], variant)).to(features)
        return features

    return fetch


def _find_missing(store: ArrayStore, keys: Sequence[Mapping[int, bytes]], batches: BatchLoader) -> list[Ints]:
    """Return for each variant the images whose features are not stored; all processes must call this.

    Raises:
        StorageError: They do not fit, in one of the processes.
    """

    def find() -> list[Ints]:
        missing = [batches.indices[store.find(list(some.values())) < 0] for some in keys]
        count = sum(map(len, missing))
        if count > store.room():  # before anything is computed
            raise _no_room_error(store)
        report_disk_use("features", count * (store.row_bytes + INDEX_ENTRY.itemsize), store)
        return missing

    return distributed.call_on_all(find, StorageError)


def _compute(
    missing: Sequence[Ints],
    store: ArrayStore,
    keys: Sequence[Mapping[int, bytes]],
    batches: BatchLoader,
    title: str,
    frozen: FrozenPrefix,
) -> None:
    """Compute and store the features of the images `missing` of each variant.

    Raises:
        StorageError: The features do not fit or cannot be written.
    """
    with progress(title, sum(map(len, missing)), "images") as shown:
        for variant, indices in enumerate(missing):
            for some, features in _computed(batches, frozen, indices, variant):
                row_keys = [keys[variant][index] for index in some.tolist()]
                if (store.append(row_keys, features.float().cpu().numpy()) < 0).any():
                    raise _no_room_error(store)  # other processes stored theirs meanwhile
                shown.advance(len(some))


def _no_room_error(store: ArrayStore) -> StorageError:
    return StorageError(
        f"{store.folder} has no room for more features, within {format_bytes(store.limit)}; raise --cache-limit, or "
        "leave the features unstored with --no-cache"
    )


def _computed(
    batches: BatchLoader, frozen: FrozenPrefix, indices: Ints, variant: int
) -> Iterator[tuple[Ints, torch.Tensor]]:
    """Yield indices of some images and their features of one variant, until all of `indices` are done.

    Images that cannot be read are left out.
    """
    at_once = min(batches.batch_size, feature_batch_size(batches.preprocess.size))
    for start in range(0, len(indices), at_once):
        images, some = batches.read(indices[start : start + at_once], variant)
        yield some, frozen(images)


def _network_digest(frozen: FrozenPrefix) -> str:
    """Return a hash of the weights and of what the network does with them."""
    digest = hashlib.blake2b(str(getattr(frozen.prefix, "code", "")).encode(), digest_size=12)
    for name, tensor in sorted(frozen.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _preprocessing_digest(batches: BatchLoader) -> bytes:
    """Return a hash of everything that happens to an image before the network."""
    # Arrays are the pixels themselves; other rows say how they are decoded.
    how = getattr(batches.rows, "pixel_settings", "")
    some, _ = read_readable_rows(batches.rows, batches.indices[:FIRST])
    parts = [batches.preprocess.model_dump_json(), str(some.shape[1:]), how]
    if batches.augmentations:
        parts += [one.model_dump_json() for one in batches.augmentations] + [f"seed {batches.seed}"]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()


def available_cache_bytes(limit: int | None) -> int:
    """Return the bytes of features that can be cached: on disk within `limit`, else in memory."""
    try:
        store = ArrayStore(cache_folder("features") / "room", (1,), np.float32, limit)
    except StorageError:
        return IN_MEMORY
    return store.room() * feature_bytes_per_image((1,), half=False)
