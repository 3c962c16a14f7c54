"""Split of a data set into train, val and test without copies of an image in different parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Dataset, Ints
from svertka.data.file_accounting import FileAccount
from svertka.data.group_split import split_groups
from svertka.data.hash_split import reseed_digests, split_by_hash
from svertka.escaping import join_first

WARNED_SHARE = 0.01  # of a part may overlap with the training images without a warning
LEFT_OUT = "are copies of training images and are left out"
COPIES = "copy"  # replaces the part that the source names, for images in no part
CROWD = 0.1  # of the images; a larger group of look-alikes is one kind of image, not copies


@dataclass(frozen=True)
class Overlap:
    """Images of a part that are also in the training set.

    Attributes:
        part: The part.
        how: What they have in common with training images, as a predicate.
        count: Number of these images.
        images: Number of images in the part.
        names: Names of the images or of their groups.
    """

    part: str
    how: str
    count: int
    images: int
    names: tuple[str, ...]

    @property
    def is_large(self) -> bool:
        """Whether the overlap puts the error on this part in doubt."""
        return self.count > WARNED_SHARE * self.images

    @property
    def sentence(self) -> str:
        """The overlap as a sentence."""
        share = f"{100 * self.count / self.images:.1f} %"
        return f"{self.count:,} of {self.images:,} {self.part} images ({share}) {self.how}: {join_first(self.names)}"


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Split of a data set.

    Attributes:
        indices: Indices of the images in "train", "val" and "test", (n,) int64, ascending.
        overlaps: Images that the source has in several parts.
        notes: Sentences on how the data set was split.
    """

    indices: dict[str, Ints]
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()

    def add_to(self, account: FileAccount) -> FileAccount:
        """Return `account` with the notes of this split; large overlaps become warnings."""
        large = [one.sentence for one in self.overlaps if one.is_large]
        small = [one.sentence for one in self.overlaps if not one.is_large]
        return replace(account, notes=(*account.notes, *self.notes, *small), warnings=(*account.warnings, *large))


def split_by_content_as_before(
    dataset: Dataset, digests: Sequence[bytes], good: Ints, val: float, test: float, *, turn: int = 0
) -> DatasetSplit:
    """Split by content only, as runs did before they recorded their images."""
    contents = reseed_digests([digests[i] for i in good.tolist()], turn)
    chosen = split_by_hash(contents, dataset.task.strata(dataset.labels[good]), dataset.parts[good], val, test)
    return DatasetSplit({part: good[places] for part, places in chosen.items()})


def split_dataset(
    dataset: Dataset,
    digests: Sequence[bytes],
    good: Ints,
    val: float,
    test: float,
    *,
    alike: Sequence[Sequence[int]],
    turn: int = 0,
    inherited: frozenset[bytes] = frozenset(),
) -> DatasetSplit:
    """Split the images at `good` into parts.

    Where the source names no part, copies, near-duplicates and images of one group stay in one part. Where it does,
    copies of training images in its test part, and of training or test images in its val part, are in no part, because
    they would judge or choose by images that were trained on.

    Args:
        dataset: The images.
        digests: Content digest of each image.
        good: Indices of the readable images, (n,) int64.
        val, test: Shares, as for `split_by_hash`.
        alike: Groups of near-duplicates, indices.
        turn: Another number splits differently.
        inherited: Digests of images that the initial weights were trained on, which cannot judge.

    Raises:
        UsageError: The shares leave nothing to train on.
        DataError: The groups cannot be split.
    """
    contents = [digests[i] for i in good.tolist()]
    labels, named = dataset.task.strata(dataset.labels[good]), dataset.parts[good]
    void = find_copied_parts(contents, named, inherited)
    named = np.where(np.isin(named, list(void)), COPIES, named)
    notes = _contradictions(dataset, good, contents)
    place_of = {int(index): place for place, index in enumerate(good)}
    links = [[place_of[index] for index in group] for group in alike]
    in_pool = (named == "") | (named == "train")
    together = [group for group in links if len(group) <= _most_alike(int(in_pool.sum()))]
    if len(together) < len(links):
        crowd = sum(map(len, links)) - sum(map(len, together))
        notes.append(
            f"{crowd:,} images look nearly the same, too many to keep them in one part; if they belong together, as "
            "frames of a film do, say so with --group"
        )
    groups = None if dataset.groups is None else dataset.groups[good]
    units = _units(contents, [[place for place in group if in_pool[place]] for group in together], groups)
    keys = _keys(contents, units)
    pinned = {keys[place] for place, content in enumerate(contents) if content in inherited}
    learned = sum(in_pool[place] for place, content in enumerate(contents) if content in inherited)
    if learned and (val or test):
        are = "image trained" if learned == 1 else "images trained"
        notes.append(f"{learned:,} {are} the weights that it starts from, and cannot be taken for val or test")
    if groups is None:
        chosen = split_by_hash(
            reseed_digests(keys, turn),
            labels,
            named,
            val,
            test,
            pinned=set(reseed_digests(sorted(pinned), turn)),
            stratified=True,
        )
    else:
        notes.append(f"images of one group are kept in one part; there are {len(set(groups.tolist()) - {''}):,} groups")
        chosen = split_groups(dataset, keys, labels, named, val, test, turn=turn, pinned=pinned)
    notes += [
        f"all images of {part} are copies of training images, so that it is taken from the training images instead"
        for part in void
        if len(chosen[part])
    ]
    drawn = not (named == "val").any()
    return _without_copies(dataset, good, contents, chosen, together, groups, inherited, notes, void, drawn)


