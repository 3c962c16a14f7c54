"""Split of images into train, val and test in whole groups, stratified by class."""

import warnings
from collections.abc import Set
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Dataset, Ints
from svertka.data.hash_split import check_split_shares
from svertka.errors import DataError

FOLDS = 20  # at most; shares are rounded to this many folds


def split_groups(
    dataset: Dataset,
    keys: list[bytes],
    labels: Ints,
    parts: npt.NDArray[np.str_],
    val: float,
    test: float,
    *,
    turn: int = 0,
    pinned: Set[bytes] = frozenset(),
) -> dict[str, Ints]:
    """Split images in whole groups.

    Every class keeps at least one group in train.

    Args:
        dataset: Data set whose class names and source appear in messages.
        keys: Key of each image, (N,); images with equal keys stay in one part.
        labels: Class or stratum of each image, (N,) int64.
        parts: Part that the source names for each image, (N,).
        val, test: Shares, as for `split_by_hash`.
        turn: Another number splits differently.
        pinned: Keys of groups that must be in train.

    Returns:
        Indices of the images in "train", "val" and "test".

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: The groups cannot be split in this way.
    """
    check_split_shares(val, test)
    chosen = np.where(parts == "", "train", parts).astype("<U5")
    shares = {"test": 0.0 if (parts == "test").any() else test, "val": 0.0 if (parts == "val").any() else val}
    left = 1.0
    for part, share in shares.items():
        if share:
            free = np.array([i for i in np.flatnonzero(chosen == "train") if keys[i] not in pinned], dtype=np.int64)
            free = free[np.lexsort((labels[free], [keys[i] for i in free]))]  # independent of the order of the files
            numbers = np.unique([keys[i] for i in free], return_inverse=True)[1]
            taken = free[_fold(numbers, labels[free], share / left, turn)]
            chosen[_spared(taken, keys, labels, chosen)] = part
            if not (chosen == part).any():
                raise DataError(_why_not(dataset, keys, labels, chosen, part))
        left -= share
    return {part: np.flatnonzero(chosen == part).astype(np.int64) for part in ("train", "val", "test")}


def _fold(groups: Ints, labels: Ints, share: float, turn: int) -> Ints:
    """Return the places of about `share` of the images, in whole groups; none if there are fewer than two groups."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = len(np.unique(groups))
    most = int(np.bincount(labels).max()) if len(labels) else 0
    folds = min(Fraction(share).limit_denominator(FOLDS).denominator, count, most)
    folds = max(folds, min(2, count, most))
    if folds < 2:
        return np.zeros(0, np.int64)
    taken = min(max(round(share * folds), 1), folds - 1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=turn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer images than there are folds
        tests = [test for _, test in splitter.split(labels, labels, groups)]
    tests = sorted(tests, key=lambda test: _unfitness(test, labels))
    return np.sort(np.concatenate(tests[:taken])).astype(np.int64)


def _unfitness(test: Ints, labels: Ints) -> int:
    """Return 2 for an empty fold, as few groups make one; 1 for one that leaves too little to train on; 0 for others.

    A fold of more than half of the images, or of all images of a class, would be taken by one large group.
    """
    if not len(test):
        return 2
    counts = np.bincount(labels)
    is_whole_class = (np.bincount(labels[test], minlength=len(counts)) == counts) & (counts > 0)
    return int(2 * len(test) > len(labels) or bool(is_whole_class.any()))


def _spared(taken: Ints, keys: list[bytes], labels: Ints, chosen: npt.NDArray[np.str_]) -> Ints:
    """Return `taken` without the smallest groups that a class needs in train."""
    while True:
        rest = chosen == "train"
        rest[taken] = False
        lost = set(labels[taken].tolist()) - set(labels[rest].tolist())
        if not lost:
            return taken
        sizes: dict[bytes, int] = {}
        for place in taken.tolist():
            sizes[keys[place]] = sizes.get(keys[place], 0) + 1
        needed = [keys[place] for place in taken.tolist() if labels[place] == min(lost)]
        smallest = min(needed, key=lambda key: (sizes[key], key))
        taken = np.array([place for place in taken.tolist() if keys[place] != smallest], dtype=np.int64)


def _why_not(dataset: Dataset, keys: list[bytes], labels: Ints, chosen: npt.NDArray[np.str_], part: str) -> str:
    pool = np.flatnonzero(chosen == "train").tolist()
    groups_of: dict[int, set[bytes]] = {}
    for place in pool:
        groups_of.setdefault(int(labels[place]), set()).add(keys[place])
    strata = sorted(groups_of.items()) if dataset.task.is_single_label else ()
    alone = [dataset.names[label] for label, some in strata if len(some) == 1]
    reason = f"{alone[0]} has only one group" if alone else f"{len({keys[place] for place in pool})} groups are too few"
    return (
        f"{dataset.source} cannot be split by groups: {reason}, and {part} needs one besides those in train; add "
        f"groups or use --{part} 0"
    )
