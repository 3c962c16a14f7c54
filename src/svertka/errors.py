"""Everything that can go wrong and be mended by the one who asked.

    SvertkaError          the message is one sentence: what, which value, what was needed, what to do
    ├── UsageError        what was asked for cannot be: an option, a name, a path, a combination
    ├── DataError         the images do not allow it
    │   └── ImageError  one image cannot be read
    │       ├── FormatError   it is in none of the formats
    │       └── SizeError     it has more pixels than the limit
    ├── RunError          a run folder or a file in it: there already, damaged, made by a newer version
    ├── TrainingError     training cannot go on: it diverged, or a worker was lost
    │   └── Interrupted   it was asked to stop, and what it did is saved
    ├── ExportError       an exported file does not compute what the network does
    ├── StorageError      the disk is full, or a folder cannot be written
    └── FetchError        something has to be downloaded and cannot be

The command line prints the message and exits with `exit_code`.
"""


class SvertkaError(Exception):
    """The root of the tree; catch it to catch everything that svertka raises on purpose."""

    exit_code = 1


class UsageError(SvertkaError, ValueError):
    """What was asked for cannot be: an option, a name, a path, or a combination of them."""

    exit_code = 2


class DataError(SvertkaError):
    """The images do not allow the request: only one class, none readable, or too many unreadable."""


class ImageError(DataError):
    """An image cannot be read; the message is only the reason, because the caller knows the path."""


class FormatError(ImageError):
    """An image has an unsupported format."""


class SizeError(ImageError):
    """An image has more pixels than the limit."""


class RunError(SvertkaError):
    """A run folder, or a file in it, is there already, damaged, or made by a newer version."""


class TrainingError(SvertkaError):
    """Training cannot go on: it diverged, or a worker process was lost."""


class Interrupted(TrainingError):  # noqa: N818 - nothing went wrong
    """Training, or the making of an atlas, was asked to stop; the message says how it goes on."""

    exit_code = 130

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExportError(SvertkaError):
    """An exported file does not compute what the network does, so that it was not written."""


class StorageError(SvertkaError):
    """The disk is full, or a folder cannot be read or written."""


class FetchError(SvertkaError):
    """A file has to be downloaded and cannot be; the message says which file to put where."""
