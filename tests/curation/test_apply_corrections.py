"""Corrections applied to folders and tables: all or nothing, within the source, and undone."""

import json
from pathlib import Path

import pytest
from PIL import Image

from svertka.cli.app import main
from svertka.curation import apply_corrections as applying
from svertka.curation.apply_corrections import apply_corrections
from svertka.data.folder_and_table_sources import open_folder
from svertka.errors import DataError, StorageError, SvertkaError, UsageError


def save(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (color, color, color)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three images each."""
    for number, label in enumerate(("cat", "dog")):
        for place in range(3):
            save(tmp_path / "photos" / label / f"{place}.png", 10 * number + place)
    return tmp_path / "photos"


def fixes(folder: Path, *rows: str, header: str = "path,label,corrected") -> Path:
    file = folder / "fixes.csv"
    file.write_text("\r\n".join([header, *rows, ""]), encoding="utf-8")
    return file


def write(source: Path, file: Path) -> Path:
    """Apply corrections, and return the file that undoes them."""
    undo = apply_corrections(source, file, write=True).undo
    assert undo is not None
    return undo


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_moves_without_write(photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    file = fixes(tmp_path, "cat/1.png,cat,dog", "dog/0.png,dog,dog")
    found = apply_corrections(photos, file)
    assert [(one.path, one.destination) for one in found.moves] == [("cat/1.png", "dog/1-1.png")]  # 1.png is taken
    assert (found.confirmed, found.written, found.undo) == (1, False, None)
    assert contents(photos) == before
    assert found.sentences() == [
        "1 image would be moved, 1 confirmed",
        f"nothing is changed yet: svertka check {photos} --apply {file} --write",
    ]


def test_moves_and_their_undo(photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    file = fixes(tmp_path, "cat/1.png,cat,dog", "cat/2.png,cat,dog", "dog/0.png,dog,cat")
    undo = write(photos, file)
    after = contents(photos)
    assert sorted(after) == ["cat/0-1.png", "cat/0.png", "dog/1-1.png", "dog/1.png", "dog/2-1.png", "dog/2.png"]
    assert after["dog/1-1.png"] == before["cat/1.png"]
    assert undo == tmp_path / "fixes.undo.csv"
    apply_corrections(photos, undo, write=True)
    assert contents(photos) == before


def test_spaces_around_names_belong_to_them(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, path in enumerate([" cat/ 1.png", "dog/2.png", "dog /3.png"]):
        save(root / path, number)
    before = contents(root)
    file = fixes(tmp_path, " cat/ 1.png, cat,dog ", " dog/2.png , dog,dog ", "dog /3.png ,dog , cat")
    undo = write(root, file)
    assert sorted(contents(root)) == [" cat/3.png", "dog / 1.png", "dog /2.png"]
    apply_corrections(root, undo, write=True)
    assert contents(root) == before


def test_undo_returns_names_that_differ_only_in_case(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, path in enumerate(["Cat/A.png", "cat/a.png", "dog/b.png"]):
        save(root / path, number)
    before = contents(root)
    if len(before) < 3:
        pytest.skip("the disk does not distinguish upper and lower case")
    undo = write(root, fixes(tmp_path, "Cat/A.png,Cat,dog", "cat/a.png,cat,Cat"))
    apply_corrections(root, undo, write=True)
    assert contents(root) == before


def test_undo_after_the_process_was_killed_while_it_moved(photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    undo = write(photos, fixes(tmp_path, "cat/1.png,cat,dog", "cat/2.png,cat,dog"))
    (photos / "dog/2-1.png").rename(photos / "cat/2.png")  # as if it had not been moved yet
    found = apply_corrections(photos, undo, write=True)
    assert [one.path for one in found.moves] == ["dog/1-1.png"]
    assert contents(photos) == before


def test_an_undo_file_of_images_that_are_nowhere_is_refused(photos: Path, tmp_path: Path) -> None:
    undo = write(photos, fixes(tmp_path, "cat/1.png,cat,dog"))
    (photos / "dog/1-1.png").unlink()
    with pytest.raises(DataError, match=r"names dog/1-1.png, which is not an image"):
        apply_corrections(photos, undo)


def test_a_class_of_which_everything_moved_is_undone(photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    file = fixes(tmp_path, *(f"cat/{place}.png,cat,dog" for place in range(3)))
    undo = write(photos, file)
    apply_corrections(photos, undo, write=True)
    assert contents(photos) == before


def test_places_below_the_class_and_parts_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, path in enumerate(["train/cat/home/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"]):
        save(root / path, number)
    found = apply_corrections(root, fixes(tmp_path, "train/cat/home/a.png,cat,dog", "val/dog/d.png,,cat"), write=True)
    assert [one.destination for one in found.moves] == ["train/dog/home/a.png", "val/cat/d.png"]
    assert "train/dog/home/a.png" in contents(root)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["../cat/1.png,cat,dog"], "which is not an image of"),
        (["/etc/passwd,cat,dog"], "which is not an image of"),
        (["cat/../cat/1.png,cat,dog"], "which is not an image of"),
        (["cat/9.png,cat,dog"], "which is not an image of"),
        (["cat,cat,dog"], "which is not an image of"),
        (["cat/1.png,cat,dog", "cat/1.png,cat,cat"], "as line 2 of"),
        (["cat/1.png,cat,dgo"], "did you mean dog?"),
        (["cat/1.png,cat,../.."], "use one of: cat, dog"),
        (["cat/1.png,cat,"], "use one of: cat, dog"),
        (["cat/1.png,dog,dog"], "but it is of cat"),
        (["cat/1.png,dog"], "has 2 cells, and the first line 3"),
        (['cat/1.png,cat,"dog'], "is not CSV"),
    ],
)
def test_a_hostile_row_is_one_sentence_and_nothing_moves(
    photos: Path, tmp_path: Path, rows: list[str], sentence: str
) -> None:
    before = contents(tmp_path / "photos")
    file = fixes(tmp_path, "cat/0.png,cat,dog", *rows)
    if "as line 2" in sentence:
        file = fixes(tmp_path, *rows)
    with pytest.raises(SvertkaError, match=sentence) as error:
        apply_corrections(photos, file, write=True)
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "photos") == before
    assert not (tmp_path / "fixes.undo.csv").exists()


@pytest.mark.parametrize(
    "destination",
    ["../x.png", "/tmp/x.png", "dog/../../x.png", "cat/x.png", "dog", "dog/x.exe", "dog\\x.png", "bird/x.png", "x.png"],
)
def test_a_hostile_destination_is_refused(photos: Path, tmp_path: Path, destination: str) -> None:
    before = contents(photos)
    file = fixes(tmp_path, f"cat/1.png,cat,dog,{destination}", header="path,label,corrected,destination")
    with pytest.raises(DataError, match="which is not a place for cat/1.png in the folder of dog"):
        apply_corrections(photos, file, write=True)
    assert contents(photos) == before


def test_links_are_not_followed(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.png", 99)
    (photos / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    with pytest.raises(DataError, match=r"link.png, which is a link; move what it links to"):
        apply_corrections(photos, fixes(tmp_path, "cat/link.png,cat,dog"), write=True)
    (photos / "bird").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="bird, which is a link"):
        apply_corrections(photos, fixes(tmp_path, "cat/1.png,cat,bird"), write=True)
    assert sorted(contents(tmp_path / "elsewhere")) == ["x.png"]


@pytest.mark.parametrize("text", ["", "a,b\r\n1,2\r\n", "path,path,corrected\r\n", "path;label\r\n"])
def test_a_file_that_is_no_corrections(photos: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "fixes.csv").write_text(text)
    with pytest.raises(DataError, match=r"must begin with the line path,label,corrected"):
        apply_corrections(photos, tmp_path / "fixes.csv", write=True)
    with pytest.raises(UsageError, match="there is no file"):
        apply_corrections(photos, tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="digits is a built-in data set"):
        apply_corrections("digits", tmp_path / "fixes.csv")


def test_what_was_moved_is_moved_back_if_a_file_cannot_be(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = contents(photos), applying.rename_to_new

    def failing(source: Path, target: Path) -> None:
        if source.name == "2.png":
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(applying, "rename_to_new", failing)
    with pytest.raises(StorageError, match="no space left on device"):
        apply_corrections(photos, fixes(tmp_path, *(f"cat/{place}.png,cat,dog" for place in range(3))), write=True)
    assert contents(photos) == before
    assert not (tmp_path / "fixes.undo.csv").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(photos: Path) -> None:
    with pytest.raises(FileExistsError):
        applying.rename_to_new(photos / "cat" / "0.png", photos / "dog" / "0.png")
    assert sorted(contents(photos)) == sorted(f"{label}/{place}.png" for label in ("cat", "dog") for place in range(3))


def test_names_that_look_like_formulas_and_separators_of_spreadsheets(photos: Path, tmp_path: Path) -> None:
    save(photos / "=cmd" / "=a.png", 50)
    file = tmp_path / "fixes.csv"
    file.write_text(
        "\ufeffpath;label;corrected\r\n./=cmd/=a.png;'=cmd;cat\r\ncat/0.png;cat;'=cmd\r\n", encoding="utf-8"
    )
    undo = apply_corrections(photos, file, write=True).undo
    assert {"cat/=a.png", "=cmd/0.png"} <= set(contents(photos))
    assert undo is not None
    apply_corrections(photos, undo, write=True)
    assert {"=cmd/=a.png", "cat/0.png"} <= set(contents(photos))


def test_tables_get_a_corrected_copy(photos: Path, tmp_path: Path) -> None:
    table = photos / "labels.csv"
    rows = ['cat/0.png,cat,"a, b"', "cat/1.png,cat,x", "dog/0.png,dog,y", "cat/1.png,cat,x"]
    text = "file,class,note\r\n" + "\r\n".join(rows) + "\r\n"
    table.write_bytes(text.encode())
    columns = "path=file,label=class"
    found = apply_corrections(table, fixes(tmp_path, "cat/1.png,cat,dog"), write=True, columns=columns)
    assert found.tables == (photos / "labels.corrected.csv",)
    assert table.read_bytes() == text.encode()
    assert found.tables[0].read_bytes() == text.replace("1.png,cat", "1.png,dog").encode()
    dataset = open_folder(found.tables[0], columns={"path": "file", "label": "class"})
    assert [dataset.names[label] for label in dataset.labels] == ["cat", "dog", "dog"]


def test_metadata_in_a_folder_gets_its_copy_beside_the_corrections(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    for number in range(4):
        save(root / f"{number}.png", number)
    lines = [json.dumps({"file_name": f"{number}.png", "label": number % 2, "more": "é"}) for number in range(4)]
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = apply_corrections(root, fixes(tmp_path, "2.png,0,1"), write=True)
    (copy,) = found.tables
    assert copy == tmp_path / "metadata.corrected.jsonl"
    written = [json.loads(line) for line in copy.read_text(encoding="utf-8").splitlines()]
    assert [one["label"] for one in written] == [0, 1, 1, 1]
    assert copy.read_text(encoding="utf-8").splitlines()[0] == lines[0]
    assert len(open_folder(root)) == 4


def test_labels_that_are_neither_folders_nor_tables(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "flat" / f"ILSVRC2012_val_0000000{number + 1}.JPEG", number)
    with pytest.raises(SvertkaError):
        apply_corrections(tmp_path / "flat", fixes(tmp_path, "a.png,cat,dog"))


def test_the_command(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fixes(tmp_path, "cat/0.png,cat,dog")
    monkeypatch.chdir(tmp_path)
    assert main(["check", "photos", "--apply", "fixes.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "from       to",
        "cat/0.png  dog/0-1.png",
        "1 image would be moved, 0 confirmed",
        "nothing is changed yet: svertka check photos --apply fixes.csv --write",
    ]
    assert main(["check", "photos", "--apply", str(file), "--write", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["moves"] == [{"from": "cat/0.png", "to": "dog/0-1.png"}]
    assert value["written"]
    assert main(["check", "photos", "--write"]) == 2
    assert main(["check", "photos", "--apply", "fixes.csv", "--labels"]) == 2
    assert main(["check", "photos", "--apply", "fixes.csv"]) == 1  # it has been applied
