import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile import DEVICES, PATHS, csv_documents, files
from svertka.data.folder_and_table_sources import FolderListing, list_folder
from svertka.data.folder_layout import LabeledImage
from svertka.data.label_tables import parse_columns, read_table, replace_labels
from svertka.errors import DataError, SvertkaError, UsageError


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def found(listing: FolderListing) -> list[tuple[str, str, str]]:
    return [(entry.path, entry.label, entry.part) for entry in listing.entries]


TEXT = "path,label,part\nx/a.jpg,cat,train\nx/b.jpg,dog,test\n"
ROWS = [("x/a.jpg", "cat", "train"), ("x/b.jpg", "dog", "test")]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.replace(",", " | ").encode(),
        b"sep=;\r\n" + TEXT.replace(",", ";").encode(),
        TEXT.replace("x/", "x\\").encode(),
        TEXT.replace("path", '" Path "').replace("part", "Split").encode(),
        TEXT.replace("path", "file_name").encode(),
        TEXT.encode() + b"\n\nx/a.jpg,cat,train\n",
    ],
)
def test_separators_and_encodings(tmp_path: Path, content: bytes) -> None:
    make(tmp_path, "x/a.jpg", "x/b.jpg")
    (tmp_path / "all.csv").write_bytes(content)
    assert found(list_folder(tmp_path / "all.csv")) == ROWS


@pytest.mark.parametrize("folder", ["train", "images", "some/where"])
@pytest.mark.parametrize("source", ["train.csv", "."])
def test_kaggle_names_without_suffix_in_a_folder_beside(tmp_path: Path, folder: str, source: str) -> None:
    make(tmp_path, f"{folder}/1a.jpg", f"{folder}/2b.png", f"{folder}/3c.jpg")
    if folder != "some/where":
        make(tmp_path, "test/1a.jpg", "test/9z.jpg")
    (tmp_path / "train.csv").write_text("id,label\n1a,cat\n2b,dog\n3c,cat\n")
    (tmp_path / "sample_submission.csv").write_text("id,label\n1a,cat\n9z,cat\n")
    listing = list_folder(tmp_path / source)
    wanted = [(f"{folder}/1a.jpg", "cat", ""), (f"{folder}/2b.png", "dog", ""), (f"{folder}/3c.jpg", "cat", "")]
    assert found(listing) == wanted
    assert f"the images of {tmp_path}/train.csv are in {tmp_path}/{folder}" in listing.account.notes


def test_names_that_are_in_two_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "one/a.jpg", "two/a.jpg")
    (tmp_path / "all.csv").write_text("id,label\na,cat\n")
    with pytest.raises(DataError, match=r"images that are in one as well as in two; add the folder to its paths"):
        list_folder(tmp_path / "all.csv")


def test_a_flat_folder_with_metadata_beside(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.jpg", "label": 0}\n\n{"file_name": "b.jpg", "label": "dog", "text": null}\n'
    )
    listing = list_folder(tmp_path)
    assert found(listing) == [("a.jpg", "0", ""), ("b.jpg", "dog", "")]
    assert [(one.path, one.reason) for one in listing.account.left_out] == [("c.jpg", "no label in the table")]


def test_metadata_in_each_part(tmp_path: Path) -> None:
    make(tmp_path, "train/a.jpg", "train/b.jpg", "test/a.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.jpg,cat\nb.jpg,dog\n")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,label\na.jpg,cat\n")
    listing = list_folder(tmp_path)
    assert found(listing) == [
        ("test/a.jpg", "cat", "test"),
        ("train/a.jpg", "cat", "train"),
        ("train/b.jpg", "dog", "train"),
    ]


def test_a_table_of_each_part(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "images/b.jpg")
    (tmp_path / "train.csv").write_text("path,label\nimages/a.jpg,cat\n")
    (tmp_path / "test.csv").write_text("path,label\nimages/b.jpg,dog\n")
    assert found(list_folder(tmp_path)) == [("images/a.jpg", "cat", "train"), ("images/b.jpg", "dog", "test")]
    (tmp_path / "other.csv").write_text("path,label\nimages/b.jpg,dog\n")
    with pytest.raises(DataError, match=r"several tables .* other.csv, test.csv, train.csv; give one of them"):
        list_folder(tmp_path)


