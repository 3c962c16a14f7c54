"""ImageNet's 1000 classes, and the original flat validation folder with its label file.

The label file lies in the folder, in its parent, or in the devkit's ILSVRC2012_devkit_t12/data in either:

ILSVRC2012_validation_ground_truth.txt          one number per line; needs the devkit's meta.mat or map_clsloc.txt
imagenet_2012_validation_synset_labels.txt      one WordNet id per line
val.txt                                         a file name and a class per line: a WordNet id or an index

A line without a name belongs to the image of that number; the first is ILSVRC2012_val_00000001.JPEG. An index counts
from 0 in the order of the WordNet ids, as the outputs of published networks do. The numbers of the ground truth do
not: the devkit numbers the classes from 1 in an order that only its own files define.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from svertka.errors import DataError
from svertka.files import read_regular_file

# Names that two classes share, with WordNet's sense added to make them unique.
SENSES = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LABEL_FILES = ("val.txt", "imagenet_2012_validation_synset_labels.txt", GROUND_TRUTH)
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
LARGEST = 2**26  # bytes of a label file at most
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.")
WORDNET = re.compile(r"n\d{8}")

K = TypeVar("K", str, int)


@dataclass(frozen=True)
class ImageNetClass:
    """One of the 1000 classes.

    Attributes:
        wordnet: WordNet id, which names its folder ("n01440764").
        name: Its name ("tench").
    """

    wordnet: str
    name: str


def _read() -> tuple[ImageNetClass, ...]:
    """Read imagenet-classes.tsv: WordNet id, tab, name as the challenge spells it."""
    lines = Path(__file__).with_name("imagenet-classes.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return tuple(ImageNetClass(wordnet, SENSES.get(wordnet, name)) for wordnet, name in pairs)


# In the order of the WordNet ids, which is that of published networks' outputs.
CLASSES = _read()
NAMES = tuple(one.name for one in CLASSES)
_NAME_OF = {one.wordnet: one.name for one in CLASSES}


def find_class_name(text: str) -> str:
    """Return the class name of a WordNet id among the 1000; any other text unchanged.

    >>> find_class_name("n01440764")
    'tench'
    """
    return _NAME_OF.get(text, text)


def read_wordnet_names(file: Path, ids: Iterable[str]) -> dict[str, str]:
    """Return the names of WordNet ids: ImageNet's own, else the first name in `file`, WordNet's words.txt.

    Raises:
        DataError: The file cannot be read.
    """
    lines = (line.partition("\t") for line in _text(file).splitlines())
    first = {wordnet: name.partition(",")[0].strip() for wordnet, _, name in lines}
    return {one: _NAME_OF.get(one) or first.get(one) or one for one in ids}


def find_label_file(folder: Path) -> Path | None:
    """Return the label file of the images in a flat `folder`; None if there is none."""
    places = [place / inside for inside in (Path(), DEVKIT) for place in (folder, folder.absolute().parent)]
    return next((path for name in LABEL_FILES for place in places if (path := place / name).is_file()), None)


def read_validation_labels(file: Path, images: list[str]) -> list[str]:
    """Return the WordNet id of each image.

    Args:
        file: The label file.
        images: File names.

    Raises:
        DataError: An image is not in the file, a line cannot be parsed, or the devkit's order of classes is missing.
    """
    lines = [line.split() for line in _text(file).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} is empty; it needs one line per image")
    by_name = len(lines[0]) > 1
    if any((len(line) > 1) != by_name for line in lines):
        raise DataError(f"{file} mixes lines with and without an image name; use one format for all lines")
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
        return read_regular_file(file, LARGEST).decode()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{file} cannot be read as text: {reason}; copy it again") from error


def _number(name: str, file: Path) -> int:
    found = NUMBERED.match(name)
    if not found:
        raise DataError(
            f"{file} has no image names, so {name} must have its original name, such as ILSVRC2012_val_00000001.JPEG; "
            "restore the names, or write lines of name and class to val.txt"
        )
    return int(found[1])


def _of(known: dict[K, str], key: K, name: str, file: Path) -> str:
    if key not in known:
        raise DataError(f"{file} has no line for {name}; add it or remove the image")
    return known[key]


def _wordnet(label: str, numbers: dict[int, str], where: str) -> str:
    """Return the WordNet id of a label: a WordNet id, a devkit number if `numbers` is given, or an index."""
    if WORDNET.fullmatch(label):
        return label
    if not label.isdigit():
        raise DataError(f"{where} has the class {label}; use a WordNet id such as n01440764, or an index")
    if numbers:
        if int(label) not in numbers:
            raise DataError(f"{where} has the class {label}, which is not in the devkit; copy both files again")
        return numbers[int(label)]
    if int(label) >= len(CLASSES):
        raise DataError(f"{where} has the index {label}; indices range from 0 to {len(CLASSES) - 1}")
    return CLASSES[int(label)].wordnet


def _devkit_order(file: Path) -> dict[int, str]:
    """Return the WordNet id of each devkit number, from the file beside `file` that defines them."""
    table, listing = file.with_name("meta.mat"), file.with_name("map_clsloc.txt")
    if listing.is_file():
        found = {int(line[1]): line[0] for line in map(str.split, _text(listing).splitlines()) if _maps(line)}
    elif table.is_file():
        found = _read_meta(table)
    else:
        raise DataError(
            f"{file} numbers the classes in the devkit's own order, not that of the WordNet ids; put the devkit's "
            f"{table.name} beside it, or {listing.name} with lines such as: n02119789 1 kit_fox"
        )
    if not found:
        raise DataError(f"{listing if listing.is_file() else table} holds no classes; copy it from the devkit again")
    return found


def _maps(line: list[str]) -> bool:
    return len(line) > 1 and WORDNET.fullmatch(line[0]) is not None and line[1].isdigit()


def _read_meta(path: Path) -> dict[int, str]:
    """Return the leaves of the devkit's meta.mat; inner nodes of WordNet, which have children, are not classes."""
    from scipy.io import loadmat

    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # whatever damage makes scipy raise
        raise DataError(f"{path} cannot be read ({error}); copy it from the devkit again") from error
