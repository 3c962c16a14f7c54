"""Images that belong together, as those of one patient or video do, by their file names."""

import re
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from svertka.data.dataset import Dataset, FileImages
from svertka.errors import UsageError
from svertka.escaping import join_first


def assign_groups(dataset: Dataset, pattern: str) -> Dataset:
    """`dataset` with the group of each image taken from its file name: what `pattern` finds, or its first group ().

    A pattern with a slash is searched in the path from the source on instead, as "/(patient[0-9]+)/".

    Raises:
        UsageError: the pattern is no regular expression; it does not match every name, or finds one group only.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"group={pattern} is not a regular expression: {error}; such as '(patient[0-9]+)'") from error
    names = [_searched(dataset, index, whole="/" in pattern) for index in range(len(dataset))]
    found = [compiled.search(name) for name in names]
    lost = [name for name, match in zip(names, found, strict=True) if match is None]
    if lost:
        raise UsageError(f"group={pattern} does not match {len(lost):,} of {len(names):,} names: {join_first(lost)}")
    # A group () that took no part in the match, as one side of an alternative, leaves the whole match.
    groups = [next((one for one in match.groups() if one), match[0]) for match in found if match is not None]
    empty = next((name for name, group in zip(names, groups, strict=True) if not group), None)
    if empty is not None:
        raise UsageError(f"group={pattern} finds nothing in {empty}; it must match at least one character")
    if len(set(groups)) == 1:
        raise UsageError(f"group={pattern} finds one group only, {groups[0]}; it must tell several groups apart")
    return replace(dataset, groups=np.array(groups))


def _searched(dataset: Dataset, index: int, *, whole: bool) -> str:
    name = dataset.images.name(index)
    if not whole:
        return PurePath(name).name
    root = dataset.images.root if isinstance(dataset.images, FileImages) else Path()
    try:
        return "/" + PurePath(name).relative_to(root).as_posix()
    except ValueError:  # an absolute path in a CSV
        return PurePath(name).as_posix()
