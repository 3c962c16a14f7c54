import io
import sys
import time

import pytest

from svertka import progress as module
from svertka.progress import duration, progress, say, working


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (8.04, "8.0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_elsewhere_than_on_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_LINE", -1.0)
    monkeypatch.setattr(module, "LINE_EVERY", -1.0)
    with progress("decoding", 3) as shown:
        shown.advance(1)
        shown.advance(2, "loss 0.1")
        shown.say("[bold]as it is[/bold]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("decoding: 1 of 3, ")
    assert err.splitlines()[1].startswith("decoding: 3 of 3, loss 0.1, 0.0 s left")
    assert err.splitlines()[2] == "[bold]as it is[/bold]"


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("decoding", 3) as shown:
        shown.advance(2, "loss 0.1")
        shown.say("a line")
    assert "decoding" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert "a line" in terminal.getvalue()


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    say("hello")
    assert capsys.readouterr().err == ""


def test_what_nobody_knows_the_end_of_is_said_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with working("quick"):
        pass
    monkeypatch.setattr(module, "FIRST_LINE", 0.0)
    with working("writing the report"):
        deadline = time.monotonic() + 60
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
