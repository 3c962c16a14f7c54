"""What became of every file under a SOURCE: used, left out and why, or not an image."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from svertka.escaping import join_first, to_printable
from svertka.files import shorten

LONGEST = 100  # characters of a path, in a sentence
SHOWN = 3  # examples of a kind, in a sentence

HIDDEN = "hidden, or left by the system"
OWN = "made by svertka"
UNREAD_FORMAT = "format not read"
NO_CLASS = "in no class folder"
NO_PART = "in no part (train, val, test)"
NO_LABEL = "no label in the table"
NO_BOXES = "no boxes"
LISTED_ALREADY = "its folder is used already, through a link"
LEADS_BACK = "a link that leads back"
NOT_REGULAR = "not a regular file"
UNLISTED = "cannot be listed"


@dataclass(frozen=True, order=True)
class LeftOut:
    """A file that is an image, or may be one, or a folder that cannot be listed; and why it is not used."""

    path: str
    reason: str

    @property
    def suffix(self) -> str:
        """As files are counted by: ".jpg", "no suffix", or "folder"."""
        return suffix_of(self.path)


@dataclass(frozen=True)
class FileAccount:
    """All files under a SOURCE that are not used, and what has to be said of how it was read.

    `left_out`: images, or what may be some, by path. `not_images`: suffix -> other files. `notes`: sentences on how the
    source was understood, `warnings`: on what may be wrong with it.
    """

    left_out: tuple[LeftOut, ...] = ()
    not_images: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def groups(self) -> list[tuple[str, str, list[str]]]:
        """(suffix, reason, paths) of what was left out, the most numerous first."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one in self.left_out:
            found[one.suffix, one.reason].append(one.path)
        ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
        return [(suffix, reason, paths) for (suffix, reason), paths in ordered]

    def sentence(self) -> str | None:
        """What was left out in one sentence; None if nothing was."""
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
        """All that a person should know: the notes, the warnings, and what was left out."""
        warnings = [f"warning: {one}" for one in self.warnings]
        files = filter(None, (self.sentence(), self.others()))
        return [*map(to_printable, self.notes), *map(to_printable, warnings), *files]

    def to_dict(self) -> dict[str, Any]:
        """`left_out` by suffix and reason, `not_images` by suffix, `notes` and `warnings`."""
        return {
            "left_out": [
                {"suffix": suffix, "reason": reason, "count": len(paths), "examples": paths[:SHOWN]}
                for suffix, reason, paths in self.groups()
            ],
            "not_images": dict(self.not_images),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case, "no suffix", or "folder" for a path that ends in a slash."""
    if path.endswith("/"):
        return "folder"
    return PurePath(path).suffix.lower() or "no suffix"


def _example(path: str) -> str:
    return to_printable(shorten(path, LONGEST))


def count_by_suffix(paths: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """How many of `paths` have each suffix, the most numerous first."""
    return tuple(sorted(Counter(map(suffix_of, paths)).items(), key=lambda item: (-item[1], item[0])))