def test_other_columns_are_listed_and_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "all.csv").write_text("img,breed,age\na.jpg,pug,1\nb.jpg,poodle,2\n")
    for source in (tmp_path, tmp_path / "all.csv"):
        with pytest.raises(DataError, match=r"img, breed, age; .*: --columns path=img,label=breed"):
            list_folder(source)
        assert found(list_folder(source, {"path": "IMG", "label": "breed"})) == [
            ("a.jpg", "pug", ""),
            ("b.jpg", "poodle", ""),
        ]
    with pytest.raises(DataError, match="has no column race, but img, breed, age"):
        list_folder(tmp_path / "all.csv", {"path": "img", "label": "race"})


@pytest.mark.parametrize("text", ["", "path", "path=", "=x", "path=a,path=b", "wings=a", "path=a,,label=b"])
def test_invalid_columns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be parsed"):
        parse_columns(text)
    assert parse_columns(" path = a ,label=b c") == {"path": "a", "label": "b c"}


def test_a_table_that_contradicts_class_folders_is_a_warning(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "all.csv").write_text("path,label\ncat/a.jpg,Cat\ndog/b.jpg,pug\n")
    listing = list_folder(tmp_path)
    assert found(listing) == [("cat/a.jpg", "cat", ""), ("dog/b.jpg", "dog", "")]
    (warning,) = listing.account.warnings
    assert "all.csv gives dog/b.jpg the label pug, but its folder is used as its class" in warning


def test_an_image_has_one_label(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,label\na.jpg,cat\nb.jpg,cat\na.jpg,dog\n")
    with pytest.raises(DataError, match=r"line 4 of .* gives a.jpg the label dog, and line 2 of .* cat"):
        list_folder(tmp_path / "all.csv")


def test_absolute_paths_into_the_folder_of_the_table(tmp_path: Path) -> None:
    make(tmp_path / "disk", "a.jpg", "b.jpg")
    (tmp_path / "photos").symlink_to("disk")
    rows = [f"{tmp_path}/photos/a.jpg,cat", f"{tmp_path}/disk/b.jpg,dog", "b.jpg,dog"]
    (tmp_path / "disk" / "all.csv").write_text("\n".join(["path,label", *rows]))
    for source in (tmp_path / "photos", tmp_path / "photos" / "all.csv"):
        listing = list_folder(source)
        assert [(one.path, one.label) for one in listing.entries] == [("a.jpg", "cat"), ("b.jpg", "dog")]
        assert f"{tmp_path}/photos/all.csv has 1\N{NO-BREAK SPACE}repeated row; each" in " ".join(listing.account.notes)


def test_a_group_is_read(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,label,group\na.jpg,cat,7\n")
    assert list_folder(tmp_path / "all.csv").entries == (LabeledImage("a.jpg", "cat", "", "7"),)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1]", "line 1 of .* is not a JSON object"),
        ("{", "line 1 of .* is not JSON"),
        ("[" * 100_000, "line 1 of .* is not JSON: nested too deeply"),
        ('{"file_name": "a.jpg", "label": {"x": 1}}', r"label={'x': 1}; give a string or an integer"),
        ('{"file_name": "a.jpg", "label": ' + "9" * 5000 + "}", "line 1 of .* is not JSON"),
        ('{"file_name": "a.jpg", "label": 1e400}', "label=inf; give a string"),
        ('{"file_name": "a.jpg", "text": "x"}', "has no column label, but file_name, text;"),
        ('{"file_name": "a\\u0000.jpg", "label": "x"}', "NUL character in its path"),
    ],
)
def test_json_lines_that_say_something_else(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=sentence) as caught:
        read_table(tmp_path / "metadata.jsonl")
    assert len(str(caught.value)) < 1000


def test_hostile_tables_are_read_or_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    refused = []
    for content in csv_documents("path,label,part\na.jpg,cat,train\nb.jpg,dog,\n"):
        (tmp_path / "all.csv").write_bytes(content)
        try:
            list_folder(tmp_path / "all.csv").dataset()
        except SvertkaError as error:
            refused.append(len(str(error)))
    assert len(refused) > 50
    assert max(refused) < 1200


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    for kind, path in files(tmp_path, ".csv").items():
        if kind != "folder":
            with pytest.raises(SvertkaError):
                list_folder(path)
    for path in (*PATHS.values(), *DEVICES.values()):
        with pytest.raises(SvertkaError):
            list_folder(f"{path}.csv" if path else path)


