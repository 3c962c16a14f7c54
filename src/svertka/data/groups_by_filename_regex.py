"""Groups of images that belong together, such as those of one patient or video, by file name."""

import re
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from svertka.data.dataset import Dataset, FileImages
from svertka.errors import UsageError
from svertka.escaping import join_first


def assign_groups(dataset: Dataset, pattern: str) -> Dataset:
    """Assign each image to a group by its file name.

    Args:
        dataset: The images.
        pattern: Regular expression; the group is what it matches, or its first matching capture group. A pattern with a
            slash is searched in the path from the source on, as in "/(patient[0-9]+)/".

    Raises:
        UsageError: The pattern is not a regular expression, does not match every name, or finds only one group.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"group={pattern} is not a regular expression: {error}; use one such as '(patient[0-9]+)'"
        ) from error
    names = [_searched(dataset, index, whole="/" in pattern) for index in range(len(dataset))]
    found = [compiled.search(name) for name in names]
    lost = [name for name, match in zip(names, found, strict=True) if match is None]
    if lost:
        raise UsageError(f"group={pattern} does not match {len(lost):,} of {len(names):,} names: {join_first(lost)}")
    # If no capture group took part in the match, as in an alternative, the group is the whole match.
    groups = [next((one for one in match.groups() if one), match[0]) for match in found if match is not None]
    empty = next((name for name, group in zip(names, groups, strict=True) if not group), None)
    if empty is not None:
        raise UsageError(f"group={pattern} finds nothing in {empty}; it must match at least one character")
    if len(set(groups)) == 1:
        raise UsageError(f"group={pattern} finds only one group, {groups[0]}; it must find several")
    return replace(dataset, groups=np.array(groups))


def _searched(dataset: Dataset, index: int, *, whole: bool) -> str:
    name = dataset.images.name(index)
    if not whole:
        return PurePath(name).name
    root = dataset.images.root if isinstance(dataset.images, FileImages) else Path()
    try:
        return "/" + PurePath(name).relative_to(root).as_posix()
    except ValueError:  # an absolute path in a CSV file
        return PurePath(name).as_posix()
