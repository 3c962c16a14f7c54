import io
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from svertka import progress as module
from svertka.progress import FirstSentence, format_duration, progress, say, show_spinner


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (8.04, "8.0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_elsewhere_than_on_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_LINE", -1.0)
    monkeypatch.setattr(module, "LINE_EVERY", -1.0)
    with progress("decoding", 3) as shown:
        shown.advance(1)
        shown.advance(2, "loss 0.1")
        shown.say("[bold]as it is[/bold]")
    with progress("drawing", 100, "%") as shown:
        shown.advance(17)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "decoding: 1 of 3"
    assert err.splitlines()[1].startswith("decoding: 3 of 3, loss 0.1, 0.0 s left")
    assert err.splitlines()[2] == "[bold]as it is[/bold]"
    assert err.splitlines()[3] == "drawing: 17%"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.getvalue():
            assert time.monotonic() < deadline, self.getvalue()
            time.sleep(0.01)


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal; not in a fixture, after which pytest sets stderr again."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "NO_COLOR", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return terminal


def test_on_a_terminal_there_is_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("decoding", 3000, "images") as shown:
        shown.advance(2000, "loss 0.1")
        terminal.wait_for("2,000/3,000 images")
        terminal.wait_for("loss 0.1")
        shown.say("a line")
        with progress("scoring", 0), show_spinner("reading"):
            terminal.wait_for("reading")
    assert "\x1b[2Ka line\n" in terminal.getvalue()
    assert "0/0" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")  # the bar is removed


def test_an_update_replaces_the_one_before_and_the_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("training", 3) as shown:
        shown.update("epoch 1: loss 0.5")
        terminal.wait_for("epoch 1: loss 0.5")
        shown.update("epoch 2: loss 0.25")
    lines = terminal.getvalue().split("\n")
    assert lines[-2:] == [f"{lines[-2][:-18]}epoch 2: loss 0.25", ""]


def test_a_short_job_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "BAR_DELAY", 3600.0)  # a busy machine may take longer than usual
    with progress("decoding", 3) as shown, show_spinner("reading"):
        shown.advance(3)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_where_lines_cannot_be_redrawn_there_are_lines(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "FIRST_LINE", -1.0)
    with progress("training", 2, "steps") as shown:
        shown.advance(1)
        shown.update("epoch 1: loss 0.5")
        shown.update("epoch 2: loss 0.25")
    first, *rest = terminal.getvalue().splitlines()
    assert first == "training: 1 of 2 steps"
    assert rest == ["epoch 1: loss 0.5", "epoch 2: loss 0.25"]


def test_signs_that_an_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    say("32×32 → 16 … 犬")
    assert terminal.getvalue() == "32x32 -> 16 ... \\u72ac\n"
    with show_spinner("loading 犬"):
        terminal.wait_for("loading")
    assert terminal.getvalue().isascii()


def test_neither_steps_of_before_nor_the_first_one_count_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    shown, left = module.Progress("training", 100, done=90), []
    for seconds in (8.0, 0.25, 0.75, 1.5, 2.5):  # the first step takes long, since it prepares the others
        clock[0] += seconds
        shown.advance()
        left.append(shown.seconds_left)
    assert left == [None, None, 3.5, 5.0, 6.25]
    shown.advance(5)
    assert shown.seconds_left == 0.0


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    say("hello")
    assert capsys.readouterr().err == ""


def test_of_the_sentences_of_several_threads_one_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        say_first, together = FirstSentence(), threading.Barrier(8)

        def run(number: int, say_first: FirstSentence = say_first, together: threading.Barrier = together) -> None:
            together.wait()
            say_first(f"the disk is full ({number})")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(run, range(8)))
        assert capsys.readouterr().err.count("the disk is full") == 1


def test_what_nobody_knows_the_end_of_is_said_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with show_spinner("quick"):
        pass
    monkeypatch.setattr(module, "WORKING_LINE", 0.0)
    with show_spinner("writing the report"):
        deadline = time.monotonic() + 120
        err = ""
        while not err and time.monotonic() < deadline:
            time.sleep(0.01)
            err = capsys.readouterr().err
    assert err == "writing the report …\n"


@pytest.mark.parametrize(("total", "done"), [(0, 40), (10, 40), (40, 0)])
def test_no_time_is_said_where_nobody_knows_it(
    total: int, done: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_LINE", -1.0)
    with progress("scoring", total) as shown:
        shown.advance(done)
    assert capsys.readouterr().err == f"scoring: {done} of {total}\n"


def test_a_message_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    say("class a\nsvertka: test error 0.00%\x1b[31m")
    assert capsys.readouterr().err == "class a\\nsvertka: test error 0.00%\\x1b[31m\n"
