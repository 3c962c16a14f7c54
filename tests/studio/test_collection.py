"""Class folders on disk, and the way back from every change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from svertka.errors import DataError, ImageFormatError, StorageError, UsageError
from svertka.studio import collection as module
from svertka.studio.collection import TRASH, Collection, check_class_name


def contents(folder: Path) -> dict[str, bytes]:
    """The visible files of a data set."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and TRASH not in path.parts
    }


def test_bytes_are_kept_and_the_suffix_is_that_of_the_format(photos: Path, photograph: Callable[..., bytes]) -> None:
    collection, png = Collection(photos), photograph(40, 7, "PNG")
    path = collection.add_image("bird", "../../My bird?.jpg", png)
    assert path == "bird/My bird_.png"
    assert (photos / path).read_bytes() == png
    assert collection.add_image("bird", "My bird_.png", png) == "bird/My bird_-1.png"
    with pytest.raises(ImageFormatError):
        collection.add_image("bird", "x.jpg", b"<html>")
    assert collection.counts() == {"bird": 2, "cat": 3, "dog": 2}


def test_every_change_can_be_undone_also_after_a_restart(photos: Path, photograph: Callable[..., bytes]) -> None:
    before = contents(photos)
    collection = Collection(photos)
    states = [before]
    collection.record_added([collection.add_image("cat", "new.jpg", photograph(40, 8))])
    states.append(contents(photos))
    (photos / "dog" / "0.jpg").write_bytes(photograph(40, 5))  # takes the name of a picture that is moved there
    states[:] = [one | {"dog/0.jpg": photograph(40, 5)} for one in states]
    collection.move(["cat/0.jpg", "cat/1.jpg"], "dog")
    assert collection.counts() == {"cat": 2, "dog": 5}
    states.append(contents(photos))
    collection.delete(["dog/0-1.jpg", "dog/3.jpg"])
    states.append(contents(photos))
    collection.rename_class("dog", "Hund")
    states.append(contents(photos))
    collection.delete_class("Hund")
    assert collection.counts() == {"cat": 2}
    while states:
        collection = Collection(photos)
        change = collection.last_change()
        assert change is not None
        collection.undo(change.key)
        assert contents(photos) == states.pop()
    assert collection.last_change() is None
    with pytest.raises(DataError, match="not the last change"):
        collection.undo(change.key)


def test_a_move_that_fails_in_the_middle_moves_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection, before, real = Collection(photos), contents(photos), module.rename_to_new

    def failing(source: Path, target: Path) -> None:
        if source.name == "1.jpg":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(module, "rename_to_new", failing)
    with pytest.raises(StorageError, match="space"):
        collection.move(["cat/0.jpg", "cat/1.jpg"], "dog")
    assert contents(photos) == before
    assert collection.last_change() is None


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "cat/../../secret.jpg", "cat/..", "/etc/passwd", "cat", "", "cat/", "cat/link.jpg",
     "linked/a.jpg", f"{TRASH}/changes.jsonl", "cat/a\0.jpg", ".hidden/a.jpg", "cat\\0.jpg"],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(photos: Path, path: str) -> None:
    (photos / "cat" / "link.jpg").symlink_to(photos.parent / "secret.jpg")
    (photos.parent / "elsewhere").mkdir()
    (photos.parent / "elsewhere" / "a.jpg").write_bytes(b"")
    (photos / "linked").symlink_to(photos.parent / "elsewhere")
    collection = Collection(photos)
    for act in (collection.file, lambda one: collection.delete([one]), lambda one: collection.move([one], "dog")):
        with pytest.raises(DataError, match="no image"):
            act(path)
    assert collection.classes() == ["cat", "dog"]


@pytest.mark.parametrize(
    "name", ["", "  ", "a/b", "..", ".x", "a\\b", "nul", "COM1.x", "x" * 81, "a\u202eb", "a\0", "thumbs.db", "b."]
)
def test_impossible_class_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_class_name(name)


def test_names_that_differ_in_case_are_one_class(photos: Path) -> None:
    collection = Collection(photos)
    with pytest.raises(UsageError, match="there is a class cat already"):
        collection.add_class("CAT")
    assert collection.rename_class("cat", "Cat").moves == (("cat", "Cat"),)
    assert collection.classes() == ["Cat", "dog"]


def test_the_trash_is_emptied_only_by_its_count(photos: Path) -> None:
    collection = Collection(photos)
    collection.delete(["cat/0.jpg"])
    with pytest.raises(DataError, match="the trash has 1"):
        collection.empty_trash(0)
    assert collection.empty_trash(1) == "1 file deleted for good".replace(" file", "\u00a0file")
    assert sorted(path.name for path in photos.iterdir()) == ["cat", "dog"]


def test_a_line_that_a_full_disk_cut_short_hides_no_later_change(photos: Path) -> None:
    before, collection = contents(photos), Collection(photos)
    collection.delete(["cat/0.jpg"])
    log = photos / TRASH / module.CHANGES
    log.write_text(log.read_text() + '{"key": "1", "sent')
    change = collection.delete(["cat/1.jpg"])
    assert collection.last_change() == change
    collection.undo(change.key)
    last = collection.last_change()
    assert last is not None
    collection.undo(last.key)
    assert contents(photos) == before
