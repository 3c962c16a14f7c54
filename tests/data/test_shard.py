"""Shards hold the images of their source byte by byte, in the parts that training would choose."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svertka.data import shard as module
from svertka.data.image_disk_cache import prepare_images
from svertka.data.preprocessing import Preprocess
from svertka.data.shard import shard
from svertka.data.shard_index import FILE, ShardIndex
from svertka.data.shard_storage import ShardLocation
from svertka.data.sharded_images import open_shards
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError
from svertka.training.data_splits import decode_and_split

COUNT = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noise in two classes: JPEG, PNG, a grayscale BMP and an unreadable file."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / ("cats" if number % 2 else "dogs") / f"{number:02d} a.b{'.png' if number % 3 else '.jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 24, 3), np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(folder / "cats" / "gray.bmp")
    (folder / "dogs" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


@pytest.fixture(scope="module")
def written(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "out"
    shard(photos, folder, val=0.2, shard_size=0.04, threads=2)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The shards, and the columns of their index; the order of safetensors' metadata is random."""
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
    index, header = ShardIndex.read(folder / FILE, "index")
    columns = (index.offsets, index.lengths, index.labels, index.sizes, index.digests)
    return found | {FILE: repr(sorted(header.items())).encode() + b"".join(column.tobytes() for column in columns)}


def test_tar_files_hold_the_source_byte_by_byte_with_its_classes(photos, written):
    wanted = {path.read_bytes(): path.parent.name for path in photos.glob("*/*") if path.suffix in (".jpg", ".png")}
    names = ["cats", "dogs"]
    found = 0
    for path in written.glob("*.tar"):
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name, content in files.items():
            key, _, suffix = name.partition(".")
            if suffix == "cls":
                continue
            label = names[int(files[f"{key}.cls"])]
            if content in wanted:
                assert wanted[content] == label
                found += 1
            else:  # the BMP became a PNG of the same pixels
                pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                assert (pixels == np.asarray(Image.open(photos / "cats" / "gray.bmp").convert("RGB"))).all()
                assert suffix == "png"
    assert found == COUNT


