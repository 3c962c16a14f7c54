"""A data set divided into train, val and test, so that no image of one part, nor a copy of it, is in another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Dataset, Ints
from svertka.data.file_accounting import FileAccount
from svertka.data.group_split import split_groups
from svertka.data.split import reseed, split
from svertka.escaping import join_first

WARNED_SHARE = 0.01  # of a part that resembles what was trained on; above it, the report says so
LEFT_OUT = "are copies of training images and are left out"
COPIES = "copy"  # in place of the part that the source says, of images in no part
CROWD = 0.1  # of the images to divide: look-alikes beyond that share are all of one kind, not copies


@dataclass(frozen=True)
class Overlap:
    """Images of `part` that are in the training set, too: `count` of `images`, `names` says which, or of
    which groups.

    `how`: what they have in common with it, the verb and all.
    """

    part: str
    how: str
    count: int
    images: int
    names: tuple[str, ...]

    @property
    def is_large(self) -> bool:
        """Whether the error on this part is in doubt for them."""
        return self.count > WARNED_SHARE * self.images

    @property
    def sentence(self) -> str:
        """The same for people."""
        share = f"{100 * self.count / self.images:.1f} %"
        return f"{self.count:,} of {self.images:,} {self.part} images ({share}) {self.how}: {join_first(self.names)}"


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """`indices` of the images in "train", "val" and "test", each (n,) int64, ascending.

    `overlaps`: what the source has in several parts. `notes`: what else to know of how it was divided, sentences.
    """

    indices: dict[str, Ints]
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()

    def add_to(self, account: FileAccount) -> FileAccount:
        """`account` with what this says: large overlaps are warnings, for they put the results in doubt."""
        large = [one.sentence for one in self.overlaps if one.is_large]
        small = [one.sentence for one in self.overlaps if not one.is_large]
        return replace(account, notes=(*account.notes, *self.notes, *small), warnings=(*account.warnings, *large))


def split_by_content(
    dataset: Dataset, digests: Sequence[bytes], good: Ints, val: float, test: float, *, turn: int = 0
) -> DatasetSplit:
    """As `divided`, but by nothing except the contents: as all runs were before they recorded their images."""
    contents = reseed([digests[i] for i in good.tolist()], turn)
    chosen = split(contents, dataset.labels[good], dataset.parts[good], val, test)
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
    """The images at `good` of `dataset` in their parts; `val`, `test`: shares, as for `split`.

    Copies, near-duplicates and images of one group are kept in one part where the source does not say which. Where it
    does, copies of training images in its test part, or of either in its val part, are in no part: they would judge, or
    choose, by what was trained on. `digests`: of the contents of all images. `alike`: indices of near-duplicates, group
    by group. `turn`: another number divides otherwise. `inherited`: digests of images that the weights were already
    trained on, which therefore cannot judge.

    Raises:
        UsageError: the shares leave nothing to learn from.
        DataError: the groups cannot be divided.
    """
    contents = [digests[i] for i in good.tolist()]
    labels, named = dataset.labels[good], dataset.parts[good]
    void = find_duplicate_parts(contents, named, inherited)
    named = np.where(np.isin(named, list(void)), COPIES, named)
    notes = _contradictions(dataset, good, contents)
    place_of = {int(index): place for place, index in enumerate(good)}
    links = [[place_of[index] for index in group] for group in alike]
    in_pool = (named == "") | (named == "train")
    together = [group for group in links if len(group) <= max(CROWD * in_pool.sum(), 2)]
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
    learnt = sum(in_pool[place] for place, content in enumerate(contents) if content in inherited)
    if learnt and (val or test):
        are = "image trained" if learnt == 1 else "images trained"
        notes.append(f"{learnt:,} {are} the weights that it starts from, and cannot be taken for val or test")
    if groups is None:
        chosen = split(reseed(keys, turn), labels, named, val, test, pinned=set(reseed(sorted(pinned), turn)))
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


def find_duplicate_parts(
    contents: Sequence[bytes], named: npt.NDArray[np.str_], inherited: frozenset[bytes]
) -> dict[str, Ints]:
    """The parts that the source names and of which every image is a copy of one to train on: places of these images."""
    learnt = {content for content, part in zip(contents, named.tolist(), strict=True) if part in ("", "train")}
    found = {part: np.flatnonzero(named == part).astype(np.int64) for part in ("val", "test")}
    return {
        part: places
        for part, places in found.items()
        if len(places) and all(contents[place] in learnt | inherited for place in places.tolist())
    }


def _contradictions(dataset: Dataset, good: Ints, contents: list[bytes]) -> list[str]:
    """A sentence on images that are copies of one of another class, if there are any."""
    first: dict[bytes, int] = {}
    pairs = []
    for index, content in zip(good.tolist(), contents, strict=True):
        other = first.setdefault(content, index)
        if dataset.labels[other] != dataset.labels[index]:
            pairs.append(f"{dataset.images.name(other)} = {dataset.images.name(index)}")
    if not pairs:
        return []
    are = "image is a copy" if len(pairs) == 1 else "images are copies"
    return [f"{len(pairs):,} {are} of one of another class, so that one label is wrong: {join_first(pairs)}"]


def _units(contents: list[bytes], alike: list[list[int]], groups: npt.NDArray[np.str_] | None) -> Ints:
    """What must stay together, as a number for each image, (N,)."""
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
    """For each image the lowest content of its unit: which does not depend on names or order."""
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
    """`chosen` without the copies that the source itself has in several parts, and what of it is in doubt.

    `void`: what was left out of it before, for being copies. `val_is_drawn`: val was taken from the training images of
    the source: a test image that is a copy of one of them is left out, or else nothing might be left to choose by.
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
    learnt = set(chosen["train"].tolist())
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
        note(part, "are near-duplicates of training images", [p for p in left if look.get(p, set()) & learnt])
        if groups is not None:
            of_group = [place for place in left if groups[place] in groups_learnt]
            named = list(dict.fromkeys(str(groups[place]) for place in of_group))
            note(part, "are of groups that are in the training set, too", of_group, named)
    return DatasetSplit({part: good[kept[part]] for part in kept}, tuple(overlaps), tuple(notes))
