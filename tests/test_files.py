import json
import multiprocessing
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hostile import files
from svertka.errors import StorageError, UsageError
from svertka.files import (
    cache_folder,
    format_bytes,
    free_disk_bytes,
    lock_file,
    os_error_to_storage_error,
    parse_cache_limit_option,
    parse_path,
    read_json,
    write_atomic,
    write_json,
)


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with (
        small_disk(1000),
        pytest.raises(StorageError, match=r"cannot write .*: .*; free space or choose another folder"),
    ):
        write_atomic(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(_file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(StorageError, match="/proc/"):
        write_atomic(Path("/proc/file"), b"x")


@pytest.mark.parametrize("value", [{"naïve ☃": [1, 2.5, None]}, {"\udcff": "not UTF-8"}, []])
def test_json_survives(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", "Expecting"), (b"\xff", "decode"), (b"[" * 200_000, "deeply"), (b" " * 99, "larger")]
)
def test_bad_json_is_a_value_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "file.json", limit=50 if reason == "larger" else 1 << 24)


def _add_one(path: Path) -> None:
    for _ in range(20):
        with lock_file(path.with_suffix(".lock")):
            value = json.loads(path.read_text())
            time.sleep(0.001)
            path.write_text(json.dumps(value + 1))


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    path = tmp_path / "counter"
    path.write_text("0")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_add_one, args=(path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "60"


def test_cache_folder_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("a", "b") == tmp_path / "svertka" / "a" / "b"
    assert cache_folder().is_dir()


def test_free_bytes_of_a_folder_to_be() -> None:
    assert free_disk_bytes(Path("/tmp/not/yet/there")) > 0


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 kB"), (72_700, "72.7 kB"), (3_302_400, "3.3 MB"), (1.25e9, "1.25 GB")]
)
def test_sizes_are_told_in_the_unit_that_suits(count: float, said: str) -> None:
    assert format_bytes(count) == said


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless device"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = files(tmp_path, "")[kind]
    before = path.stat().st_mode
    with pytest.raises(StorageError, match="not a file; choose another name"):
        write_atomic(path, b"new")
    assert path.stat().st_mode == before


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "a path is empty"),
        ("a\0b", "holds a NUL character"),
        ("a\ud800b", "holds half a character"),
        ("x" * 300, "a name may have 255 bytes .one has 300."),
        ("猫" * 100, "one has 300"),
        ("a/" * 3000, "a path 4095 .it has 6000."),
    ],
)
def test_a_path_that_cannot_be_is_one_short_sentence(path: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_path(path)
    assert len(str(caught.value)) < 300


def test_a_given_path_is_looked_up_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_path("~/x") == tmp_path / "x"
    assert parse_path(Path("~nosuchuser/x")) == Path("~nosuchuser/x")
    assert parse_path("a/../b") == Path("a/../b")


def test_a_temporary_file_that_cannot_be_written_is_not_named(tmp_path: Path) -> None:
    for wanted in (tmp_path, tmp_path / "model.onnx"):
        with (
            pytest.raises(StorageError, match=re.escape(f"cannot write {wanted}: permission denied; ")),
            os_error_to_storage_error(wanted),
        ):
            raise PermissionError(13, "Permission denied", str(tmp_path / "tmpx1y2"))
    with pytest.raises(StorageError, match="cannot write /elsewhere/x: no space"), os_error_to_storage_error(tmp_path):
        raise OSError(28, "No space left on device", "/elsewhere/x")


def test_a_number_of_too_many_digits_is_a_value_error_without_pythons_advice(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f'{{"id": {"9" * 5000}}}')
    with pytest.raises(ValueError, match=r"^a number has more than 4,300 digits$"):
        read_json(tmp_path / "x.json")


def test_a_cache_limit_that_cannot_be_is_one_sentence() -> None:
    assert parse_cache_limit_option(0.5) == 500_000_000
    for limit in (-1, 2e6, float("nan"), 10**400):
        with pytest.raises(UsageError, match="cache_limit=.* must be from 0 to 1,000,000 GB"):
            parse_cache_limit_option(limit)
