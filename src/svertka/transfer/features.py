"""The frozen part of a network, run once: what it gives for each picture is stored, and learnt from."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from svertka import distributed
from svertka.data.batches import Batches
from svertka.data.dataset import Ints
from svertka.data.draws import Draws
from svertka.data.store import RECORD, Store
from svertka.errors import StorageError
from svertka.files import cache_folder, in_bytes
from svertka.progress import progress
from svertka.transfer.freeze import Frozen

# Of pictures, by their rows, and the number of a variant: some of the rows after the other, and the features of these.
Compute = Callable[[Ints, int], Iterator[tuple[Ints, torch.Tensor]]]

VERSION = 1  # of how features are computed; another finds nothing stored


def row_bytes(shape: tuple[int, ...], *, half: bool) -> int:
    """What the features of one picture, of `shape`, take on disk, as float32 or in `half` of that, float16."""
    return int(np.prod(shape)) * (2 if half else 4) + RECORD.itemsize


def stored(
    batches: Batches,
    frozen: Frozen,
    shape: tuple[int, ...],
    digests: Sequence[bytes],
    *,
    variants: int = 1,
    half: bool = False,
    limit: int | None = None,
    title: str = "computing features",
    compute: Compute | None = None,
) -> Batches:
    """`batches` with what `frozen` gives for their pictures, (B, *shape) float32, in place of them.

    Computed once, in batches of the same size, and stored in the cache folder under the digest of the picture, the
    weights and all that prepares the picture: what was stored before is read, what changed is computed anew, and a
    damaged row too. `digests`: of the contents, for each of the rows. `variants`: of each picture, augmented
    differently; epoch k learns from variant k as far as there are so many, then from one drawn at random. `half`: store
    float16. `limit`: bytes of all stored features together; None as `Store` says. `compute`: what is to compute them,
    where there is a quicker way than batch by batch.

    Raises:
        StorageError: no room on the disk, or it cannot be written.
    """
    name = f"{_of_network(frozen)}-{'x'.join(map(str, shape))}-{'half' if half else 'single'}-version-{VERSION}"
    store = Store(cache_folder("features") / name, shape, np.float16 if half else np.float32, limit)
    changed = bool(batches.augmentations)
    prepared = _of_preparation(batches)
    keys = [
        {index: _key(digests[index], prepared, variant if changed else 0) for index in batches.indices.tolist()}
        for variant in range(variants)
    ]
    missing = [batches.indices[store.find(list(some.values())) < 0] for some in keys]
    missing = [np.array_split(some, distributed.world())[distributed.rank()] for some in missing]
    with progress(title, sum(map(len, missing))) as shown:
        for variant, indices in enumerate(missing):
            for some, features in (compute or _batch_by_batch(batches, frozen))(indices, variant):
                row_keys = [keys[variant][index] for index in some.tolist()]
                if (store.append(row_keys, features.float().cpu().numpy()) < 0).any():
                    raise StorageError(
                        f"{store.folder} has no room for more features, within {in_bytes(store.limit)}; "
                        "raise --cache-limit, or leave the features unstored with --no-cache"
                    )
                shown.advance(len(some))
    distributed.barrier()
    where = np.full((variants, len(batches.rows)), -1, np.int64)
    where[:, batches.indices] = [store.find(list(some.values())) for some in keys]

    def read(indices: Ints, epoch: int) -> torch.Tensor:
        drawn = Draws(batches.seed, epoch, indices, place=len(batches.augmentations)).below(0, variants).numpy()
        chosen = np.full(len(indices), epoch) if epoch < variants else drawn
        features = torch.from_numpy(store.gather(where[chosen, indices])).to(batches.device).float()
        layout = batches.memory_format if features.dim() == 4 else torch.contiguous_format
        return features.contiguous(memory_format=layout)

    return batches.giving(read)


def _batch_by_batch(batches: Batches, frozen: Frozen) -> Compute:
    def compute(indices: Ints, variant: int) -> Iterator[tuple[Ints, torch.Tensor]]:
        for start in range(0, len(indices), batches.batch_size):
            some = indices[start : start + batches.batch_size]
            yield some, frozen(batches.images(some, variant))

    return compute


def _of_network(frozen: Frozen) -> str:
    """A digest of its weights and of what it does with them."""
    digest = hashlib.blake2b(str(getattr(frozen.prefix, "code", "")).encode(), digest_size=12)
    for name, tensor in sorted(frozen.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _of_preparation(batches: Batches) -> bytes:
    """A digest of all that a picture goes through before it comes to the network."""
    parts = [batches.preprocess.model_dump_json(), str(batches.rows[batches.indices[:1]].shape)]
    if batches.augmentations:
        parts += [one.model_dump_json() for one in batches.augmentations] + [f"seed {batches.seed}"]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()


def _key(content: bytes, prepared: bytes, variant: int) -> bytes:
    return hashlib.blake2b(content + prepared + variant.to_bytes(4, "little"), digest_size=16).digest()


def room(limit: int | None) -> int:
    """Bytes of features that may be stored: `limit`, or what `Store` would allow.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    return Store(cache_folder("features") / "room", (1,), np.float32, limit).room() * row_bytes((1,), half=False)
