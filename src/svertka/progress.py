"""Done of total and time left: a bar on a terminal, a line now and then elsewhere. All of it on stderr."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from svertka import distributed
from svertka.escaping import to_printable
from svertka.standard_streams import wrap_stderr

FIRST_LINE = 2.0  # seconds before the first line where stderr is not a terminal, and
LINE_EVERY = 10.0  # between lines


def say(text: str = "") -> None:
    """Print a line for the person watching (stderr, first process only); stdout stays free for results."""
    if distributed.is_first():
        Console(file=wrap_stderr(sys.stderr), soft_wrap=True, highlight=False, markup=False).print(to_printable(text))


class Progress:
    """Tells how far one job is; made by `progress`."""

    def __init__(self, title: str, total: int, bars: Bars | None) -> None:
        title = to_printable(title)
        self.title, self.total, self.done, self._note = title, total, 0, ""
        self._bars, self._task = bars, TaskID(0)
        self._began = self._told = time.monotonic()
        if bars is not None:
            self._task = bars.add_task(title, total=total, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self.done += count
        self._note = note
        if self._bars is not None:
            self._bars.update(self._task, advance=count, note=note)
        elif time.monotonic() - self._told > (LINE_EVERY if self._told > self._began else FIRST_LINE):
            self._told = time.monotonic()
            left = (self._told - self._began) / max(self.done, 1) * (self.total - self.done)
            note = f", {self._note}" if self._note else ""
            ahead = f", {duration(left)} left" if 0 < self.done <= self.total else ""
            say(f"{self.title}: {self.done} of {self.total}{note}{ahead}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bars is not None:
            self._bars.console.print(to_printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Show the progress of the body, which calls `.advance`; the bar goes away when the body ends."""
    stderr = wrap_stderr(sys.stderr)
    if stderr.isatty() and distributed.is_first():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        # Rows that are printed meanwhile go above the bar on a terminal, and stay on stdout where that is none.
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        with Bars(*columns, console=Console(file=stderr), transient=True, redirect_stdout=on_terminal) as bars:
            yield Progress(title, total, bars)
    else:
        yield Progress(title, total, None)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Say that the body, of which nobody knows how far it is, is at work, if it takes more than two seconds."""
    timer = threading.Timer(FIRST_LINE, say, [f"{title} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def duration(seconds: float) -> str:
    """A time as people say it: "8 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
