import io
import shutil
import sys
from collections.abc import Sequence
from os import terminal_size

import pytest

from hostile import TEXTS
from svertka.cli.printing import print_line, print_table
from svertka.text_width import text_width


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, columns: int, rows: Sequence[Sequence[str]], **how: object) -> list[str]:
    """The lines of a table on a terminal so wide."""
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        patched.setattr(shutil, "get_terminal_size", lambda: terminal_size((columns, 24)))
        print_table(rows, **how)  # type: ignore[arg-type]
    return terminal.getvalue().splitlines()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 132, 200])
def test_no_row_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(TEXTS.values())
    rows = [(f"{text[:200]}.png", *(f"{name} {0.5:.1%}" for name in names[:5])) for text in names]
    lines = printed(monkeypatch, columns, rows, shrink=(0, 5, 4, 3, 2, 1), drop=(5, 4, 3, 2))
    assert len(lines) == len(rows)
    assert max(map(text_width, lines)) <= columns


def test_names_keep_both_ends_and_prose_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("album/holidays/2024/0001.jpg", "He et al. 2016, Deep residual learning"), ("b.jpg", "no")]
    assert printed(monkeypatch, 36, rows, shrink=(0, 1), prose=(1,)) == [
        "album/…/0001.jpg  He et al. 2016, D…",
        "b.jpg             no",
    ]


def test_columns_that_do_not_fit_are_left_out_in_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "parameters", "source"), ("lenet5", "60,000", "LeCun et al. 1998")]
    assert printed(monkeypatch, 24, rows, right=(1,), shrink=(2,), drop=(2,)) == [
        "name    parameters  …",
        "lenet5      60,000  …",
    ]


def test_a_row_that_fits_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("犬.jpg", "1"), ("cat.jpg", "10")]
    assert printed(monkeypatch, 40, rows, right=(1,), shrink=(0,)) == ["犬.jpg    1", "cat.jpg  10"]


def test_in_a_file_nothing_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("x" * 300, "1"), ("y", "2")]
    widths = print_table(rows, shrink=(0,))
    assert capsys.readouterr().out.splitlines() == [f"{'x' * 300}  1", f"{'y':<72}  2"]
    assert widths == [300, 1]


def test_later_rows_are_aligned_with_earlier_ones(capsys: pytest.CaptureFixture[str]) -> None:
    widths = print_table([("long name", "1")])
    assert print_table([("name", "22")], widths=widths) == [9, 2]
    assert capsys.readouterr().out.splitlines() == ["long name  1", "name       22"]


def test_signs_that_an_encoding_lacks_do_not_widen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: terminal_size((22, 24)))  # pytest asks, too
    print_table([(" ".join(["3×32×32"] * 4), "1")], shrink=(0,))
    print_line("3×32×32 犬")
    table, line = terminal.getvalue().splitlines()
    assert table == "3x32x3...32 3x32x32  1"
    assert line == "3x32x32 \\u72ac"
