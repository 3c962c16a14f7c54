"""Account of every file under a SOURCE: used, left out and why, or not an image."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from svertka.escaping import join_first, to_printable
from svertka.text_width import shorten

LONGEST = 100  # characters of a path in a sentence
SHOWN = 3  # examples per reason in a sentence

HIDDEN = "hidden or a system file"
OWN = "made by svertka"
UNREAD_FORMAT = "unsupported format"
NO_CLASS = "not in a class folder"
NO_PART = "not in a part (train, val, test)"
NO_LABEL = "no label in the table"
NO_BOXES = "no boxes"
LISTED_ALREADY = "its folder is already used through a link"
LEADS_BACK = "a link to a folder that contains it"
NOT_REGULAR = "not a regular file"
UNLISTED = "cannot be listed"


@dataclass(frozen=True, order=True)
class UnusedFile:
    """File that is or may be an image, or a folder that cannot be listed, and why it is not used."""

    path: str
    reason: str

    @property
    def suffix(self) -> str:
        """Suffix by which files are counted: ".jpg", "no suffix", or "folder"."""
        return get_suffix(self.path)


@dataclass(frozen=True)
class FileAccount:
    """Files under a SOURCE that are not used, and remarks on how it was read.

    Attributes:
        left_out: Images, or files that may be images, by path.
        not_images: (suffix, number) of other files.
        notes: Sentences on how the source was interpreted.
        warnings: Sentences on what may be wrong with it.
    """

    left_out: tuple[UnusedFile, ...] = ()
    not_images: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def groups(self) -> list[tuple[str, str, list[str]]]:
        """Return (suffix, reason, paths) of the files left out, the most numerous first."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one in self.left_out:
            found[one.suffix, one.reason].append(one.path)
        ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
        return [(suffix, reason, paths) for (suffix, reason), paths in ordered]

    def sentence(self) -> str | None:
        """Return what was left out as one sentence; None if nothing was."""
        groups = self.groups()
        if not groups:
            return None
        said = []
        for suffix, reason, paths in groups:
            named = "" if reason == OWN else f" ({join_first([*map(_example, paths)], SHOWN)})"
            said.append(f"{len(paths):,} {suffix}, {reason}{named}")
        return f"left out: {'; '.join(said)}"

    def others(self) -> str | None:
        """Return a sentence that counts the files that are not images by suffix; None if there are none."""
        if not self.not_images:
            return None
        return "not images: " + to_printable(", ".join(f"{count:,} {suffix}" for suffix, count in self.not_images))

    def sentences(self) -> list[str]:
        """Return the notes, the warnings, what was left out and what is not an image, as sentences for people."""
        warnings = [f"warning: {one}" for one in self.warnings]
        files = filter(None, (self.sentence(), self.others()))
        return [*map(to_printable, self.notes), *map(to_printable, warnings), *files]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: `left_out` by suffix and reason, `not_images` by suffix, `notes` and `warnings`."""
        return {
            "left_out": [
                {"suffix": suffix, "reason": reason, "count": len(paths), "examples": paths[:SHOWN]}
                for suffix, reason, paths in self.groups()
            ],
            "not_images": dict(self.not_images),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def get_suffix(path: str) -> str:
    """Return the suffix of a path in lower case, "no suffix", or "folder" for a path that ends in a slash."""
    if path.endswith("/"):
        return "folder"
    return PurePath(path).suffix.lower() or "no suffix"


def _example(path: str) -> str:
    return to_printable(shorten(path, LONGEST))


def count_by_suffix(paths: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return the number of `paths` with each suffix, the most numerous first."""
    return tuple(sorted(Counter(map(get_suffix, paths)).items(), key=lambda item: (-item[1], item[0])))
