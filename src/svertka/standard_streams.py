"""stdout and stderr that may be full, closed or gone: results raise an error, messages are dropped."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# What a stream prints that cannot encode these; other characters become escapes.
ASCII = str.maketrans({"…": "...", "×": "x", "–": "-", "→": "->", "·": "*", "≤": "<=", "²": "2"})

_lost: list[str] = []  # why stderr failed


class OutputLostError(Exception):
    """Raised when stdout fails; `wanted` is False if its reader is gone. Not an OSError, which files raise."""

    def __init__(self, reason: str, *, wanted: bool) -> None:
        super().__init__(reason)
        self.wanted = wanted


class _Stream:
    """A wrapper of a text stream (None if closed) that passes failures to `_failed`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text`."""
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, "it is closed")
            self.stream.write(text)
        except (OSError, ValueError) as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        with suppress(OSError, ValueError):
            return self.stream is not None and bool(self.stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream if self.stream is not None else sys.__stdin__, name)

    def _failed(self, error: Exception) -> None:
        raise NotImplementedError


class _Results(_Stream):
    def _failed(self, error: Exception) -> None:
        reader_left = isinstance(error, OSError) and error.errno == errno.EPIPE
        raise OutputLostError(_reason(error), wanted=not reader_left) from error


class _Messages(_Stream):
    def _failed(self, error: Exception) -> None:
        if not _lost:
            _lost.append(_reason(error))


def wrap_stderr(stream: Any) -> Any:
    """Return a wrapper of stderr that drops what cannot be written."""
    return stream if isinstance(stream, _Messages) else _Messages(stream)


def to_encodable(text: str, stream: Any) -> str:
    """Return `text` as `stream` prints it: with ASCII signs or escapes for what its encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def stderr_failure() -> str | None:
    """Return why stderr failed; None if it did not."""
    return _lost[0] if _lost else None


@contextmanager
def guard_streams() -> Iterator[None]:
    """During the body, raise OutputLostError if stdout fails, and drop messages if stderr fails."""
    _occupy_closed()
    before = sys.stdout, sys.stderr
    _lost.clear()
    sys.stdout, sys.stderr = _Results(sys.stdout), wrap_stderr(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _let_go(stream)


def _occupy_closed() -> None:
    """Open closed descriptors among the first three, so that no file becomes stdout for C libraries."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _let_go(stream: Any) -> None:
    """Flush `stream` and drop what fails, so that the interpreter does not report it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
