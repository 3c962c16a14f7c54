"""Resumable folders, with damaged, foreign and unwritable contents."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from svertka.errors import StorageError, UsageError
from svertka.inspection.atlas.resumable_folder import ResumableFolder


def test_finished_files_are_found_when_reopened(tmp_path: Path) -> None:
    first = ResumableFolder(tmp_path / "atlas", "a")
    first.write("data/x.js", b"1")
    second = ResumableFolder(tmp_path / "atlas", "a")
    assert "data/x.js" in second
    assert "data/y.js" not in second
    assert second.summary is None
    second.write("rest", b"12345")
    second.finish({"units": 3}, "rest")
    assert ResumableFolder(tmp_path / "atlas", "a").summary == {"units": 3}
    assert not (tmp_path / "atlas" / "rest").exists()


def test_folder_with_another_fingerprint_is_rejected_unchanged(tmp_path: Path) -> None:
    ResumableFolder(tmp_path / "atlas", "a").write("x", b"1")
    with pytest.raises(UsageError, match="is an atlas of other weights, images or options; remove it or choose"):
        ResumableFolder(tmp_path / "atlas", "b")
    assert (tmp_path / "atlas" / "x").read_bytes() == b"1"


def test_folder_with_other_files_is_rejected_and_an_empty_one_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ResumableFolder(tmp_path / "empty", "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="mine exists and is not an atlas; choose another --output"):
        ResumableFolder(tmp_path / "mine", "a")
    with pytest.raises(UsageError, match="letter.txt exists and is not an atlas"):
        ResumableFolder(tmp_path / "mine" / "letter.txt", "a")
    for damaged in ("", "[]", "{}", '{"identity": 7}'):
        (tmp_path / "mine" / "atlas.json").write_text(damaged)
        with pytest.raises(UsageError, match="is not an atlas"):
            ResumableFolder(tmp_path / "mine", "a")


def test_full_disk_keeps_the_previous_file(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    folder = ResumableFolder(tmp_path / "atlas", "a")
    folder.write("x", b"old")
    with small_disk(1000), pytest.raises(StorageError, match="cannot write .*free space or choose another folder"):
        folder.write("x", bytes(2000))
    assert (tmp_path / "atlas" / "x").read_bytes() == b"old"
    assert sorted(path.name for path in (tmp_path / "atlas").iterdir()) == ["atlas.json", "x"]


def test_scripts_preserve_any_text(tmp_path: Path) -> None:
    value = {"name": "</script><img src=x> \u2028 👩‍🔬 \ud800 \\ \"'", "numbers": [1, 2.5, None]}
    ResumableFolder(tmp_path, "a").write_script("data/x.js", "x-1", value)
    text = (tmp_path / "data" / "x.js").read_text(encoding="ascii")
    assert text.startswith('(self.atlasData??={})["x-1"]=')
    assert json.loads(text.split("=", 2)[2].rstrip(";\n")) == value
