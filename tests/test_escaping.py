import csv
import io
import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile import TEXTS
from svertka.escaping import FORMULA, escape_csv_cell, escape_csv_path, format_command, join_first, to_printable

ANY = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(ANY)
def test_what_is_printable_is_one_line_without_control(text: str) -> None:
    shown = to_printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cs", "Zl", "Zp"}
    shown.encode()
    assert to_printable(shown) == shown


@pytest.mark.parametrize("text", ["plain", "with space", "é", "猫", "قطة", "👩\u200d🔬", "100%", "a\\b"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert to_printable(text) == escape_csv_cell(text) == text


def test_escapes_say_what_was_there() -> None:
    assert to_printable("\x1b[2J\u202e\n" + os.fsdecode(b"\xe9")) == "\\x1b[2J\\u202e\\n\\udce9"


@given(ANY)
def test_no_csv_cell_is_a_formula(text: str) -> None:
    for cell in (escape_csv_cell(text), escape_csv_path(text)):
        assert not cell.lstrip(" ").startswith(FORMULA)
        written = io.StringIO()
        csv.writer(written).writerow([cell, "x"])
        assert next(csv.reader(io.StringIO(written.getvalue(), newline=""))) == [cell, "x"]


@pytest.mark.parametrize("text", [*TEXTS.values(), "a'b\nc", "'\x1b\\"])
def test_a_printed_command_names_what_was_meant(text: str, tmp_path: Path) -> None:
    line = format_command("train", Path(text)).removeprefix("svertka train ")
    assert to_printable(line) == line
    shown = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True, cwd=tmp_path).stdout
    assert os.fsdecode(shown) == (f"./{text}" if text.startswith("-") else text)


@pytest.mark.parametrize(("count", "expected"), [(0, ""), (1, "n0"), (2, "n0; n1"), (3, "n0; n1 and 1 more")])
def test_few_names_no_more_than_it_should_and_counts_the_rest(count: int, expected: str) -> None:
    assert join_first([f"n{number}" for number in range(count)], 2, "; ") == expected
    assert join_first([str(number) for number in range(1203)]) == "0, 1, 2 and 1,200 more"
