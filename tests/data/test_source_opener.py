from pathlib import Path

import pytest

from svertka.data.source_opener import is_same_source, open_source
from svertka.errors import UsageError


def test_a_name_a_folder_and_a_csv(digit_folder: Path, tmp_path: Path) -> None:
    assert len(open_source("digits")) == 1797
    folder = open_source(str(digit_folder))
    assert folder.names == ("four", "one", "three", "two")
    rows = [f"{folder.images.name(index)},{folder.names[folder.labels[index]]}" for index in range(len(folder))]
    (tmp_path / "digits.csv").write_text("\n".join(["path,label", *rows]))
    table = open_source(tmp_path / "digits.csv")
    assert table.names == folder.names
    assert (table.labels == folder.labels).all()
    assert (table.images.read(7) == folder.images.read(7)).all()


def test_a_source_opens_again_from_elsewhere(
    digit_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(digit_folder.parent)
    source = open_source(digit_folder.name).source
    monkeypatch.chdir(tmp_path)
    assert len(open_source(source)) == len(open_source(digit_folder))


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("digits/a/1.png", "digits/b/1.png"):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_bytes(b"x")
    assert len(open_source("digits")) == 1797
    assert len(open_source("./digits")) == 2


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("minst", "mnist"),
        ("MNIST", "mnist"),
        ("cifar-10", "cifar10"),
        ("fashion_mnist", "fashion-mnist"),
        ("digit", "digits"),
    ],
)
def test_a_misspelt_name_is_guessed(source: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"no folder {source}; did you mean {meant}"):
        open_source(source)


@pytest.mark.parametrize("name", ["photos.zip", "a b.tar", "photos.tar.gz", "x.tgz", "y.7z"])
def test_an_archive_is_named_with_how_to_unpack_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="is an archive; unpack it .* and give the folder"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("columns", ["path", "wings=2", ""])
def test_columns_of_nothing_are_one_sentence(columns: str, digit_folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be parsed"):
        open_source(digit_folder, columns=columns)
    with pytest.raises(UsageError, match="leave them out"):
        open_source("digits", columns="path=a")


def test_what_is_nothing_is_told_what_there_is() -> None:
    with pytest.raises(
        UsageError, match=r"no folder photos/of/cats; give a folder, a \.csv file or one of: digits, mnist"
    ):
        open_source("photos/of/cats")


def test_a_published_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert is_same_source("digits", "digits")
    assert is_same_source("./digits", tmp_path / "digits")
    assert not is_same_source("digits", "./digits")
    assert not is_same_source(tmp_path / "digits", "digits")
    (tmp_path / "loop").symlink_to("loop")
    assert not is_same_source(tmp_path / "loop", tmp_path)
