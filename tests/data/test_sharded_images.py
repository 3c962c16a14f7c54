"""Images in shards: order of an epoch, agreement with the index, and shards on a web server that misbehaves."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from range_server import RangeServer, serving
from svertka.data import shard_cache, shard_storage
from svertka.data.content_hash import hash_images
from svertka.data.dataset import Dataset, Subset
from svertka.data.image_disk_cache import prepare_images
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.shard import shard
from svertka.data.shard_index import FILE
from svertka.data.sharded_images import LANES, SHUFFLED, ShardImages, open_shards
from svertka.data.source_opener import open_source
from svertka.errors import DataError, UsageError

COUNT = 48
PREPROCESS = Preprocess(size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    return images, np.arange(COUNT) % 3


@pytest.fixture(scope="module")
def original(arrays, tmp_path_factory) -> Path:
    """Six shards of 48 images."""
    folder = tmp_path_factory.mktemp("original") / "set"
    shard(arrays, folder, val=0.25, shard_size=0.02, threads=1)
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch) -> Path:
    """A copy that may be damaged, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "web" / "set"))


@pytest.fixture
def server(folder, monkeypatch) -> Iterator[RangeServer]:
    """A web server of the copy; requests are repeated fast, and fetched in small blocks."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(shard_cache, "BLOCK", 4096)
    monkeypatch.setattr(shard_storage, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(shard_storage, "PATIENCE", 0.2)
    with serving(folder.parent) as found:
        yield found


def loader(dataset: Dataset, **options: object) -> BatchLoader:
    images = dataset.images
    assert isinstance(images, ShardImages)
    rows = prepare_images(dataset, 8, 3, threads=2).rows
    train = np.flatnonzero(dataset.parts == "train")
    return BatchLoader(
        rows, dataset.labels, train, PREPROCESS, batch_size=7, seed=5, shuffle=True, permute=images.shuffle,
        lanes=LANES, request=images.request, **options,
    )  # fmt: skip


def test_an_epoch_has_each_image_once_and_another_order_than_the_next(original):
    batches = loader(open_shards(original))
    orders = [batches.order(epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == batches.indices.tolist()


def test_an_epoch_continues_at_any_step_with_the_same_batches(original):
    whole = list(loader(open_shards(original)).epoch(3))
    later = list(loader(open_shards(original), prefetch=True).epoch(3, 2))
    assert len(later) == len(whole) - 2
    for one, other in zip(whole[2:], later, strict=True):
        assert (one.images == other.images).all()
        assert one.indices.tolist() == other.indices.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_each_image_is_seen_once_by_some_rank_also_if_their_number_changes(original, world):
    dataset = open_shards(original)
    seen = [batch.indices for batch in list(loader(dataset).epoch(1))[:2]]
    for rank in range(world):
        seen += [batch.indices for batch in loader(dataset, rank=rank, world=world).epoch(1, 2)]
    assert sorted(np.concatenate(seen).tolist()) == loader(dataset).indices.tolist()


def test_digests_are_read_at_once_with_their_zeros(original):
    images = open_shards(original).images
    assert isinstance(images, ShardImages)
    images.index.digests[3:6] = 0
    images.index.digests[4, 5:9] = 7
    wanted = np.array([7, 3, 4, 0, 5])
    assert hash_images(Subset(images, wanted), 1) == ([images.digest(index) for index in wanted.tolist()], {})
    assert images.digests(np.array([4])) == [bytes(5) + bytes([7] * 4) + bytes(7)]


@pytest.fixture
def large() -> ShardImages:
    """A hundred shards of 2,000 images, that are not read."""
    images = ShardImages.__new__(ShardImages)
    images.index = type("Index", (), {"shards": range(100)})()
    images.shard_of = np.repeat(np.arange(100), 2000)
    return images


def test_shards_are_read_one_after_the_other(large):
    """Of many shards, the images of a stretch of an epoch are in few of each lane, wherever it begins."""
    order = large.shuffle(np.random.default_rng(0), np.arange(200_000))
    assert sorted(order.tolist()) == list(range(200_000))
    shards = large.shard_of[order].reshape(-1, 2000)
    assert max(len(set(some.tolist())) for some in shards) <= 2 * LANES
    moved = np.abs(np.diff(order[:20_000:LANES]))
    assert np.median(moved) > SHUFFLED / LANES / 8


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_each_process_reads_shards_of_its_own(large, world):
    """Also when the last batch is uneven."""
    train = np.arange(100, 199_990)
    read, batches = [], []
    for rank in range(world):
        some = BatchLoader(
            np.zeros((200_000, 1, 1, 1), np.uint8), np.zeros(200_000, np.int64), train, PREPROCESS, batch_size=1024,
            shuffle=True, permute=large.shuffle, lanes=LANES, rank=rank, world=world,
        ).with_images(lambda indices, epoch: torch.zeros(len(indices)))  # fmt: skip
        batches.append([batch.indices.tolist() for batch in some.epoch(1)])
        read.append({int(large.shard_of[index]) for batch in batches[-1] for index in batch})
    assert sorted(index for share in batches for batch in share for index in batch) == train.tolist()
    # A shard may belong to two lanes, and a lane, of 7 shards, to two processes if these do not divide the lanes.
    assert sum(map(len, read)) <= 100 + (world - 1) * (1 if LANES % world == 0 else 8)


def test_the_web_server_gives_the_same_images_as_the_folder(folder, server):
    local, remote = open_shards(folder), open_source(f"{server.url}/set")
    assert (remote.names, len(remote)) == (local.names, COUNT)
    for one, other in zip(loader(local).epoch(0), loader(remote, prefetch=True).epoch(0), strict=True):
        assert (one.images == other.images).all()
    assert remote.images.name(0).startswith(f"{server.url}/set/train-000000.tar: ")


def test_each_block_is_fetched_once(server):
    for _ in range(2):
        list(loader(open_source(f"{server.url}/set")).epoch(0))
    ranges = [wanted for wanted in server.requests if wanted[0] == "GET" and ".tar" in wanted[1]]
    assert len(ranges) == len(set(ranges)) > 5


def test_blocks_are_fetched_ahead_only_where_a_shard_is_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shard_cache, "BLOCK", 16)

    class Location:
        def __init__(self) -> None:
            self.asked: list[tuple[str, int]] = []

        def describe(self, name: str) -> str:
            return f"memory://{name}"

        def read(self, name: str, start: int, stop: int) -> bytes:
            self.asked.append((name, start // 16))
            return bytes(range(start, stop))

    for version, places, blocks in (("1", (40, 200), [2, 12]), ("2", (40, 60), [2, 3, 4, 5, 6, 7])):
        location = Location()
        content = shard_cache.RemoteBytes(location, ("one",), (256,), version)
        assert [content.read(0, place, place + 2) for place in places] == [bytes([one, one + 1]) for one in places]
        content._pool.shutdown(wait=True)
        assert sorted(location.asked) == [("one", block) for block in blocks]


def test_a_pattern_names_some_of_the_shards(folder, server):
    local = open_shards(f"{folder}/train-{{000000..000001}}.tar")
    remote = open_source(f"{server.url}/set/train-{{000000,000001}}.tar")
    whole = open_shards(folder)
    assert [one.name for one in local.images.index.shards] == ["train-000000.tar", "train-000001.tar"]
    assert len(local) == len(remote) == sum(one.count for one in whole.images.index.shards if one.name < "train-000002")
    assert (
        local.images.digest(3)
        == remote.images.digest(3)
        == whole.images.digest(int(np.flatnonzero(whole.parts == "train")[3]))
    )


def test_an_index_is_waited_for_while_the_server_fails(folder, server):
    begun = len(server.requests)
    server.fault = lambda path, number: 503 if "index" in path and number <= begun + 4 else None
    dataset = open_source(f"{server.url}/set/train-{{000000..000001}}.tar")
    assert not [wanted for wanted in server.requests if ".tar" in wanted[1]]  # as reading the shards would
    local = open_shards(f"{folder}/train-{{000000..000001}}.tar")
    assert dataset.images.digest(3) == local.images.digest(3)


def test_an_index_that_a_server_denies_is_taken_for_absent(server):
    server.fault = lambda path, number: 403 if "index" in path else None
    named = open_source(f"{server.url}/set/train-{{000000..000001}}.tar")
    server.fault = lambda path, number: None
    assert len(named) == len(open_source(f"{server.url}/set/train-{{000000..000001}}.tar"))


@pytest.mark.parametrize(
    ("status", "sentence"), [(403, "may not be read: access is denied"), (503, "cannot be read .503"), (404, "exist")]
)
def test_what_a_server_answers_to_the_first_request_is_said(server, status, sentence):
    server.fault = lambda path, number: status
    with pytest.raises(DataError, match=sentence):
        open_source(f"{server.url}/set/train-{{000000..000001}}.tar")


def test_the_cache_keeps_its_limit(server, tmp_path):
    dataset = open_source(f"{server.url}/set")
    list_of_rows = prepare_images(dataset, 8, 3, threads=2, cache_limit=20_000).rows
    for index in range(COUNT):
        list_of_rows[np.array([index])]
    blocks = [path for path in (tmp_path / "cache" / "svertka" / "shards").glob("*/*/*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in blocks) <= 20_000


def test_a_block_that_is_being_written_is_not_removed(tmp_path):
    folder = tmp_path / "set" / "0"
    folder.mkdir(parents=True)
    for name in ("0", "1", "tmpabc"):
        (folder / name).write_bytes(bytes(100))
    shard_cache.make_room(tmp_path, 0)
    assert [path.name for path in folder.iterdir()] == ["tmpabc"]


def test_a_full_disk_is_said_once_and_the_images_are_right(server, folder, capsys, monkeypatch, tmp_path):
    make_file = shard_cache.tempfile.NamedTemporaryFile

    def full(**options: Any) -> object:
        if options["dir"].is_relative_to(tmp_path):  # data sets of earlier tests may still fetch blocks ahead
            raise OSError(28, "No space left on device")
        return make_file(**options)

    monkeypatch.setattr(shard_cache.tempfile, "NamedTemporaryFile", full)
    dataset = open_source(f"{server.url}/set")
    for index in range(COUNT):
        assert (dataset.images.read(index) == open_shards(folder).images.read(index)).all()
    assert capsys.readouterr().err.count("shards are not cached on the disk (no space left on device)") == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_for_a_while_is_asked_again(folder, server, status, capsys, monkeypatch):
    monkeypatch.setitem(shard_storage._reported, "until", 0.0)
    dataset = open_source(f"{server.url}/set")
    begun = len(server.requests)
    server.fault = lambda path, number: status if number <= begun + 3 else None
    assert (dataset.images.read(0) == open_shards(folder).images.read(0)).all()
    assert capsys.readouterr().err.count("does not answer") == 1


def test_a_server_that_stays_away_ends_with_a_sentence(server):
    dataset = open_source(f"{server.url}/set")
    server.fault = lambda path, number: 503
    with pytest.raises(DataError, match=r"train-000000.tar cannot be read \(503.*check the connection and start again"):
        dataset.images.read(0)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (403, "may not be read: access is denied .403.; check the credentials in the environment"),
        (401, "may not be read: access is denied"),
        (404, "does not exist; check the path"),
        (400, "cannot be read: the server answers 400; check the URL"),
    ],
)
def test_a_refusal_is_not_repeated(server, status, sentence):
    dataset = open_source(f"{server.url}/set")
    server.fault = lambda path, number: status
    begun = len(server.requests)
    with pytest.raises(DataError, match=sentence):
        dataset.images.content.location.read("train-000000.tar", 0, 10)
    assert len(server.requests) == begun + 1


def test_a_shard_that_is_truncated_on_the_server_is_named(folder, server):
    dataset = open_source(f"{server.url}/set")
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(DataError, match=r"train-000000.tar (ends at byte|cannot be read)"):
        read_all(dataset)


def read_all(dataset: Dataset) -> None:
    for index in range(len(dataset)):
        dataset.images.read(index)


def damage(folder: Path, change: Callable[[Path], object]) -> None:
    change(folder / "train-000001.tar")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700:760] = bytes(60)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "train-000001.tar is missing, and the index names it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "bytes, and its index says .*; copy it again"),
        (flip, "train-000001.tar has another content at byte .* than its index says"),
    ],
)
def test_local_shards_that_do_not_agree_with_their_index(folder, change, sentence):
    damage(folder, change)
    with pytest.raises(DataError, match=sentence):
        read_all(open_shards(folder))


@pytest.mark.skipif(not hasattr(os, "pread"), reason="an open file cannot be removed")
def test_a_shard_stays_open_between_its_images(folder):
    """Opening a file takes as long as reading an image from it; a removed file is still read, as it is open."""
    images = open_shards(folder).images
    assert isinstance(images, ShardImages)
    last = int(np.flatnonzero(images.shard_of == 0)[-1])
    images.read(0)
    expected = open_shards(folder).images.read(last)
    (folder / images.index.shards[0].name).unlink()
    assert (images.read(last) == expected).all()


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "KEPT_OPEN", 3)
    opened: set[int] = set()
    system_open, system_close = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *given: opened.add(found := system_open(*given)) or found)
    monkeypatch.setattr(os, "close", lambda one: opened.discard(one) or system_close(one))
    names = tuple(f"{number}.tar" for number in range(10))
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number] * 4))
    content = shard_cache.LocalBytes(shard_storage.open_location(tmp_path), names)
    assert [content.read(number, 1, 3) for number in range(10)] == [bytes([number] * 2) for number in range(10)]
    assert len(opened) == 3
    del content
    assert not opened


def test_a_damaged_block_in_the_cache_is_fetched_again(server, folder, tmp_path):
    for index in range(COUNT):
        open_source(f"{server.url}/set").images.read(index)
    for path in (tmp_path / "cache" / "svertka" / "shards").glob("*/*/*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert (open_source(f"{server.url}/set").images.read(5) == open_shards(folder).images.read(5)).all()


@pytest.mark.parametrize("content", [b"", b"no index", None])
def test_a_damaged_index_is_refused(folder, content):
    good = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(good[:-40] + bytes(40) if content is None else content)
    with pytest.raises(DataError, match="index.safetensors is damaged; write the shards again"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nosuch://bucket/set", "nosuch:// is not a known scheme; use a folder"),
        ("https://me:secret@example.com/set", "the URL of https://example.com has a user, a password or a query"),
        ("https://example.com/a.tar?X-Amz-Signature=1", "has a user, a password or a query"),
        ("train-{5..1}.tar", "must name 1 to 1,000,000 shards"),
        ("train-{0..99999999}.tar", "must name 1 to 1,000,000 shards"),
        ("train-{abc}.tar", "is not a range; write"),
        ("{a,b}/train.tar", "names shards in 2 folders; keep them in one"),
    ],
)
def test_impossible_sources_are_refused(source, sentence):
    with pytest.raises(UsageError, match=sentence) as error:
        open_source(source)
    assert "secret" not in str(error.value)


def test_options_that_do_not_apply_are_refused(folder):
    with pytest.raises(UsageError, match="are shards, to which columns do not apply"):
        open_source(folder, columns="path=a,label=b")


def test_images_with_16_bits_are_refused(folder):
    import io
    import tarfile

    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(file, "PNG")
    (folder.parent / "deep").mkdir()
    with tarfile.open(folder.parent / "deep" / "x.tar", "w") as archive:
        for name, content in (("a.png", file.getvalue()), ("a.cls", b"0")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    with pytest.raises(DataError, match="it has 16 bits per value, and shards hold 8"):
        open_shards(folder.parent / "deep").images.read(0)
