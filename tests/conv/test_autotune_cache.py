import json

import pytest

from svertka.conv.autotune_cache import FILE, FORMAT, here, remember, remembered

PLACE = here(["direct", "gemm"])


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Of the file, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered.cache_clear()
    yield tmp_path / "svertka" / FILE
    remembered.cache_clear()


def test_a_choice_holds_for_later_processes_at_its_place(path):
    remember(PLACE, "x", "gemm")
    remember(PLACE, "y", "direct")
    remembered.cache_clear()
    assert remembered(PLACE) == {"x": "gemm", "y": "direct"}
    assert remembered(here(["direct", "gemm", "fft"])) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "choices": 7}', b"\xff\x00"])
def test_a_damaged_file_is_said_and_replaced(path, capsys, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert remembered(PLACE) == {}
    assert capsys.readouterr().err.count("is damaged; convolutions are timed anew") == 1
    remember(PLACE, "x", "gemm")
    assert json.loads(path.read_text()) == {"format": FORMAT, "choices": {PLACE: {"x": "gemm"}}}


def test_another_version_s_file_is_replaced(path, capsys):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": 99, "choices": {PLACE: {"x": "fft"}}}))
    assert remembered(PLACE) == {}
    remember(PLACE, "y", "gemm")
    remembered.cache_clear()
    assert remembered(PLACE) == {"y": "gemm"}
    assert not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_kept_in_memory(path, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(PLACE, "x", "gemm")
    assert remembered(PLACE) == {"x": "gemm"}