def test_a_table_that_may_not_be_read_is_not_to_be_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("path,label\na.jpg,cat\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"x\.csv cannot be read: permission denied; allow this user"):
        list_folder(tmp_path / "x.csv")


def test_a_row_of_more_columns_than_the_first_line_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = tmp_path / "all.csv"
    table.write_text("path,label\na.jpg,white dog,\nb.jpg,black, dog\nc.jpg,cat\n")
    with pytest.raises(DataError, match=r"line 3 of .* has 3 columns, and the first line 2; quote cells"):
        read_table(table)
    table.write_text('path,label\na.jpg,white dog,\nb.jpg,"black, dog"\nc.jpg,cat\n')
    assert [row.label for row in read_table(table).rows] == ["white dog", "black, dog", "cat"]


def test_the_third_column_of_a_table_without_header_is_the_part_if_it_names_one(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jpg", "x/b.jpg")
    table = tmp_path / "all.csv"
    table.write_text("x/a.jpg,cat,train\nx/b.jpg,dog,Testing\n")
    assert found(list_folder(table)) == ROWS
    table.write_text("x/a.jpg,cat,train\nx/b.jpg,dog,fold3\n")
    with pytest.raises(DataError, match=r"line 2 of .* has part=fold3"):
        read_table(table)
    table.write_text("x/a.jpg,cat,0,0,62,62\nx/b.jpg,dog,3,4,60,60\n")  # boxes, as Tiny-ImageNet has them
    assert found(list_folder(table)) == [("x/a.jpg", "cat", ""), ("x/b.jpg", "dog", "")]


def test_keys_that_the_first_json_line_lacks_are_read(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jpg", "x/b.jpg")
    lines = '{"path": "x/a.jpg", "label": "cat"}\n{"label": "dog", "path": "x/b.jpg", "split": "test", "patient": 7}\n'
    (tmp_path / "all.jsonl").write_text(lines)
    rows = read_table(tmp_path / "all.jsonl").rows
    assert [(row.part, row.group) for row in rows] == [("", ""), ("test", "7")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.csv", ",path,fold,label\n0,a.jpg,1,cat\n1,b.jpg,2,dog\n"),
        ("all.jsonl", '{"path": "a.jpg", "fold": 1, "label": "cat"}\n{"path": "b.jpg", "label": "dog"}\n'),
    ],
)
def test_unused_columns_are_noted(tmp_path: Path, name: str, text: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    assert read_table(tmp_path / name).notes == (f"unused columns of {tmp_path / name}: fold",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\n", "all.csv has only a first line; write a line"),
        ('path,label\n"a.jpg,cat\nb.jpg,dog\n', "line 3 of .*all.csv is not CSV: a double quote is not closed"),
    ],
)
def test_tables_that_name_nothing(tmp_path: Path, text: str, sentence: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        list_folder(tmp_path / "all.csv")


def test_columns_of_class_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.jpg", "dog/b.jpg")
    with pytest.raises(UsageError, match="has no table that labels its images"):
        list_folder(tmp_path, {"label": "x"})


@pytest.mark.parametrize("unknown", ["", "NaN", "nan", "NA", "n/a", "None"])
def test_images_of_unknown_group_are_not_of_one_group(tmp_path: Path, unknown: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = tmp_path / "all.csv"
    table.write_text(f"path,label,patient\na.jpg,cat,{unknown}\nb.jpg,dog,{unknown}\nc.jpg,cat,7\n")
    assert [row.group for row in read_table(table).rows] == ["", "", "7"]


def test_images_in_several_folders_are_found(tmp_path: Path) -> None:
    """As HAM10000 has them."""
    make(tmp_path, *(f"part_{1 + number // 5}/ISIC_{number}.jpg" for number in range(8)))
    rows = [f"ISIC_{number},{'ab'[number % 2]}\n" for number in range(8)]
    (tmp_path / "metadata.csv").write_text("".join(["image_id,label\n", *rows]))
    listing = list_folder(tmp_path / "metadata.csv")
    assert {entry.path for entry in listing.entries} == {f"part_{1 + k // 5}/ISIC_{k}.jpg" for k in range(8)}
    assert f"are in {tmp_path / 'part_1'}, {tmp_path / 'part_2'}" in listing.account.notes[0]


@pytest.mark.parametrize("prefix", ["CheX/", "./CheX/", "/home/me/CheX/", "C:\\data\\CheX\\", "D:/CheX/"])
def test_folders_above_the_table_in_its_paths_are_left_out(prefix: str, tmp_path: Path) -> None:
    make(tmp_path, *(f"train/p{number}/view.jpg" for number in range(4)))
    between = "\\" if "\\" in prefix else "/"
    paths = [between.join(("train", f"p{number}", "view.jpg")) for number in range(4)]
    rows = [f"{prefix}{path},{'ab'[number % 2]}\n" for number, path in enumerate(paths)]
    (tmp_path / "train.csv").write_text("".join(["path,label\n", *rows]))
    listing = list_folder(tmp_path / "train.csv")
    assert [(entry.path, entry.label) for entry in listing.entries] == [
        (f"train/p{number}/view.jpg", "ab"[number % 2]) for number in (0, 1, 2, 3)
    ]
    assert any("which is ignored: the images are in" in note for note in listing.account.notes)


RESPELLINGS: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.title,
    str.swapcase,
    lambda path: unicodedata.normalize("NFC", path),
    lambda path: unicodedata.normalize("NFD", path).upper(),
    lambda path: path.replace("/", "\\").upper(),
)


@pytest.mark.parametrize("folder", ["", "Sub/", "Été/İ/"])
@pytest.mark.parametrize("respell", RESPELLINGS)
def test_paths_that_differ_only_in_spelling_are_found_and_said(
    tmp_path: Path, folder: str, respell: Callable[[str], str]
) -> None:
    """As tables made on Windows or macOS have them."""
    names = [unicodedata.normalize("NFD", f"{folder}{name}.jpg") for name in ("Img_1", "straße", "café", "plain")]
    make(tmp_path, *names)
    rows = [f"{respell(name)},{'ab'[number % 2]}\n" for number, name in enumerate(names[:3])] + [f"{names[3]},b\n"]
    (tmp_path / "all.csv").write_text("".join(["path,label\n", *rows]))
    table = read_table(tmp_path / "all.csv")
    assert [(row.path, row.label) for row in table.rows] == [
        (name, label) for name, label in zip(names, "abab", strict=True)
    ]
    changed = sum(respell(name).replace("\\", "/") != name for name in names[:3])
    said = [note for note in table.notes if "letter case or accents" in note]
    assert len(said) == (changed > 0)
    assert all(note.startswith(f"{changed} path{'s' * (changed > 1)} in ") for note in said)


def test_names_without_suffix_in_another_letter_case_are_found(tmp_path: Path) -> None:
    make(tmp_path, "images/scan_a.png", "images/Scan_B.png", "images/SCAN_C.png")
    (tmp_path / "train.csv").write_text("id,label\nSCAN_A,x\nscan_b,y\nscan_c,y\n")
    paths = [row.path for row in read_table(tmp_path / "train.csv").rows]
    assert paths == ["images/scan_a.png", "images/Scan_B.png", "images/SCAN_C.png"]


def test_a_path_that_may_be_either_of_two_files_is_refused_and_an_exact_one_is_not(tmp_path: Path) -> None:
    make(tmp_path, "cat.jpg", "CAT.jpg", "dog.jpg")
    table = tmp_path / "all.csv"
    table.write_text("path,label\ncat.jpg,a\nCAT.jpg,b\ndog.jpg,b\n")
    assert [row.path for row in read_table(table).rows] == ["cat.jpg", "CAT.jpg", "dog.jpg"]
    table.write_text("path,label\nCat.jpg,a\ndog.jpg,b\n")
    with pytest.raises(DataError, match=r"names Cat\.jpg, which may be any of CAT\.jpg, cat\.jpg; write one"):
        read_table(table)


def test_one_file_under_two_spellings_has_one_label(tmp_path: Path) -> None:
    make(tmp_path, "cat.jpg", "dog.jpg")
    (tmp_path / "all.csv").write_text("path,label\ncat.jpg,a\nCAT.JPG,b\ndog.jpg,b\n")
    with pytest.raises(DataError, match="the label b, and line 2 of"):
        read_table(tmp_path / "all.csv")


def test_folders_named_as_images_are_no_images(tmp_path: Path) -> None:
    make(tmp_path, "1/x.txt", "A/x.txt", "images/1.png", "images/a.png")
    (tmp_path / "train.csv").write_text("id,label\n1,x\na,y\n")
    assert [row.path for row in read_table(tmp_path / "train.csv").rows] == ["images/1.png", "images/a.png"]


def test_a_table_that_contradicts_class_folders_in_parts_is_a_warning(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/p{number}/view.jpg" for number in range(4)))
    rows = [f"train/p{number}/view.jpg,{'ab'[number % 2]}\n" for number in range(4)]
    (tmp_path / "train.csv").write_text("".join(["path,label\n", *rows]))
    (said,) = list_folder(tmp_path).warnings()
    assert "gives train/p0/view.jpg the label a, but its folder is used as its class; give " in said


def test_of_several_tables_with_other_columns_the_training_one_is_named(tmp_path: Path) -> None:
    make(tmp_path, "train_images/1.png", "test_images/2.png")
    (tmp_path / "test.csv").write_text("id_code\n2\n")
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n1,3\n")
    with pytest.raises(DataError, match=r"train.csv has no column .*: --columns path=COLUMN,label=diagnosis"):
        list_folder(tmp_path)


def test_a_table_that_names_none_of_the_images_beside_it_is_named(tmp_path: Path) -> None:
    make(tmp_path, "train/0001.jpg", "train/0002.jpg", "test/0003.jpg")
    (tmp_path / "test.csv").write_text("id\n0003\n")
    (tmp_path / "train.csv").write_text("id,label\n1,cat\n2,dog\n")  # a spreadsheet dropped the zeros
    with pytest.raises(DataError, match=r"train\.csv names no image in .*: there is no 1; correct its paths"):
        list_folder(tmp_path)


def test_empty_rows_of_a_spreadsheet_are_none(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "all.csv").write_text("path,label,part\na.jpg,cat,train\n,,\nb.jpg,dog,test\n,,\n , ,\n")
    assert found(list_folder(tmp_path / "all.csv")) == [("a.jpg", "cat", "train"), ("b.jpg", "dog", "test")]


@pytest.mark.parametrize("key", ["0", "1.0"])
def test_one_hot_columns_with_one_1_in_each_row_are_classes(key: str, tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    one, zero = ("1", "0") if key == "0" else ("1.0", "0.0")
    rows = f"a.jpg,{one},{zero},{zero}\nb.jpg,{zero},{one},{zero}\nc.jpg,{zero},{zero},{one}\n"
    (tmp_path / "all.csv").write_text(f"image_id,healthy,rust,scab\n{rows}")
    listing = list_folder(tmp_path / "all.csv")
    assert found(listing) == [("a.jpg", "healthy", ""), ("b.jpg", "rust", ""), ("c.jpg", "scab", "")]
    assert listing.kind == "single-label"
    with pytest.raises(DataError, match="are in several columns; correct them there by hand"):
        replace_labels(read_table(tmp_path / "all.csv"), {"a.jpg": "rust"})


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("Usage", ("Training", "Test"), "says Test, Training: --columns part=Usage splits the images by it"),
        ("my phase", ("train", "dev"), "says dev, train: --columns 'part=my phase' splits the images by it"),
        ("is_valid", ("True", "False"), "is not used: to split by it, write train, val or test in it"),
        ("age", ("30", "1"), None),
    ],
)
def test_columns_that_may_be_parts_are_noted(
    column: str, values: tuple[str, str], said: str | None, tmp_path: Path
) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "all.csv").write_text(f"path,label,{column}\na.jpg,cat,{values[0]}\nb.jpg,dog,{values[1]}\n")
    first, *rest = list_folder(tmp_path / "all.csv").account.notes
    assert first == f"unused columns of {tmp_path / 'all.csv'}: {column}"
    assert rest == [f"the column {column} of {tmp_path / 'all.csv'} {said}"] * (said is not None)


def test_existing_columns_are_suggested(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "all.csv").write_text("url,label\nhttp://x/a.jpg,cat\n")
    with pytest.raises(DataError, match=r"--columns path=url,label=label$"):
        list_folder(tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'path,label\r\na.png,"x, y"\r\n"b\n.png",old\r\n', 'path,label\r\na.png,"x, y"\r\n"b\n.png",new\r\n'),
        ("a.csv", "sep=;\nlabel;path\n\nold;b.png", "sep=;\nlabel;path\n\nnew;b.png"),
        ("a.tsv", "path\tlabel\nb\t'old'", "path\tlabel\nb\tnew"),
        ("a.csv", "path,label\nb,old\nc,old\nb,old\n", "path,label\nb,new\nc,old\nb,new\n"),
        (
            "a.jsonl",
            '{"path": "a", "label": 1}\n{"more":[2],"label": 1, "path": "b"}\n',
            '{"path": "a", "label": 1}\n{"more": [2], "label": "new", "path": "b"}\n',
        ),
    ],
)
def test_labels_are_replaced_and_nothing_else(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    table = read_table(tmp_path / name)
    path = next(row.path for row in table.rows if row.path.startswith("b"))
    assert replace_labels(table, {path: "new"}) == expected
    assert replace_labels(table, {}) == text


def test_a_number_in_json_stays_one_and_a_changed_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "a", "label": 1}')
    table = read_table(tmp_path / "a.jsonl")
    assert replace_labels(table, {"a": "7"}) == '{"path": "a", "label": 7}'
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(DataError, match="changed while it was read"):
        replace_labels(table, {"a": "7"})


