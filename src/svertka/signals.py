"""Requests to stop, by Ctrl-C, SIGTERM or SIGHUP: followed at once, or noted until a good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A request to stop came, the signal `number`; whoever handles Ctrl-C handles this, too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Request:
    """`number`: the signal that came; None as long as none did."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """As shells say that a process ended by a signal: 130, 143 or 129."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def raising() -> Iterator[Request]:
    """Let each request raise `Stopped` during the body, and tell which came."""
    request = Request()

    def stop(number: int, _frame: FrameType | None) -> None:
        request.number = number
        raise Stopped(number)

    with _handled_by(stop):
        yield request


@contextmanager
def noted() -> Iterator[Request]:
    """Only note a request during the body; a second one of its kind is handled as it was before."""
    request = Request()
    before: dict[int, Handler | int | None] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = number
        signal.signal(number, before[number])

    with _handled_by(note) as handlers:
        before |= handlers
        yield request


@contextmanager
def _handled_by(handler: Handler) -> Iterator[dict[int, Handler | int | None]]:
    """Let `handler` handle the requests during the body, in the main thread; what handled them before, by number.

    A hang-up that is ignored, as under nohup, stays ignored.
    """
    before: dict[int, Handler | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
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
