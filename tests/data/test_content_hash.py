"""A digest is that of the content: of the present one, remembered or not."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from svertka.data import content_hash as module
from svertka.data.content_hash import hash_images, hash_single_names, sort_halves, unwrap_subset
from svertka.data.dataset import ArrayImages, FileImages, Subset


@pytest.fixture(autouse=True)
def memories(tmp_path, monkeypatch) -> Path:
    """The folder of what is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "svertka" / "digests"


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Every file that is read."""
    calls: list[int] = []
    whole, name = FileImages.read_bytes_and_status, "read_bytes_and_status"
    monkeypatch.setattr(FileImages, name, lambda self, index: calls.append(index) or whole(self, index))
    return calls


@pytest.fixture
def files(tmp_path) -> FileImages:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(10):
        (root / f"{number}.jpg").write_bytes(bytes([number]) * (number + 1))
    return FileImages(root, [f"{number}.jpg" for number in range(10)])


def settle(monkeypatch) -> None:
    """Trust files at once, but for the few milliseconds between two ticks of the clock that stamps them."""
    monkeypatch.setattr(module, "SETTLED", 0)
    time.sleep(0.05)


def right(files: FileImages) -> list[bytes]:
    contents = [(files.root / path).read_bytes() for path in files.paths]
    return [hashlib.blake2b(content, digest_size=16).digest() for content in contents]


def test_files_that_did_not_change_are_not_read_again(files, read, monkeypatch):
    settle(monkeypatch)
    assert hash_images(files, 2) == (right(files), {})
    assert sorted(read) == list(range(10))
    read.clear()
    assert hash_images(files, 2) == (right(files), {})
    some = Subset(Subset(files, np.array([9, 4, 2])), np.array([1, 0]))
    assert hash_images(some, 2)[0] == [right(files)[4], right(files)[9]]
    assert read == []
    contents: dict[int, bytes] = {}
    assert hash_images(some, 2, contents.__setitem__)[0] == [right(files)[4], right(files)[9]]
    assert contents == {0: bytes([4]) * 5, 1: bytes([9]) * 10}
    assert sorted(read) == [4, 9]


def test_a_change_that_hides_is_seen(files, read, monkeypatch):
    settle(monkeypatch)
    hash_images(files, 2)
    read.clear()
    path = files.root / "5.jpg"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    assert hash_images(files, 2) == (right(files), {})
    assert read == [5]


def test_a_file_that_changed_just_now_is_read_again(files, read):
    hash_images(files, 2)
    read.clear()
    hash_images(files, 2)
    assert sorted(read) == list(range(10))


def test_files_that_cannot_be_read_have_a_reason(files, monkeypatch):
    settle(monkeypatch)
    hash_images(files, 2)
    (files.root / "3.jpg").unlink()
    (files.root / "4.jpg").unlink()
    (files.root / "4.jpg").mkdir()
    found, bad = hash_images(files, 2)
    assert bad == {3: "no such file or directory", 4: "a folder, not a file"}
    assert found[3] == found[4] == b""
    assert all(found[:3] + found[5:])


def test_damaged_memory_is_not_used(files, monkeypatch, memories):
    settle(monkeypatch)
    hash_images(files, 2)
    (memory,) = memories.iterdir()
    whole = memory.read_bytes()
    rng = np.random.default_rng(4)
    for content in (b"", whole[:-30], b"[]", b"{}", whole.replace(b'"version": 1', b'"version": 0'), b"\xff"):
        memory.write_bytes(content)
        assert hash_images(files, 2) == (right(files), {})
    for _ in range(50):  # letters that are not hexadecimal, at random places: nothing but an error may come of it
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = ord("z")
        memory.write_bytes(damaged)
        assert hash_images(files, 2) == (right(files), {})


def test_a_cache_that_cannot_be_written(files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hash_images(files, 2) == (right(files), {})


def test_arrays_are_hashed_where_they_are(memories):
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    images = ArrayImages(array, "d")
    subset = Subset(images, np.array([5, 1]))
    found, bad = hash_images(subset, 2)
    assert found == [hashlib.blake2b(array[index].tobytes(), digest_size=16).digest() for index in (5, 1)]
    assert bad == {}
    base, where = unwrap_subset(subset)
    assert base is images
    assert where.tolist() == [5, 1]
    assert not memories.exists()


def test_names_of_files_in_two_folders_differ_however_the_folders_are_given(tmp_path, monkeypatch):
    """As ".", "..", or from a table in another folder, both folders would have one name."""
    for name in ("cats", "dogs"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(b"same size")
    names = []
    for name in ("cats", "dogs"):
        given = {
            "inside": [FileImages(Path(".."), ["1.jpg"]), FileImages(Path(), ["../1.jpg"])],
            ".": [FileImages(Path(), ["1.jpg"]), FileImages(tmp_path, [f"{name}/1.jpg"])],
        }
        found = set()
        for here, some in given.items():
            monkeypatch.chdir(tmp_path / name / here)
            found |= {hash_single_names(images, 1)[0][0] for images in some}
        names.append(found)
    assert [len(found) for found in names] == [1, 1]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("kinds", [2**64, 7])
def test_rows_are_sorted_by_each_column_in_turn(kinds):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, kinds, (2, 500), np.uint64, endpoint=False)
    third = rng.integers(0, 3, 500)
    rows = list(zip(first.tolist(), second.tolist(), third.tolist(), strict=True))
    assert [rows[place] for place in sort_halves(first, second, third).tolist()] == sorted(rows)
