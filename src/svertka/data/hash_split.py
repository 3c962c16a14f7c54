"""Random split of images into training, validation and test parts by the hash of their content."""

import hashlib
import math
from collections.abc import Sequence, Set

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import PARTS, Dataset, Ints
from svertka.errors import UsageError
from svertka.tasks import Regression

VAL_SHARE = 0.1  # of the training images, if a source has no val part
STRATIFIED_BELOW = 1000  # contents of a class; in larger classes, drawn shares differ by little from those asked for


def split_by_hash(
    digests: Sequence[bytes],
    labels: Ints,
    parts: npt.NDArray[np.str_],
    val: float = VAL_SHARE,
    test: float = 0.0,
    *,
    pinned: Set[bytes] = frozenset(),
    stratified: bool = False,
) -> dict[str, Ints]:
    """Split images into "train", "val" and "test".

    A content hashes to a number u in [0, 1): val is u < val, test is u ≥ 1 − test, the rest is train. So copies of an
    image stay together, the part of an image does not depend on the others, and changing one share moves nothing
    between the other two parts. A class without training images keeps its middle content in train, and one without
    validation images gives its lowest to val, if it has two contents. Stratified, a class of fewer than 1,000 contents
    gives its lowest to val and its highest to test, as many as its shares, rounded.

    Args:
        digests: Content digest of each image.
        labels: Class of each image, (N,) int64.
        parts: Part that the source names for each image, (N,), as in `Dataset`. A part that the source has is kept, and
            its share is ignored.
        val, test: Shares of the images that the source calls "train" or nothing, 0 to 1.
        pinned: Digests that must be in train.
        stratified: Whether small classes are divided in the shares, instead of at random.

    Returns:
        Indices of the images in each part, (n,) int64, ascending.

    Raises:
        UsageError: The shares leave nothing to train on.
    """
    check_split_shares(val, test)
    val = 0.0 if (parts == "val").any() else val
    test = 0.0 if (parts == "test").any() else test

    chosen = np.where(parts == "", "train", parts).astype("<U5")
    contents: dict[bytes, list[int]] = {}
    for index in np.flatnonzero(chosen == "train"):
        contents.setdefault(digests[int(index)], []).append(int(index))
    u = {digest: hash_to_unit_interval(digest) for digest in contents}
    order = sorted(contents, key=lambda digest: (u[digest], digest))
    place = {digest: "train" if digest in pinned else _place(u[digest], val, test) for digest in order}
    # A content with several labels belongs to several classes.
    holders = {digest: {int(labels[index]) for index in contents[digest]} for digest in order}
    members: dict[int, list[bytes]] = {label: [] for label in sorted(set().union(*holders.values()))}
    for digest in order:
        for label in holders[digest]:
            members[label].append(digest)

    for label, mine in members.items() if stratified else ():
        if len(mine) < STRATIFIED_BELOW:
            place |= _stratified([digest for digest in mine if min(holders[digest]) == label], pinned, val, test)
    for mine in members.values():
        if "train" not in (place[digest] for digest in mine):
            place[mine[len(mine) // 2]] = "train"
    for mine in members.values() if val else ():
        if "val" not in (place[digest] for digest in mine):
            for digest in (one for one in mine if one not in pinned):
                if all(_other_train(digest, members[label], place) for label in holders[digest]):
                    place[digest] = "val"
                    break

    for digest, indices in contents.items():
        chosen[indices] = place[digest]
    return {part: np.flatnonzero(chosen == part).astype(np.int64) for part in PARTS}


def check_split_shares(val: float, test: float) -> None:
    """Raise UsageError if the shares of val and test leave nothing to train on."""
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"val={val} and test={test} must each be 0 or more and together below 1; use 0.1 and 0.1")


def reseed_digests(digests: Sequence[bytes], turn: int) -> Sequence[bytes]:
    """Return other keys for `split_by_hash`, so that each `turn` splits differently; turn 0 returns `digests`."""
    return [hashlib.blake2b(one + turn.to_bytes(4)).digest() for one in digests] if turn else digests


def compute_dataset_fingerprint(
    dataset: Dataset, digests: Sequence[bytes], good: Ints, indices: dict[str, Ints]
) -> str:
    """Compute a digest of the contents, labels and parts of images, independent of their paths and order.

    Args:
        dataset: The images.
        digests: Content digest of each image.
        good: Indices of the readable images.
        indices: Indices of the images in each part; some images may be in none.
    """
    part_of = {index: part for part, some in indices.items() for index in some.tolist()}
    is_number = isinstance(dataset.task, Regression)
    texts = {
        index: f"{dataset.labels[index]:.17g}" if is_number else dataset.label_text(index) for index in good.tolist()
    }
    lines = sorted(f"{digests[index].hex()} {text} {part_of.get(index, '')}" for index, text in texts.items())
    return hashlib.blake2b("\n".join(lines).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def hash_to_unit_interval(digest: bytes) -> float:
    """Return the position of a content, in [0, 1): uniform, and the same forever."""
    # A float holds the upper 53 of 64 bits exactly; all 64 could round to 1.
    return (int.from_bytes(hashlib.blake2b(b"svertka split" + digest, digest_size=8).digest()) >> 11) / 2**53


def _place(u: float, val: float, test: float) -> str:
    return "val" if u < val else "test" if u >= 1 - test else "train"


def _stratified(ordered: list[bytes], pinned: Set[bytes], val: float, test: float) -> dict[bytes, str]:
    """Return the parts of the contents of a class, given in rising order of u."""
    free = [digest for digest in ordered if digest not in pinned]
    num_val, num_test = (math.floor(share * len(ordered) + 0.5) for share in (val, test))
    parts = dict.fromkeys(ordered, "train") | dict.fromkeys(free[len(free) - min(num_test, len(free)) :], "test")
    return parts | dict.fromkeys(free[:num_val], "val")


def _other_train(digest: bytes, members: list[bytes], place: dict[bytes, str]) -> bool:
    """Return whether a class with these `members` has training images other than `digest`."""
    return any(place[other] == "train" and other != digest for other in members)