def test_the_parts_are_those_of_a_training_on_the_folder(photos, written):
    dataset = open_source(photos)
    digests = [dataset.images.digest(index) for index in range(len(dataset))]
    preprocess = Preprocess(size=16, resize=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    splits = decode_and_split(dataset, preprocess, 16, 0.2, 0.0, threads=2, limit=None)
    shards = open_shards(written)
    of_shards = {shards.images.digest(index): str(part) for index, part in enumerate(shards.parts)}
    for part, indices in splits.indices.items():
        for index in indices.tolist():
            if not dataset.images.name(index).endswith(".bmp"):
                assert of_shards[digests[index]] == part
    assert sum(part == "val" for part in of_shards.values()) > 5


def test_shards_give_the_same_pixels_and_sizes_as_the_files(photos, written):
    files, shards = open_source(photos), open_shards(written)
    squares = [prepare_images(one, 16, 3, threads=2) for one in (files, shards)]
    place = {digest: index for index, digest in enumerate(squares[0].digests)}
    seen = 0
    for index, digest in enumerate(squares[1].digests):
        if digest in place:
            other = place[digest]
            assert (squares[1].rows[np.array([index])] == squares[0].rows[np.array([other])]).all()
            assert shards.images.size(index) == files.images.size(other)
            assert files.names[files.labels[other]] == shards.names[shards.labels[index]]
            seen += 1
    assert seen == COUNT


def test_unreadable_images_are_left_out_and_named(photos, tmp_path):
    found = shard(photos, tmp_path / "out", threads=2)
    assert len(found.unreadable) == 1
    assert "broken.jpg" in found.unreadable[0]
    assert sum(found.parts.values()) == COUNT + 1


def test_the_same_images_give_the_same_bytes(photos, written, tmp_path):
    shard(photos, tmp_path / "again", val=0.2, shard_size=0.04, threads=1)
    assert files_of(tmp_path / "again") == files_of(written)


def test_an_interrupted_call_continues_with_the_first_missing_shard(photos, written, tmp_path, monkeypatch):
    put, calls = module._Writer.put, []

    def interrupted(self, shard):
        calls.append(shard.index.shards[0].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, shard)

    monkeypatch.setattr(module._Writer, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shard(photos, tmp_path / "out", val=0.2, shard_size=0.04, threads=2)
    with pytest.raises(DataError, match="is not complete; run the svertka shard command"):
        open_shards(tmp_path / "out")
    before = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    shard(photos, tmp_path / "out", val=0.2, shard_size=0.04, threads=2)
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == before
    assert calls[2] == calls[3] == "train-000002.tar"
    assert files_of(tmp_path / "out") == files_of(written)


@pytest.mark.parametrize("whole", [1, 2, 5])
def test_a_folder_that_is_not_complete_is_never_taken_for_one_that_is(photos, written, tmp_path, monkeypatch, whole):
    put, calls = ShardLocation.put, []

    def interrupted(self, name, file):
        calls.append(name)
        if len(calls) > whole:
            raise KeyboardInterrupt
        put(self, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(ShardLocation, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shard(photos, tmp_path / "out", val=0.2, shard_size=0.04, threads=2)
    assert len(list((tmp_path / "out").iterdir())) == whole
    with pytest.raises(DataError, match="is not complete; run the svertka shard command|has no shards"):
        open_shards(tmp_path / "out")
    shard(photos, tmp_path / "out", val=0.2, shard_size=0.04, threads=2)
    assert files_of(tmp_path / "out") == files_of(written)


def test_a_complete_folder_is_left_as_it_is(photos, written, capsys):
    before = files_of(written)
    found = shard(photos, written, val=0.2, shard_size=0.04)
    assert "is complete already" in capsys.readouterr().err
    assert found.parts["train"] + found.parts["val"] == COUNT + 1
    assert len(found.unreadable) == 1
    assert files_of(written) == before


@pytest.mark.parametrize("change", ["options", "other files"])
def test_shards_of_other_images_are_not_overwritten(photos, written, tmp_path, change):
    target = written if change == "options" else tmp_path
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files; choose another --to"):
        shard(photos, target, val=0.3)


@pytest.mark.parametrize(
    ("column", "cells", "phrase"),
    [
        ("labels", ("a", "a|b", ""), "several labels an image"),
        ("target", ("0.5", "1.5", "2.5"), "a number for an image"),
    ],
)
def test_several_labels_and_numbers_are_refused(tmp_path, column, cells, phrase):
    rows = [f"path,{column}"]
    for number, cell in enumerate(cells):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{cell}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    with pytest.raises(
        DataError, match=f"has {phrase}, and shards hold one class for each image; train on .*csv itself"
    ):
        shard(tmp_path / "images.csv", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_images_with_16_bits_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100).save(tmp_path / "in" / name / "x.png")
    with pytest.raises(DataError, match="has 16 bits per value, and shards hold 8"):
        shard(tmp_path / "in", tmp_path / "out", val=0)


@pytest.mark.parametrize("size", [0, -1, float("nan"), 1e9])
def test_impossible_sizes_are_refused(photos, tmp_path, size):
    with pytest.raises(UsageError, match="must be more than 0 and at most"):
        shard(photos, tmp_path / "out", shard_size=size)


def test_arrays_become_png_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 5, 6), np.uint8)
    shard((images, np.arange(12) % 2), tmp_path / "out", val=0)
    dataset = open_shards(tmp_path / "out")
    found = {dataset.images.read(index)[..., 0].tobytes(): int(label) for index, label in enumerate(dataset.labels)}
    assert found == {image.tobytes(): number % 2 for number, image in enumerate(images)}


def test_the_summary_is_json(photos, written):
    found = shard(photos, written, val=0.2, shard_size=0.04)
    assert json.loads(json.dumps(found.to_dict()))["classes"] == ["cats", "dogs"]
    assert "2 classes" in found.sentences()[0]
