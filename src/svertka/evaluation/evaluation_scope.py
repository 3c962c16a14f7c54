"""Which images an evaluation is about: the part of a source, and what was left out."""

from dataclasses import dataclass, field
from typing import Any

from svertka.data.file_accounting import FileAccount
from svertka.escaping import join_first, to_printable

NAMED = 5

# Words before "images".
PART_ADJECTIVES = {
    "test": "test ",
    "val": "validation ",
    "train": "training ",
    "held-out": "held-out ",
    "new": "new ",
    "all": "",
}


@dataclass(frozen=True)
class EvaluationScope:
    """The images of a source that were evaluated.

    Attributes:
        source: The source as it was named.
        part: "test", "val" or "train"; "new" for images that the run has never seen; "held-out" for its own test or
            validation images and new ones; "all".
        training_images: Images that the run was trained on; left out unless `includes_training`.
        includes_training: Whether training images were evaluated, too.
        unreadable: Images that could not be read.
        near_duplicates: New images that look the same as training images; None if this was not compared.
        note: A sentence about what is in doubt; None if nothing is.
        copies: Evaluated images that are copies of others.
        unread: Path and reason of each image that could not be read.
        account: The files of the source that are not used.
        optimized: For each run that computed with its optimized network, a sentence that says so.
    """

    source: str
    part: str
    training_images: int = 0
    includes_training: bool = False
    unreadable: int = 0
    near_duplicates: int | None = None
    note: str | None = None
    copies: int = 0
    unread: tuple[tuple[str, str], ...] = ()
    account: FileAccount = field(default_factory=FileAccount)
    optimized: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The scope in words."""
        kind = "all images" if self.part == "all" else f"{PART_ADJECTIVES[self.part]}images"
        if self.includes_training and self.part not in ("all", "train"):
            kind = f"{PART_ADJECTIVES[self.part]}and training images"
        return "; ".join((f"judged: {self.source}, {kind}", *self.remarks))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything unexpected, a sentence each."""
        said = []
        if self.training_images and self.includes_training:
            said.append(f"{self.training_images:,} of these trained the network: the error is too low")
        elif self.training_images:
            said.append(
                f"{format_image_count(self.training_images)} that trained the network left out (--include-training)"
            )
        if self.near_duplicates:
            look, judged = "looks" if self.near_duplicates == 1 else "look", format_image_count(self.near_duplicates)
            said.append(f"{judged} judged {look} the same as training images (near-duplicates)")
        if self.copies:
            are = "is a copy of another" if self.copies == 1 else "are copies of others"
            said.append(f"{format_image_count(self.copies)} judged {are} judged: the interval is too narrow")
        if self.unreadable:
            said.append(f"{format_image_count(self.unreadable)} could not be read{self._names()}")
        return (*self.optimized, *said, *([self.note] if self.note else []), *self.account.sentences())

    def _names(self) -> str:
        named = join_first(
            [f"{to_printable(path)}: {to_printable(reason)}" for path, reason in self.unread], NAMED, "; "
        )
        return f" ({named})" if named else ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `note` only where there is one."""
        return {
            "source": self.source,
            "part": self.part,
            "training_images": self.training_images,
            "includes_training": self.includes_training,
            "unreadable": self.unreadable,
            "near_duplicates": self.near_duplicates,
            "copies": self.copies,
            "unread": [{"path": path, "reason": reason} for path, reason in self.unread],
            "optimized": list(self.optimized),
            **self.account.to_dict(),
        } | ({"note": self.note} if self.note else {})


def format_image_count(number: int) -> str:
    """Return "1 image", "1,200 images" and so on."""
    return "1 image" if number == 1 else f"{number:,} images"