def find_copied_parts(
    contents: Sequence[bytes], named: npt.NDArray[np.str_], inherited: frozenset[bytes]
) -> dict[str, Ints]:
    """Find parts of the source that consist only of copies of training images.

    Returns:
        Part -> places of its images.
    """
    learned = {content for content, part in zip(contents, named.tolist(), strict=True) if part in ("", "train")}
    found = {part: np.flatnonzero(named == part).astype(np.int64) for part in ("val", "test")}
    return {
        part: places
        for part, places in found.items()
        if len(places) and all(contents[place] in learned | inherited for place in places.tolist())
    }


def group_related_images(
    indices: Ints, contents: list[bytes], alike: Sequence[Sequence[int]], groups: npt.NDArray[np.str_] | None = None
) -> Ints:
    """Return a number for each image, (N,), equal for copies, near-duplicates and images of one group.

    Args:
        indices: Index of each image, (N,) int64.
        contents: Content digest of each image.
        alike: Groups of near-duplicates, indices; a crowd of them is ignored.
        groups: Group of each image, (N,). None: there are none.
    """
    place_of = {index: place for place, index in enumerate(indices.tolist())}
    links = [[place_of[index] for index in group if index in place_of] for group in alike]
    return _units(contents, [group for group in links if 1 < len(group) <= _most_alike(len(indices))], groups)


def group_images(
    dataset: Dataset, digests: Sequence[bytes], indices: Ints, alike: Sequence[Sequence[int]] | None
) -> Ints:
    """Return a number for each of some images, (N,), equal for copies, near-duplicates and images of one group.

    Args:
        dataset: The images, with their groups if they have some.
        digests: Content digest of each image of the data set.
        indices: Indices of some images, (N,) int64.
        alike: Groups of near-duplicates among them, indices; None: they were not compared.
    """
    own = None if dataset.groups is None else dataset.groups[indices]
    return group_related_images(indices, [digests[index] for index in indices.tolist()], alike or [], own)


def _most_alike(images: int) -> float:
    """Return the size of the largest group of look-alikes among `images` that are taken for copies."""
    return max(CROWD * images, 2)


def _contradictions(dataset: Dataset, good: Ints, contents: list[bytes]) -> list[str]:
    """Return a sentence on images that are copies of an image with another label, if there are any."""
    first: dict[bytes, int] = {}
    pairs = []
    for index, content in zip(good.tolist(), contents, strict=True):
        other = first.setdefault(content, index)
        if (dataset.labels[other] != dataset.labels[index]).any():
            pairs.append(f"{dataset.images.name(other)} = {dataset.images.name(index)}")
    if not pairs:
        return []
    are = "image is a copy" if len(pairs) == 1 else "images are copies"
    which = "of another class, so that one label is wrong"
    if not dataset.task.is_single_label:
        which = "with another target, so that one of the two is wrong"
    return [f"{len(pairs):,} {are} of one {which}: {join_first(pairs)}"]


