"""Class names found in file names such as "cat.0.jpg", for a hint on how to label the images."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from svertka.escaping import join_first

WORDS = r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)"
FORMS = (
    re.compile(r"(n\d{8})_\d+"),  # ImageNet: n01440764_10026
    re.compile(rf"{WORDS}[\W_]*\d[\W\d_]*"),  # cat.0, american_bulldog_12, dog (3)
    re.compile(rf"[\W\d_]*\d[\W_]*{WORDS}"),  # 0001_cat
)
KNOWN_SHARE = 0.9  # of the files must have one form for a hint


def extract_label(path: str, form: re.Pattern[str]) -> str | None:
    """Return the class in the name of the file `path` if it has this form, else None."""
    match = form.fullmatch(PurePath(path).stem)
    return match[1] if match else None


def suggest_labeling(paths: Sequence[str]) -> str | None:
    """Return what to do if the file names seem to contain their classes, else None.

    Two or more words, each in several names, are taken for classes.
    """
    for form in FORMS:
        labels = [extract_label(path, form) for path in paths]
        counts = Counter(label for label in labels if label)
        many = [label for label, count in counts.items() if count > 1]
        if len(many) > 1 and sum(counts[label] for label in many) >= KNOWN_SHARE * len(paths):
            path, label = next((path, label) for path, label in zip(paths, labels, strict=True) if label in many)
            return (
                f"their names contain {join_first(sorted(many), 5)}: if those are the classes, write a CSV file of "
                "path,label "
                f"with a line for each image, such as {path},{label}, and give it as SOURCE"
            )
    return None
