"""Names that people give to the training, validation and test parts of their data."""

import re
from collections.abc import Iterable

WORDS = {
    "train": ("train", "training", "trn", "trainset"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "valset"),
    "test": ("test", "testing", "tst", "testset"),
}
PART_OF_WORD = {word: part for part, words in WORDS.items() for word in words}
EVALUATION = ("eval", "evaluation")
# Words without meaning beside the name of a part: train_images, test-set.
FILLERS = {"set", "data", "images", "image", "imgs", "img", "split", "folder", "part", "photos", "pictures", "labels"}


def match_split_name(name: str) -> str | None:
    """Return the part that a folder or word called `name` means; None if it means none.

    >>> [match_split_name(name) for name in ("Training", "test_images", "seg_train", "trains")]
    ['train', 'test', None, None]
    """
    found = _read(name)
    return found[0] if found and not found[1] else None


def find_split_name(name: str) -> str:
    """Return the part that one word of `name` means, whatever its other words; "" if none or several do.

    >>> [find_split_name(name) for name in ("imagenet1k-train-0012.tar", "birds.tar")]
    ['train', '']
    """
    found = _read(name)
    return found[0] if found else ""


def match_split_names(names: Iterable[str]) -> dict[str, str]:
    """Return the part that each of the sibling folders `names` means, without those that mean none.

    A further word that several share ("seg_train", "seg_test") is ignored. "evaluation" is the test part if there is
    another val part and no test part.
    """
    read = {name: meant for name in names if (meant := _read(name))}
    shared = {rest for part, rest in read.values() if part == "train"}
    found = {name: part for name, (part, rest) in read.items() if not rest or rest in shared}
    kinds = list(found.values())
    late = [name for name, part in found.items() if part == "val" and set(_words(name)) & set(EVALUATION)]
    if late and "test" not in kinds and kinds.count("val") > len(late):
        found |= dict.fromkeys(late, "test")
    # A single folder whose name has a further word is not a part.
    lone = [name for name in found if read[name][1]]
    if len({found[name] for name in lone}) < 2:
        found = {name: part for name, part in found.items() if name not in lone}
    return found


def _read(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the part that `name` means and its further words; None if it means none, or several."""
    words = _words(name)
    parts = [PART_OF_WORD[word] for word in words if word in PART_OF_WORD]
    if len(parts) != 1:
        return None
    return parts[0], tuple(word for word in words if word not in PART_OF_WORD and word not in FILLERS)


def _words(name: str) -> list[str]:
    """Return the words of "segTrain", "seg_train" or "SEG TRAIN 2", in lower case, without trailing numbers."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W_]+", spaced.lower()) if word]
    return [word.rstrip("0123456789") or word for word in words]
