"""Requests to stop, by Ctrl-C, SIGTERM or SIGHUP: followed at once, or noted until a good moment."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
AGAIN_SECONDS = 0.05  # until a request is repeated where an exception would be lost
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A request to stop came, the signal `number`; whoever handles Ctrl-C handles this, too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class StopRequest:
    """`number`: the signal that came; None as long as none did."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """As shells say that a process ended by a signal: 130, 143 or 129."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def raise_on_stop() -> Iterator[StopRequest]:
    """Let each request raise `Stopped` during the body, and tell which came.

    It is raised a little later where it would be lost: in an import, since PyTorch goes on without NumPy if that of
    NumPy fails, and in a finalizer.
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
def defer_stop() -> Iterator[StopRequest]:
    """Only note a request during the body; a second one of its kind is handled as it was before."""
    request = StopRequest()
    before: dict[int, Handler | int | None] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = number
        signal.signal(number, before[number])

    with _handled_by(note) as handlers:
        before |= handlers
        yield request


def _is_import(frame: FrameType | None) -> bool:
    """Whether what runs in `frame` is called by an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handled_by(handler: Handler) -> Iterator[dict[int, Handler | int | None]]:
    """Let `handler` handle the requests during the body, in the main thread; what handled them before, by number.

    A hang-up that is ignored, as under nohup, stays ignored.
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
