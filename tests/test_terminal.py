"""What a training and a prediction look like on a real pseudo terminal, as pyte draws it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte
import pytest

from svertka.text_width import text_width

ROWS = 24
EPOCHS = 120


class Screen(pyte.HistoryScreen):  # type: ignore[misc]
    """A terminal that counts how often text ran over its right edge."""

    wraps = 0

    def draw(self, data: str) -> None:
        for letter in data:
            self.wraps += self.cursor.x == self.columns and text_width(letter) > 0
            super().draw(letter)

    @property
    def lines_printed(self) -> list[str]:
        """All lines that are left, those above the screen first."""
        above = ["".join(row[column].data for column in range(self.columns)) for row in self.history.top]
        lines = [line.rstrip() for line in (*above, *self.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))


def run_on_terminal(
    columns: int,
    arguments: Sequence[str],
    then: Callable[[Screen, int], None] = lambda screen, terminal: None,
    **env: str,
) -> Screen:
    """Run svertka on a terminal so wide until it ends; `then` sees the screen after each change."""
    screen = Screen(columns, ROWS, history=10_000)
    stream = pyte.ByteStream(screen)
    terminal, inside = pty.openpty()
    resize(terminal, columns)
    command = [sys.executable, "-m", "svertka", *arguments]
    unset = ("CI", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "RANK")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"TERM": "xterm-256color", "PYTHONUTF8": "1", **env}
    with subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True
    ) as process:
        os.close(inside)
        try:
            while True:
                ready, _, _ = select.select([terminal], [], [], 300)
                assert ready, screen.lines_printed
                data = os.read(terminal, 1 << 16)
                if not data:
                    break
                stream.feed(data)
                then(screen, terminal)
        except OSError:  # how Linux says that the other side is closed
            pass
        finally:
            process.kill() if sys.exc_info()[0] else process.wait(200)
            os.close(terminal)
    assert process.returncode in (0, 1), screen.lines_printed
    return screen


def test_a_long_training_is_a_few_lines(
    digit_folder: Path, tmp_path: Path, large_count: Callable[[int, int], int]
) -> None:
    for columns in (80, 40, 60, 132, 200)[: large_count(1, 5)]:
        check_long_training(columns, digit_folder, tmp_path / str(columns))


def check_long_training(columns: int, digit_folder: Path, run: Path) -> None:
    seen: set[str] = set()

    def look(screen: Screen, _: int) -> None:
        seen.update(line.rstrip() for line in screen.display)

    options = ["--model", "mlp", "--size", "8", "--epochs", str(EPOCHS), "--batch-size", "192", "--threads", "1"]
    arguments = ["train", os.path.relpath(digit_folder), *options, "--output", os.path.relpath(run)]
    screen = run_on_terminal(columns, arguments, look)
    lines = screen.lines_printed
    assert len(lines) < 40
    assert not any("0/0" in line for line in seen)
    bars = [line for line in seen if line.startswith("training  ")]
    assert bars
    assert any(f"/{2 * EPOCHS}" in line for line in bars), bars[:5]  # two steps an epoch
    assert any("s left" in line for line in bars)
    assert any(line.startswith("loading PyTorch", 2) for line in seen)
    updates = {line.partition(":")[0] for line in seen if f" of {EPOCHS}: val error " in line}
    assert len(updates) > 5  # as often as the screen is drawn
    assert [line for line in lines if line.startswith("epoch ")][-1].startswith(f"epoch {EPOCHS} of {EPOCHS}: ")
    assert sum(line.startswith("epoch ") for line in lines) == 1
    assert not any(line.startswith(("training  ", "⠋")) for line in lines)
    text = "".join(lines)
    for verb in ("predict", "look", "serve"):
        assert f"next: svertka {verb} {os.path.relpath(run)}" in text
    # Sentences and paths may be longer than the terminal; the bar, its line and tables are not.
    assert screen.wraps <= (2 * len(lines) if columns < 80 else 9)


@pytest.mark.large
def test_a_bar_follows_the_width_of_the_terminal(digit_folder: Path, tmp_path: Path) -> None:
    widths: list[int] = []

    def shrink(screen: Screen, terminal: int) -> None:
        bars = [line.rstrip() for line in screen.display if line.startswith("training  ")]
        if bars and not widths:
            resize(terminal, 50)
            screen.resize(ROWS, 50)
            widths.append(len(bars[0]))
        elif bars:
            widths.append(max(map(len, bars)))

    options = ["--model", "mlp", "--size", "8", "--epochs", "60", "--batch-size", "192", "--threads", "1"]
    run_on_terminal(120, ["train", str(digit_folder), *options, "--output", str(tmp_path / "r")], shrink)
    assert widths[0] > 50
    assert len(widths) > 1
    assert all(width < 50 for width in widths[2:])
