"""Shards of other programs: classes, parts and faults, found in tar files that these tests write."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data.shard import shard
from svertka.data.sharded_images import open_shards
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image(number: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 12 + number, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def sample(number: int, label: object) -> list[tuple[str, bytes]]:
    return [(f"{number:04}.jpg", image(number)), (f"{number:04}.cls", str(label).encode())]


def test_numbers_with_a_list_of_names(tmp_path, capsys):
    folder = tmp_path / "set"
    write(folder / "imagenet-train-000.tar", sample(0, 2) + sample(1, 0))
    write(folder / "imagenet-train-001.tar", sample(2, 1))
    write(folder / "imagenet-validation-000.tar", sample(3, 1))
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    dataset = open_shards(folder)
    assert dataset.names == ("ant", "bee", "cat")
    assert dataset.labels.tolist() == [2, 0, 1, 1]
    assert dataset.parts.tolist() == ["train", "train", "train", "val"]
    assert [dataset.images.read_bytes(index) for index in range(4)] == [image(number) for number in range(4)]
    assert [dataset.images.size(index) for index in range(4)] == [(10, 12 + number) for number in range(4)]
    assert "has no index; reading 3\xa0shards once" in capsys.readouterr().err
    open_shards(folder)
    assert capsys.readouterr().err == ""  # its index was kept


def test_a_changed_shard_is_read_again(tmp_path):
    path = write(tmp_path / "set" / "a.tar", sample(0, 0) + sample(1, 1))
    assert open_shards(tmp_path / "set").labels.tolist() == [0, 1]
    write(path, sample(0, 1) + sample(1, 0))
    assert open_shards(tmp_path / "set").labels.tolist() == [1, 0]


def test_numbers_without_names_and_json_labels_and_several_formats(tmp_path):
    files = [
        ("x/0.png", image(0, "PNG")),
        ("x/0.json", json.dumps({"label": 1, "caption": "no"}).encode()),
        ("x/1.seg.png", image(9, "PNG")),  # not the image: its suffix is seg.png
        ("x/1.webp", image(1, "WEBP")),
        ("x/1.txt", b"ignored"),
        ("x/1.cls", b"0\n"),
    ]
    write(tmp_path / "set" / "a.tar", files)
    dataset = open_shards(tmp_path / "set" / "a.tar")
    assert (dataset.names, dataset.labels.tolist(), dataset.parts.tolist()) == (("0", "1"), [1, 0], ["", ""])
    assert dataset.images.read_bytes(1) == image(1, "WEBP")


def test_words_are_class_names(tmp_path):
    write(tmp_path / "set" / "a.tar", sample(0, "wolf") + sample(1, "fox"))
    dataset = open_shards(tmp_path / "set")
    assert [dataset.names[label] for label in dataset.labels] == ["wolf", "fox"]


def test_unreadable_images_are_left_out_and_named(tmp_path):
    write(tmp_path / "set" / "a.tar", [*sample(0, 0), ("7.jpg", b"no image"), ("7.cls", b"1"), *sample(1, 1)])
    dataset = open_shards(tmp_path / "set")
    assert dataset.labels.tolist() == [0, 1]
    assert "left out: 1 images that cannot be read: a.tar: 7" in dataset.account.notes[0]


def test_names_are_given_in_a_file_or_a_list(tmp_path):
    folder = tmp_path / "set"
    write(folder / "a.tar", sample(0, 2) + sample(1, 0))
    (folder / "names.txt").write_text("x\ny\nz\n")
    (tmp_path / "own.txt").write_text("\ufeffant\n\nbee\n cat \n", encoding="utf-8")
    assert open_source(folder, names=tmp_path / "own.txt").names == ("ant", "bee", "cat")
    assert open_source(folder, names=["one", "two", "three"]).names == ("one", "two", "three")
    assert open_source(folder).names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (None, UsageError, "cannot be read .*give a text file with one class per line"),
        ("", DataError, "names no class; give one class per line"),
        ("a\nb\na\n", DataError, "names a twice"),
        ("a\n", DataError, "has the label 2, which is none of the 1 class names; correct the list of names"),
    ],
)
def test_faults_of_a_file_of_names(tmp_path, content, error, sentence):
    write(tmp_path / "set" / "a.tar", sample(0, 2) + sample(1, 0))
    if content is not None:
        (tmp_path / "own.txt").write_text(content)
    with pytest.raises(error, match=sentence):
        open_source(tmp_path / "set", names=tmp_path / "own.txt")


def test_names_are_refused_where_there_are_names(tmp_path):
    shard((np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2), tmp_path / "own", val=0, threads=1)
    with pytest.raises(UsageError, match="has an index with its class names; leave names"):
        open_source(tmp_path / "own", names=["a", "b"])
    with pytest.raises(UsageError, match="names are for shards, and mnist is no folder or URL of shards"):
        open_source("mnist", names=["a", "b"])


def test_imagenet_as_webdataset(tmp_path):
    """The layout of timm/imagenet-1k-wds: keys with the WordNet id, .cls beside .json, parts in the shards' names."""
    for part, shards in (("train", 2), ("validation", 1)):
        for shard_number in range(shards):
            files = []
            for number in range(3):
                key = f"n0144076{number}_{shard_number}{number}"
                facts = {"filename": f"{key}.JPEG", "label": number, "class_name": f"n0144076{number}", "width": 12}
                files += [(f"{key}.cls", str(number).encode()), (f"{key}.jpg", image(number))]
                files += [(f"{key}.json", json.dumps(facts).encode())]
            write(tmp_path / "set" / f"imagenet1k-{part}-{shard_number:04}.tar", files)
    (tmp_path / "set" / ".gitattributes").write_text("*.tar filter=lfs")
    (tmp_path / "set" / "README.md").write_text("---\n")
    (tmp_path / "set" / "_info.json").write_text("{}")
    dataset = open_source(tmp_path / "set", names=["tench", "goldfish", "shark"])
    assert dataset.labels.tolist() == [0, 1, 2] * 3
    assert dataset.parts.tolist() == ["train"] * 6 + ["val"] * 3


