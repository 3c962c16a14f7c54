"""What a SOURCE on the command line means: a published data set by name, a folder, or a CSV file."""

import difflib
from pathlib import Path

from svertka.data.dataset import Dataset
from svertka.data.folder import open_folder
from svertka.data.published import NAMES, open_published
from svertka.errors import UsageError


def open_source(source: str | Path, *, to_train: bool = True) -> Dataset:
    """The pictures that `source` names: one of `published.NAMES`, else a folder or a CSV file.

    A folder that is called as a published data set is opened with a path that says so: "./mnist". `to_train`: whether
    the pictures must do for training, or only be judged.

    Raises:
        UsageError: neither a name nor a path.
        DataError, FetchError: as `open_published` and `open_folder`.
    """
    if str(source) in NAMES:
        return open_published(str(source))
    refuse_misspelt(source)
    return open_folder(source, to_train=to_train)


def refuse_misspelt(source: str | Path) -> None:
    """Nothing, if `source` is a path that exists.

    Raises:
        UsageError: there is no such path; where `source` resembles a published data set, that one is suggested.
    """
    path = Path(source).expanduser()
    if path.exists():
        return
    near = difflib.get_close_matches(str(source).lower(), NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder, a .csv file or one of: {', '.join(NAMES)}"
    raise UsageError(f"there is no folder {path}; {hint}")
