"""What a SOURCE on the command line means: a published data set by name, a folder, or a CSV file."""

import difflib
from pathlib import Path

from svertka.data.box_labels import labelled_by_boxes
from svertka.data.builtin import NAMES, open_published
from svertka.data.dataset import Dataset
from svertka.data.image_folder import open_folder
from svertka.data.label_tables import parse_columns
from svertka.errors import UsageError
from svertka.files import parse_path


def open_source(
    source: str | Path, *, to_train: bool = True, columns: str | None = None, boxes: str | Path | None = None
) -> Dataset:
    """The pictures that `source` names: one of `published.NAMES`, else a folder or a table such as a CSV file.

    A folder that is called as a published data set is opened with a path that says so: "./mnist". `to_train`: whether
    the pictures must do for training, or only be judged. `columns`: what the columns of a table mean, where they are
    called otherwise: "path=file,label=class". `boxes`: as for `bounding_boxes.read_boxes`; they label the images of a
    folder that holds no class folders.

    Raises:
        UsageError: neither a name nor a path; `columns` of something without columns.
        DataError, FetchError: as `open_published` and `open_folder`.
    """
    meanings = parse_columns(columns)
    if str(source) in NAMES:
        if meanings:
            raise UsageError(f"columns={columns} are of a table, and {source} is a published data set; leave them out")
        return open_published(str(source))
    refuse_misspelt(source)
    if boxes is not None and parse_path(source).is_dir():
        labelled = labelled_by_boxes(parse_path(source), parse_path(boxes), meanings)
        if labelled is not None:
            return labelled
    return open_folder(source, to_train=to_train, columns=meanings)


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two sources are one: the same published data set, or paths that lead to the same place."""
    if str(one) in NAMES or str(other) in NAMES:
        return str(one) == str(other)
    return parse_path(one).resolve() == parse_path(other).resolve()


def refuse_misspelt(source: str | Path) -> None:
    """Nothing, if `source` is a path that exists.

    Raises:
        UsageError: there is no such path; where `source` resembles a published data set, that one is suggested.
    """
    path = parse_path(source)
    if path.exists():
        return
    near = difflib.get_close_matches(str(source).lower(), NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder, a .csv file or one of: {', '.join(NAMES)}"
    raise UsageError(f"there is no folder {path}; {hint}")
