import os
import subprocess
from pathlib import Path

import pytest

from svertka import errors


def test_every_error_of_the_drawn_tree_is_an_svertka_error_with_an_exit_code() -> None:
    drawn = [name for name in vars(errors) if name in (errors.__doc__ or "") and name[0].isupper()]
    assert len(drawn) == 12
    for name in drawn:
        error = getattr(errors, name)
        assert issubclass(error, errors.SvertkaError)
        assert error.exit_code == {"UsageError": 2, "Interrupted": 130}.get(name, 1)


@pytest.mark.parametrize(
    "name",
    ["plain", "two words", "q'uo\"te", "$HOME `ls` \\ !", "new\nline", "\x1b[31mred", "café", "lat\udce9n", "-dash"],
)
def test_a_printed_command_is_one_line_that_a_shell_reads_as_meant(name: str) -> None:
    line = errors.command("train", "--resume", Path(name))
    assert line.isprintable()
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    expected = f"./{name}" if name.startswith("-") else name
    assert said.split(b"\0")[:-1] == [b"svertka", b"train", b"--resume", os.fsencode(expected)]
