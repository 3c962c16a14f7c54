"""Split and fingerprint of very many images, computed on whole arrays instead of image by image."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from svertka.data.content_hash import sort_halves
from svertka.data.dataset import PARTS, Dataset, Ints
from svertka.data.deduplicated_split import LEFT_OUT, DatasetSplit, Overlap
from svertka.data.hash_split import check_split_shares, hash_to_unit_interval, reseed_digests
from svertka.errors import DataError

MOST = 200_000  # images that are split and compared one by one
NOTE = "among so many images, val and test are drawn by digest alone, and near-duplicates are not searched for"
NAMED = 3  # images that an overlap names


def split_large_dataset(
    dataset: Dataset,
    digests: Sequence[bytes],
    good: Ints,
    val: float,
    test: float,
    *,
    turn: int = 0,
    inherited: frozenset[bytes] = frozenset(),
) -> DatasetSplit:
    """Split the images at `good` by the hash of their content, as `split_by_hash` does without strata.

    Copies stay in one part. Val and test images that the source has in its training set, too, are left out, and so are
    those that the initial weights were trained on.

    Args:
        dataset: The images.
        digests: Content digest of each image.
        good: Indices of the readable images, (n,) int64.
        val, test: Shares, as for `split_by_hash`.
        turn: Another number splits differently.
        inherited: Digests of images that the initial weights were trained on.

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: The source has groups, which are split image by image.
    """
    check_split_shares(val, test)
    if dataset.groups is not None:
        raise DataError(f"{dataset.source} has {len(good):,} images, and groups are split only up to {MOST:,}")
    contents = [digests[index] for index in good.tolist()]
    keys = _keys(contents)
    known = _is_among(keys, _keys(sorted(inherited)))
    named = dataset.parts[good]
    chosen = np.where(named == "", "train", named).astype("<U5")
    drawn = [part for part in ("val", "test") if not (named == part).any() and (val if part == "val" else test)]
    notes = []
    if drawn:
        u = np.array([hash_to_unit_interval(one) for one in reseed_digests(contents, turn)])
        pool = (chosen == "train") & ~known
        for part, is_drawn in (("val", u < val), ("test", u >= 1 - test)):
            if part in drawn:
                chosen[pool & is_drawn] = part
        notes.append(NOTE)
    overlaps = []
    trained = keys[chosen == "train"]
    for part in ("test", "val"):
        copies = chosen == part
        copies[copies] = _is_among(keys[copies], trained) | known[copies]
        if copies.any():
            names = tuple(dataset.images.name(int(index)) for index in good[copies][:NAMED])
            overlaps.append(Overlap(part, LEFT_OUT, int(copies.sum()), int((chosen == part).sum()), names))
            chosen[copies] = ""
    of_test = chosen == "val"
    of_test[of_test] = _is_among(keys[of_test], keys[chosen == "test"])
    chosen[of_test] = ""
    return DatasetSplit({part: good[chosen == part] for part in PARTS}, tuple(overlaps), tuple(notes))


def fingerprint_large_dataset(dataset: Dataset, digests: Sequence[bytes], good: Ints, indices: dict[str, Ints]) -> str:
    """Compute a digest of the contents, classes and parts of images, independent of their paths and order.

    Args:
        dataset: The images.
        digests: Content digest of each image.
        good: Indices of the readable images.
        indices: Indices of the images in each part; some images may be in none.
    """
    part_of = np.full(len(dataset), len(PARTS), np.int64)
    for number, part in enumerate(PARTS):
        part_of[indices[part]] = number
    keys = _keys([digests[index] for index in good.tolist()])
    order = sort_halves(keys["low"], keys["high"], dataset.labels[good], part_of[good])
    found = hashlib.blake2b(repr(dataset.names).encode(errors="surrogatepass"), digest_size=16)
    for column in (keys, dataset.labels[good], part_of[good]):
        found.update(np.ascontiguousarray(column[order]).tobytes())
    return found.hexdigest()


def _keys(contents: Sequence[bytes]) -> npt.NDArray[np.void]:
    """Return digests of 16 bytes as an array, (n,), that can be sorted."""
    return np.frombuffer(b"".join(contents), np.dtype([("low", "<u8"), ("high", "<u8")]))


def _is_among(keys: npt.NDArray[np.void], others: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Return whether each of `keys` (n,) is one of `others`; halves of the digests are compared first, in arrays."""
    if not len(others):
        return np.zeros(len(keys), bool)
    ordered = np.sort(others["low"])  # np.isin takes ten times as long
    found: npt.NDArray[np.bool_] = (
        ordered[np.minimum(np.searchsorted(ordered, keys["low"]), len(ordered) - 1)] == keys["low"]
    )
    if found.any():
        wanted = {key.tobytes() for key in others[np.isin(others["low"], keys["low"][found])]}
        found[found] = [key.tobytes() in wanted for key in keys[found]]
    return found