def test_a_link_to_itself_does_not_hide_the_files_beside_it(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "all.csv").write_text("path,label\nA.jpg,cat\nb.jpg,dog\n")
    assert [path for path, _, _ in found(list_folder(tmp_path / "all.csv"))] == ["a.jpg", "b.jpg"]


def test_loops_of_links_do_not_multiply_the_search(tmp_path: Path) -> None:
    """Each folder of the path may be either link, which would be 2²⁰ paths to one file."""
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "Up").symlink_to(".")
    (tmp_path / "UP").symlink_to(".")
    (tmp_path / "all.csv").write_text(f"path,label\n{'up/' * 20}A.jpg,cat\nb.jpg,dog\n")
    (path, _, _), other = found(list_folder(tmp_path / "all.csv"))
    assert (tmp_path / path).samefile(tmp_path / "a.jpg")
    assert other[0] == "b.jpg"


@pytest.mark.parametrize("names", [("x/a.jpg", "x/a.png"), ("x/A.jpg", "x/A.png"), ("x/y/a.jpg", "x/y/a.png")])
def test_an_id_that_two_files_bear_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    make(tmp_path, *names, "x/b.jpg")
    prefix = "y/" if "/y/" in names[0] else ""
    (tmp_path / "x.csv").write_text(f"id,label\nb,dog\n{prefix}a,cat\n")
    with pytest.raises(DataError, match=rf"x\.csv names {prefix}a, which may be any of {names[0]}, {names[1]}; write"):
        list_folder(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels\na.jpg,cat|dog\nb.jpg\n", "line 3 of .* has 1 column, and the first line 2; fill in labels"),
        (
            "path,label,group\na.jpg,cat,1\nb.jpg,dog\n",
            "line 3 of .* has 2 columns, and the first line 3; fill in group",
        ),
        ("path,label,label\na.jpg,cat,dog\nb.jpg,dog,dog\n", "has 2 columns label; rename all but one of them"),
        ("path,cat|dog,fox\na.jpg,1,0\nb.jpg,1,1\n", r"has a column cat\|dog; rename it, as \| separates labels"),
        ("path,target\na.jpg,1_5\nb.jpg,2.5\n", "has target=1_5, which is not a finite number"),
        ("path,label\n./a.jpg,cat\na.jpg,dog\n", "line 3 of .* gives a.jpg the label dog, and line 2 of .* cat"),
        ("path,label\nx//a.jpg,cat\nx/./a.jpg,dog\n", "line 3 of .* gives x/a.jpg the label dog, and line 2 of .* cat"),
    ],
)
def test_tables_that_would_be_misread_are_refused(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "x/a.jpg")
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list_folder(tmp_path / "all.csv")


def test_a_label_in_json_that_holds_the_separator_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "all.jsonl").write_text(
        '{"file_name": "a.jpg", "label": ["cat|dog", "fox"]}\n{"file_name": "b.jpg", "label": []}\n'
    )
    with pytest.raises(DataError, match=r"line 1 of .* has the label cat\|dog; rename it, as \| separates labels"):
        list_folder(tmp_path / "all.jsonl")


@pytest.mark.parametrize("second", ["CAT", "cat\u200b"])
@pytest.mark.parametrize("several", ["", "|dog"])
def test_spellings_of_a_class_in_a_table_are_merged_between_parts_or_questioned(
    tmp_path: Path, second: str, several: str
) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for part, names, said in (
        ("val", ("cat", "dog"), "are merged to cat"),
        ("train", ("cat", second, "dog"), "differ"),
    ):
        (tmp_path / "all.csv").write_text(
            f"path,label,part\na.jpg,cat{several},train\nb.jpg,{second},{part}\nc.jpg,dog,train\n"
        )
        listing = list_folder(tmp_path / "all.csv")
        assert sorted(listing.names()) == sorted(names)
        (sentence,) = (one for one in (*listing.account.notes, *listing.account.warnings) if "the classes" in one)
        assert said in sentence
