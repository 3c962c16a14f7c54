"""Handling of Ctrl-C, SIGTERM and SIGHUP: an exception at once, or a flag to check later."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
AGAIN_SECONDS = 0.05  # until a signal is repeated where the exception would be lost
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Raised on the signal `number`; code that handles KeyboardInterrupt handles it, too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class StopRequest:
    """The last signal received during a context; `number` is None before."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of a process that a signal ended: 130, 143 or 129."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def raise_on_stop() -> Iterator[StopRequest]:
    """Raise `Stopped` on each signal during the body.

    It is raised AGAIN_SECONDS later where it would be lost: in an import, since PyTorch continues without NumPy if the
    import of NumPy fails, and in a finalizer.
    """
    request = StopRequest()
    repeated: list[threading.Timer] = []

    def repeat(number: int) -> None:
        timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        repeated.append(timer)

    def stop(number: int, frame: FrameType | None) -> None:
        request.number = number
        if _is_import(frame):
            repeat(number)
        else:
            raise Stopped(number)

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, Stopped):
            repeat(lost.exc_value.number)
        else:
            before(lost)

    with _handled_by(stop):
        before, sys.unraisablehook = sys.unraisablehook, unraisable
        try:
            yield request
        finally:
            sys.unraisablehook = before
            for timer in repeated:
                timer.cancel()


@contextmanager
def record_stop() -> Iterator[StopRequest]:
    """Only record a signal during the body; a second one of its kind is handled as before."""
    request = StopRequest()
    before: dict[int, Handler | int | None] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = number
        signal.signal(number, before[number])

    with _handled_by(note) as handlers:
        before |= handlers
        yield request


def _is_import(frame: FrameType | None) -> bool:
    """Return whether `frame` runs inside an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handled_by(handler: Handler) -> Iterator[dict[int, Handler | int | None]]:
    """Install `handler` for STOP_SIGNALS during the body, in the main thread; yield the previous handlers by number.

    SIGHUP stays ignored if it is, as under nohup.
    """
    before: dict[int, Handler | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            known = signal.getsignal(number)
            if not (known is signal.SIG_IGN and number == getattr(signal, "SIGHUP", None)):
                before[int(number)] = known
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, known in before.items():
            signal.signal(number, known)
