"""ImageNet's 1000 classes, and its validation images as the challenge gave them out: a flat folder and a text file.

The label file lies in the folder, in the one above, or in the devkit's ILSVRC2012_devkit_t12/data in either:

ILSVRC2012_validation_ground_truth.txt          a number a line, with the devkit's meta.mat or map_clsloc.txt beside it
imagenet_2012_validation_synset_labels.txt      a WordNet id a line
val.txt                                         lines of an image's name and its class: a WordNet id, or an index

A line without a name belongs to the image of that number, ILSVRC2012_val_00000001.JPEG being the first. An index
counts from 0 in the order of the WordNet ids, as the outputs of published networks do. The numbers of the ground truth
do not: the devkit numbered the classes in an order of its own, from 1, and only its files say which.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from svertka.errors import DataError
from svertka.files import read_regular

# Words that name two classes each, with the sense that WordNet gives: a class name has to be the class's own.
SENSES = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LABEL_FILES = ("val.txt", "imagenet_2012_validation_synset_labels.txt", GROUND_TRUTH)
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
LARGEST = 2**26  # bytes of a label file
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.")
WORDNET = re.compile(r"n\d{8}")

K = TypeVar("K", str, int)


@dataclass(frozen=True)
class ImageNetClass:
    """One of the 1000: `wordnet`, the id that names its folder ("n01440764"), and `name`, its own ("tench")."""

    wordnet: str
    name: str


def _read() -> tuple[ImageNetClass, ...]:
    """The lines of imagenet-classes.tsv: WordNet id, tab, name as the challenge spells it."""
    lines = Path(__file__).with_name("imagenet-classes.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return tuple(ImageNetClass(wordnet, SENSES.get(wordnet, name)) for wordnet, name in pairs)


# In the order of the published networks' outputs, which is that of the WordNet ids.
CLASSES = _read()
NAMES = tuple(one.name for one in CLASSES)
_NAME_OF = {one.wordnet: one.name for one in CLASSES}


def class_name(text: str) -> str:
    """The class name of a WordNet id among the 1000; any other text as it is.

    >>> name_of("n01440764")
    'tench'
    """
    return _NAME_OF.get(text, text)


def read_wordnet_names(file: Path, ids: Iterable[str]) -> dict[str, str]:
    """What classes are called: ImageNet's own names, and for others the first that `file` has, WordNet's words.txt.

    Raises:
        DataError: it cannot be read.
    """
    lines = (line.partition("\t") for line in _text(file).splitlines())
    first = {wordnet: name.partition(",")[0].strip() for wordnet, _, name in lines}
    return {one: _NAME_OF.get(one) or first.get(one) or one for one in ids}


def find_label_file(folder: Path) -> Path | None:
    """The text file that says what is on the images of a flat `folder`; None where there is none."""
    places = [place / inside for inside in (Path(), DEVKIT) for place in (folder, folder.absolute().parent)]
    return next((path for name in LABEL_FILES for place in places if (path := place / name).is_file()), None)


def read_labels(file: Path, images: list[str]) -> list[str]:
    """The WordNet id of each of `images`, names of files, as the label file `file` has it.

    Raises:
        DataError: an image is not in it, or a line cannot be understood; or the devkit's order of classes is missing.
    """
    lines = [line.split() for line in _text(file).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} is empty; it needs a line an image")
    by_name = len(lines[0]) > 1
    if any((len(line) > 1) != by_name for line in lines):
        raise DataError(f"{file} has lines with an image's name and lines without; give all of them one form")
    numbers = {} if by_name or file.name != GROUND_TRUTH else _devkit_order(file)
    ids = [
        _wordnet(line[-1] if not by_name else line[1], numbers, f"line {k} of {file}")
        for k, line in enumerate(lines, 1)
    ]
    if by_name:
        known = {Path(line[0]).name.partition(".")[0]: label for line, label in zip(lines, ids, strict=True)}
        return [_of(known, name.partition(".")[0], name, file) for name in images]
    in_order = dict(enumerate(ids, start=1))
    return [_of(in_order, _number(name, file), name, file) for name in images]


def _text(file: Path) -> str:
    try:
        return read_regular(file, LARGEST).decode()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{file} cannot be read as text: {reason}; copy it again") from error


def _number(name: str, file: Path) -> int:
    found = NUMBERED.match(name)
    if not found:
        raise DataError(
            f"{file} names no images, so that {name} would have to be called as ILSVRC2012_val_00000001.JPEG; "
            "rename the images as they were, or give lines of name and class in a val.txt"
        )
    return int(found[1])


def _of(known: dict[K, str], key: K, name: str, file: Path) -> str:
    if key not in known:
        raise DataError(f"{file} has no line for {name}; add it or take the image away")
    return known[key]


def _wordnet(label: str, numbers: dict[int, str], where: str) -> str:
    """The WordNet id that `label` means: itself, a number of the devkit where there are such, or an index."""
    if WORDNET.fullmatch(label):
        return label
    if not label.isdigit():
        raise DataError(f"{where} has the class {label}; use a WordNet id such as n01440764, or an index")
    if numbers:
        if int(label) not in numbers:
            raise DataError(f"{where} has the class {label}, which the devkit does not number; copy both files again")
        return numbers[int(label)]
    if int(label) >= len(CLASSES):
        raise DataError(f"{where} has the index {label}; indices count from 0 to {len(CLASSES) - 1}")
    return CLASSES[int(label)].wordnet


def _devkit_order(file: Path) -> dict[int, str]:
    """The devkit's number of each class, from 1, to its WordNet id; from the file beside `file` that says it."""
    table, listing = file.with_name("meta.mat"), file.with_name("map_clsloc.txt")
    if listing.is_file():
        found = {int(line[1]): line[0] for line in map(str.split, _text(listing).splitlines()) if _maps(line)}
    elif table.is_file():
        found = _read_meta(table)
    else:
        raise DataError(
            f"{file} numbers the classes in the devkit's own order, not in that of WordNet ids; put the devkit's "
            f"{table.name} beside it, or {listing.name} with lines such as: n02119789 1 kit_fox"
        )
    if not found:
        raise DataError(f"{listing if listing.is_file() else table} holds no classes; copy it from the devkit again")
    return found


def _maps(line: list[str]) -> bool:
    return len(line) > 1 and WORDNET.fullmatch(line[0]) is not None and line[1].isdigit()


def _read_meta(path: Path) -> dict[int, str]:
    """The leaves of the devkit's meta.mat; inner nodes of WordNet, which have children, are no classes."""
    from scipy.io import loadmat

    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # whatever damage leads the reader to
        raise DataError(f"{path} cannot be read ({error}); copy it from the devkit again") from error
