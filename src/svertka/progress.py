"""Messages and progress on stderr.

On a terminal the last line is one bar or spinner with the time left or elapsed, above it the latest state of the job.
Elsewhere (a pipe, a log file, TERM=dumb, CI) every message stays, and progress is a line every few seconds.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from svertka.escaping import to_printable
from svertka.standard_streams import to_encodable, wrap_stderr
from svertka.text_width import ELLIPSIS, join_items_that_fit, shorten, text_width

FIRST_LINE = 2.0  # seconds before the first line where stderr is not a terminal, and
LINE_EVERY = 10.0  # between lines, and
WORKING_LINE = 30.0  # before a job of unknown length is mentioned
STEADY_AFTER = 1.0  # seconds from the first units, which include the preparation, to an estimate of the time left
BAR_DELAY = 0.3  # seconds before a bar appears, so that short jobs do not flash
REFRESHES = 8  # per second
GAP = 2  # columns between the fields of the bar's line
MIN_BAR, MAX_BAR = 8, 30  # columns
MAX_TITLE = 24  # columns


def say(text: str) -> None:
    """Print a line on stderr, in the first process only; above the bar if there is one."""
    if _is_first_process():
        _print(to_encodable(to_printable(text), sys.stderr))


class FirstSentence:
    """Print the first of the lines that it is called with, and none after; threads may call it at once."""

    def __init__(self) -> None:
        self._unsaid = threading.Lock()  # which nobody releases

    def __call__(self, text: str) -> None:
        """Print `text` as `say` does, if this is the first call."""
        if self._unsaid.acquire(blocking=False):
            say(text)


def say_table(rows: list[tuple[str, str]]) -> None:
    """Print labels and values on stderr in two aligned columns; on a terminal long values continue in theirs."""
    if not rows or not _is_first_process():
        return
    shown = [[to_encodable(to_printable(cell), sys.stderr) for cell in row] for row in rows]
    width = max(text_width(label) for label, _ in shown)
    if not wrap_stderr(sys.stderr).isatty():
        for label, value in shown:
            _print(f"{label}{' ' * (width - text_width(label))}  {value}")
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in shown:
        table.add_row(Text(label), Text(value))
    _print(table)


class Progress:
    """The progress of one job, created by `progress` and `show_spinner`.

    Args:
        title: The job, such as "decoding".
        total: Number of units; 0 if not known.
        unit: What is counted, such as "images"; "%" for percent of a whole of 100.
        done: Number of units that were done before.
    """

    def __init__(self, title: str, total: int, unit: str = "", done: int = 0) -> None:
        self.title, self.total, self.unit, self.done = to_encodable(to_printable(title), sys.stderr), total, unit, done
        self.note = self.latest = ""
        self._start = done
        self._began = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many were done then

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count units that are done.

        Args:
            count: How many.
            note: What is shown beside them: facts separated by ", ", the most important first.
        """
        self.done += count
        self.note = note
        now = time.monotonic()
        if self._first is None and self.done > self._start:
            self._first = now, self.done
        waited = LINE_EVERY if self._last_line > self._began else FIRST_LINE
        if now - self._last_line > waited and not is_bar_shown():
            self._last_line = now
            remaining = self.seconds_left
            done = f"{self.done}%" if self.unit == "%" else f"{self.done} of {self.total} {self.unit}".rstrip()
            facts = [done, note]
            facts.append("" if remaining is None else f"{format_duration(remaining)} left")
            say(f"{self.title}: {', '.join(filter(None, facts))}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        say(text)

    def update(self, text: str) -> None:
        """Show a line above the bar in place of the last such line; elsewhere than on a terminal, print it.

        Args:
            text: Facts separated by ", ", the most important first; those that do not fit the width are left out.
        """
        if is_bar_shown():
            self.latest = to_encodable(to_printable(text), sys.stderr)
        else:
            say(text)

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the seconds left at the mean speed since the first units were done; None: not known."""
        if self._first is None or self.done > self.total:
            return None
        if self.done == self.total:
            return 0.0
        seconds, count = time.monotonic() - self._first[0], self.done - self._first[1]
        return seconds / count * (self.total - self.done) if count and seconds >= STEADY_AFTER else None


class _Display:
    """The bar at the bottom of the terminal, shared by all jobs that run at the same time.

    A job within another one has no bar of its own; its title is shown beside the bar of the outer job.
    """

    def __init__(self, console: Console, job: Progress) -> None:
        self.console = console
        self.jobs = [job]
        self._ellipsis = to_encodable(ELLIPSIS, console.file)
        self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        # Rows printed on stdout meanwhile go above the bar on a terminal, and stay on stdout where that is none.
        redirects = sys.stdout is not None and sys.stdout.isatty()
        self._live = Live(
            console=console,
            get_renderable=self._render,
            transient=True,
            redirect_stdout=redirects,
            refresh_per_second=REFRESHES,
        )
        self._timer = threading.Timer(BAR_DELAY, self._live.start, [True])
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Remove the bar."""
        self._timer.cancel()
        self._timer.join()
        self._live.stop()

    def _render(self) -> RenderableType:
        jobs, width = list(self.jobs), self.console.width - 1  # in the last column some terminals wrap already
        outer = next((job for job in jobs if job.total), jobs[-1])
        latest = next((job.latest for job in jobs if job.latest), "")
        inner = "" if jobs[-1] is outer else _short_state(jobs[-1])
        row = self._bar_row(outer, inner, width) if outer.total else self._spinner_row(outer, width)
        return Group(Text(join_items_that_fit(latest.split(", "), width), no_wrap=True), row) if latest else row

    def _spinner_row(self, job: Progress, width: int) -> RenderableType:
        elapsed = _coarse_duration(job.seconds) if job.seconds >= 1 else ""
        title = shorten(job.title, max(width - 2 - GAP - len(elapsed), 1), self._ellipsis)
        self._spinner.update(text=Text(f"{title}{' ' * GAP}{elapsed}"[: max(width - 2, 1)], no_wrap=True))
        return self._spinner

    def _bar_row(self, job: Progress, inner: str, width: int) -> RenderableType:
        """Lay out title, bar, count, time left and notes as far as they fit, the most important first."""
        title, count = (
            shorten(job.title, min(MAX_TITLE, max(width // 3, 1)), self._ellipsis),
            f"{job.done}%" if job.unit == "%" else f"{job.done:,}/{job.total:,}",
        )
        bar = min(max(width // 5, MIN_BAR), MAX_BAR)
        room = width - text_width(title) - GAP - len(count)
        bar = bar if room >= GAP + bar else 0
        room -= GAP + bar if bar else 0
        remaining = job.seconds_left
        left = "" if remaining is None else f"{_coarse_duration(remaining)} left"
        left = left if room >= GAP + len(left) else ""
        room -= GAP + len(left) if left else 0
        if job.unit not in ("", "%") and room > len(job.unit):
            count, room = f"{count} {job.unit}", room - 1 - len(job.unit)
        note = join_items_that_fit([inner] if inner else job.note.split(", "), room - GAP)
        fields: list[RenderableType] = [Text(title)]
        if bar:
            fields.append(ProgressBar(job.total, min(job.done, job.total), width=bar))
        fields += [Text(field) for field in (count, left, note) if field]
        grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for _ in fields:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*fields)
        return grid


_display: _Display | None = None
_lock = threading.Lock()


@contextmanager
def progress(title: str, total: int, unit: str = "", done: int = 0) -> Iterator[Progress]:
    """Show the progress of the body, which calls `.advance`.

    On a terminal the bar disappears at the end; the last line given to `.update` stays.

    Args:
        title: The job, such as "decoding".
        total: Number of units; 0 if not known.
        unit: What is counted, such as "images"; "%" for percent of a whole of 100.
        done: Number of units that were done before.
    """
    job = Progress(title, total, unit, done)
    with _displayed(job):
        yield job


@contextmanager
def show_spinner(title: str) -> Iterator[None]:
    """Show a spinner and the elapsed time while the body runs; elsewhere, a line if it takes long."""
    job = Progress(title, 0)
    with _displayed(job):
        timer = None if is_bar_shown() else threading.Timer(WORKING_LINE, say, [f"{title} …"])
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


def is_bar_shown() -> bool:
    """Return whether a bar is shown: stderr is a terminal that can redraw lines."""
    return _display is not None


def format_duration(seconds: float) -> str:
    """Return a time as people say it: "8.0 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@contextmanager
def _displayed(job: Progress) -> Iterator[None]:
    """Show `job` on the terminal during the body."""
    global _display
    with _lock:
        if _display is not None:
            _display.jobs.append(job)
        elif _can_redraw():
            _display = _Display(_console(), job)
        display = _display
    try:
        yield
    finally:
        with _lock:
            if display is not None:
                if display.jobs == [job]:
                    display.close()  # which removes the rows that it draws last
                    _display = None
                display.jobs.remove(job)
        if display is not None and job.latest:
            _print(join_items_that_fit(job.latest.split(", "), display.console.width - 1))


def _can_redraw() -> bool:
    stderr = wrap_stderr(sys.stderr)
    return _is_first_process() and stderr.isatty() and _console().is_interactive and not os.environ.get("CI")


def _is_first_process() -> bool:
    # Not `distributed.is_first`, which loads torch: a bar is shown while that happens.
    return os.environ.get("RANK", "0") == "0"


def _console() -> Console:
    return Console(file=wrap_stderr(sys.stderr), soft_wrap=True, highlight=False, markup=False, emoji=False)


def _print(shown: RenderableType) -> None:
    display = _display
    console = _console() if display is None else display.console
    console.print(shown, soft_wrap=isinstance(shown, str))


def _short_state(job: Progress) -> str:
    return f"{job.title} {job.done:,}/{job.total:,}" if job.total else job.title


def _coarse_duration(seconds: float) -> str:
    """Return `format_duration` without tenths, which would only flicker."""
    return f"{seconds:.0f} s" if seconds < 10 else format_duration(seconds)
