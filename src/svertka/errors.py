"""Errors that a user can fix.

    SvertkaError          the message is one sentence: what, which value, what is expected, what to do
    ├── UsageError        an option, a name, a path or a combination of them is impossible
    ├── DataError         the images do not allow the request
    │   └── ImageError    one image cannot be read
    │       ├── ImageFormatError    its format is not supported
    │       └── ImageTooLargeError  it exceeds a limit of pixels, memory or time
    ├── RunError          a run folder or a file in it exists already, is damaged, or was made by a newer version
    ├── TrainingError     training cannot continue: it diverged, or a worker was lost
    │   └── Interrupted   it was asked to stop, and its state is saved
    ├── ExportMismatchError  an exported file does not compute what the network does
    ├── StorageError      the disk is full, or a folder cannot be written
    └── FetchError        a file must be downloaded and cannot be

The command line prints the message and exits with `exit_code`.
"""


class SvertkaError(Exception):
    """The base class of all errors that svertka raises on purpose."""

    exit_code = 1


class UsageError(SvertkaError, ValueError):
    """An option, a name, a path or a combination of them is impossible."""

    exit_code = 2


class DataError(SvertkaError):
    """The images do not allow the request: only one class, none readable, or too many unreadable."""


class ImageError(DataError):
    """An image cannot be read; the message is only the reason, because the caller knows the path."""


class ImageFormatError(ImageError):
    """An image has an unsupported format."""


class ImageTooLargeError(ImageError):
    """An image exceeds a limit: of pixels, of memory or of the time for decoding."""


class RunError(SvertkaError):
    """A run folder, or a file in it, exists already, is damaged, or was made by a newer version."""


class TrainingError(SvertkaError):
    """Training cannot continue: it diverged, or a worker process was lost."""


class Interrupted(TrainingError):  # noqa: N818 - nothing went wrong
    """Training, or building an atlas, was asked to stop; the message says how to resume it."""

    exit_code = 130

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExportMismatchError(SvertkaError):
    """An exported file computes something other than the network, so it was not written."""


class StorageError(SvertkaError):
    """The disk is full, or a folder cannot be read or written."""


class FetchError(SvertkaError):
    """A file must be downloaded and cannot be; the message says which file to put where."""