def _units(contents: list[bytes], alike: list[list[int]], groups: npt.NDArray[np.str_] | None) -> Ints:
    """Return a number for each image, (N,), equal for images that must stay together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(contents)
    pairs = [(group[0], other) for group in alike for other in group[1:]]
    said: list[Sequence[object]] = [contents]
    if groups is not None:
        said.append([group or index for index, group in enumerate(groups.tolist())])
    for values in said:
        first: dict[object, int] = {}
        pairs += [(first.setdefault(value, index), index) for index, value in enumerate(values)]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    linked = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    numbers: Ints = connected_components(linked, directed=False)[1].astype(np.int64)
    return numbers


def _keys(contents: list[bytes], units: Ints) -> list[bytes]:
    """Return the lowest digest in each image's unit, which does not depend on names or order."""
    lowest: dict[int, bytes] = {}
    for unit, content in zip(units.tolist(), contents, strict=True):
        lowest[unit] = min(lowest.get(unit, content), content)
    return [lowest[unit] for unit in units.tolist()]


def _without_copies(
    dataset: Dataset,
    good: Ints,
    contents: list[bytes],
    chosen: dict[str, Ints],
    alike: list[list[int]],
    groups: npt.NDArray[np.str_] | None,
    inherited: frozenset[bytes],
    notes: list[str],
    void: dict[str, Ints],
    val_is_drawn: bool,
) -> DatasetSplit:
    """Return the split without images that the source has in several parts, and the overlaps that remain.

    Args:
        dataset: The images.
        good: Indices of the readable images.
        contents: Their digests.
        chosen: Places of the images in each part.
        alike: Groups of near-duplicates, places.
        groups: Group of each image.
        inherited: Digests that the initial weights were trained on.
        notes: Sentences so far.
        void: Images left out before, because their whole part is copies.
        val_is_drawn: Whether val was taken from the source's training images; then test images that are copies of val
            images are left out, because otherwise val might become empty.
    """
    trained = inherited | {contents[place] for place in chosen["train"].tolist()}
    drawn = {contents[place] for place in chosen["val"].tolist()} if val_is_drawn else set()
    tested = {contents[place] for place in chosen["test"].tolist()} - trained - drawn
    kept = {"train": chosen["train"]}
    overlaps = []

    def note(part: str, how: str, places: list[int], names: list[str] | None = None, total: int | None = None) -> None:
        if places:
            named = names or [dataset.images.name(int(good[place])) for place in places]
            overlaps.append(Overlap(part, how, len(places), total or len(chosen[part]), tuple(named)))

    for part, some in void.items():
        note(part, LEFT_OUT, some.tolist(), total=len(some))

    look = {place: set(group) for group in alike for place in group}
    learned = set(chosen["train"].tolist())
    groups_learnt = set() if groups is None else set(groups[chosen["train"]].tolist()) - {""}
    for part in ("val", "test"):
        places = chosen[part].tolist()
        known = [place for place in places if contents[place] in inherited]
        learnt_from = trained | drawn if part == "test" else trained
        copies = [place for place in places if contents[place] in learnt_from and contents[place] not in inherited]
        of_test = [place for place in places if part == "val" and contents[place] in tested]
        out = {*known, *copies, *of_test}
        kept[part] = np.array([place for place in places if place not in out], dtype=np.int64)
        note(part, "trained the weights that it starts from and are left out", known)
        note(part, LEFT_OUT, copies)
        note(part, "are copies of test images and are left out", of_test)
        left = kept[part].tolist()
        note(part, "are near-duplicates of training images", [p for p in left if look.get(p, set()) & learned])
        if groups is not None:
            of_group = [place for place in left if groups[place] in groups_learnt]
            named = list(dict.fromkeys(str(groups[place]) for place in of_group))
            note(part, "are of groups that are in the training set, too", of_group, named)
    return DatasetSplit({part: good[kept[part]] for part in kept}, tuple(overlaps), tuple(notes))
