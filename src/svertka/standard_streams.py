"""stdout and stderr that may be full, closed, or a terminal that is gone: only messages are lost in silence."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# What a stream prints that cannot encode these; other characters become escapes.
ASCII = str.maketrans({"…": "...", "×": "x", "–": "-", "→": "->", "·": "*", "≤": "<=", "²": "2"})

_lost: list[str] = []  # why nothing more can be printed on stderr


class OutputLostError(Exception):
    """stdout takes nothing more; `wanted`: whether somebody still reads it. Not an OSError, which may be of a file."""

    def __init__(self, reason: str, *, wanted: bool) -> None:
        super().__init__(reason)
        self.wanted = wanted


class _Stream:
    """A text stream (None: a closed one) whose failures are `_failed`; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or say why not in the way of the class."""
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, "it is closed")
            self.stream.write(text)
        except (OSError, ValueError) as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Write what is still held back."""
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
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
    """`stream`, which is stderr, as one that goes on when nothing can be written into it."""
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
    """Why messages on stderr are lost; None as long as they are not."""
    return _lost[0] if _lost else None


@contextmanager
def guard_streams() -> Iterator[None]:
    """Let stdout raise OutputLostError and stderr be silent during the body, where they take nothing more."""
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
    """Open what is closed of the first three descriptors, else a file of ours becomes stdout for libraries in C."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _let_go(stream: Any) -> None:
    """Flush `stream`; what it cannot take is dropped, else the interpreter complains about it when it ends."""
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