def test_clip_benchmark_as_webdataset(tmp_path):
    """The layout of the wds_* data sets on the Hub: shards 0.tar in a folder per part, WebP, classnames.txt."""
    folder = tmp_path / "wds_cifar10" / "test"
    folder.parent.mkdir()
    write(folder / "0.tar", [(f"s{n:07}.{end}", what) for n in range(3) for end, what in wds(n)])
    (folder / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("airplane\ncat\ndog\n")
    dataset = open_source(folder)
    assert (dataset.names, dataset.labels.tolist()) == (("airplane", "cat", "dog"), [0, 1, 2])
    assert dataset.parts.tolist() == ["test"] * 3


def wds(number: int) -> list[tuple[str, bytes]]:
    return [("cls", str(number).encode()), ("webp", image(number, "WEBP"))]


def cut(folder: Path, length: int) -> None:
    path = write(folder / "a.tar", sample(0, 0) + sample(1, 1))
    path.write_bytes(path.read_bytes()[:length])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: cut(folder, 700), "truncated inside 0000|is no intact tar file"),
        (lambda folder: cut(folder, 100), "is no intact tar file"),
        (lambda folder: (folder / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000)), "is no intact tar file"),
        (lambda folder: write(folder / "a.tar", sample(0, 0) + sample(1, 0) + sample(0, 1)), "has the key 0000 twice"),
        (
            lambda folder: write(folder / "a.tar", [*sample(0, 0), ("0000.png", image(1, "PNG"))]),
            "two images under the key 0000",
        ),
        (
            lambda folder: write(folder / "a.tar", [("0.jpg", image(0))]),
            "has 1\xa0image without a label .0.; each needs",
        ),
        (lambda folder: write(folder / "a.tar", [("0.cls", b"0")]), "has no images"),
        (lambda folder: write(folder / "a.tar", sample(0, 0) + sample(1, "fox")), "some are names, such as fox"),
        (lambda folder: (folder / "names.txt").write_text("a\na\n"), "names a twice"),
        (
            lambda folder: [write(folder / "a.tar", sample(0, 5)), (folder / "names.txt").write_text("a\nb\n")],
            "0000 has the label 5, which is none of the 2 class names",
        ),
    ],
)
def test_faults_end_with_a_sentence(tmp_path, make, sentence):
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    if not (folder / "a.tar").exists():
        write(folder / "a.tar", sample(0, 0))
    with pytest.raises(DataError, match=sentence):
        open_shards(folder)


def test_a_folder_without_shards_is_no_source_of_shards(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="has no shards; they end in .tar"):
        open_shards(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
