"""Features that machines share through a folder or an object store are computed once, and are those computed alone."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch import nn

from ranks import run_ranks
from svertka.data.augmentation import Flip, PadCrop
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.shard_storage import open_location
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import UsageError
from svertka.training.initial_classifier import describe_ignored_settings
from svertka.training.recipe import Recipe
from svertka.transfer import feature_exchange
from svertka.transfer.feature_cache import cache_on_disk
from svertka.transfer.freeze import FrozenPrefix

COUNT, VARIANTS = 23, 2


class Counting(FrozenPrefix):
    """As `FrozenPrefix`; it counts the images that it is given."""

    seen = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return super().forward(inputs)


def network() -> Counting:
    torch.manual_seed(0)
    return Counting(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())


def loader(*, damaged: int | None = None, **options: Any) -> BatchLoader:
    rows: Any = np.random.default_rng(0).integers(0, 256, (COUNT, 10, 10, 3), np.uint8)
    rows = rows if damaged is None else Damaged(rows, damaged)
    preprocess = Preprocess(size=8, resize=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    augmentations = (PadCrop(), Flip())
    labels, indices = np.arange(COUNT) % 5, np.arange(COUNT)
    return BatchLoader(rows, labels, indices, preprocess, batch_size=5, augmentations=augmentations, **options)


def features(frozen: Counting, location: str | None, **options: Any) -> list[torch.Tensor]:
    """The features of an epoch."""
    digests = [index.to_bytes(16, "big") for index in range(COUNT)]
    shared = None if location is None else open_location(location, is_folder=True)
    batches = cache_on_disk(loader(**options), frozen, (4, 6, 6), digests, variants=VARIANTS, shared=shared)
    return [batch.images for batch in batches.epoch(1)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_exchange, "CHUNK_BYTES", 4 * 4 * 36 * 4)  # four images
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "store"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "features")
    fsspec.filesystem("memory").store.clear()
    return "memory://features"


@pytest.mark.usefixtures("quiet")
def test_another_machine_reads_what_the_first_one_computed(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features(network(), None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    first = network()
    assert all(torch.equal(one, other) for one, other in zip(features(first, location), expected, strict=True))
    assert first.seen == VARIANTS * COUNT
    assert len(open_location(location, is_folder=True).list_names()) == VARIANTS * -(-COUNT // 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    second = network()
    assert all(torch.equal(one, other) for one, other in zip(features(second, location), expected, strict=True))
    assert second.seen == 0


def test_a_damaged_file_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    location = tmp_path / "features"
    expected = features(network(), str(location))
    path = sorted(location.iterdir())[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    frozen = network()
    found = features(frozen, str(location))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert 0 < frozen.seen <= 4
    assert f"{path} cannot be used" in capsys.readouterr().err.replace("\n", "")


class Damaged:
    """Rows of which one cannot be decoded."""

    def __init__(self, rows: np.ndarray, bad: int) -> None:
        self.rows, self.bad = rows, bad

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        if len(places := np.flatnonzero(indices == self.bad)):
            raise UnreadableRowsError(places, [(f"{self.bad}.jpg", "truncated")] * len(places))
        return self.rows[indices]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("bad", [0, 6, 22])
def test_unreadable_images_are_left_out_of_shared_features(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features(network(), None)
    for machine, computed in (("first", VARIANTS * (COUNT - 1)), ("second", 0)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        frozen = network()
        found = features(frozen, str(tmp_path / "features"), damaged=bad)
        assert frozen.seen == computed
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            kept = [place for place in range(len(other)) if 5 * number + place != bad]
            assert torch.equal(one, other[kept])


RANKS = """
import json, os, sys
os.environ["XDG_CACHE_HOME"] = os.path.join(sys.argv[1], sys.argv[2].format(rank=os.environ["RANK"]))
sys.path[:0] = sys.argv[4:]
import torch
import test_feature_exchange as tests
from svertka import distributed
from svertka.transfer import feature_exchange
feature_exchange.CHUNK_BYTES = 4 * 4 * 36 * 4
frozen = tests.network()
with distributed.process_group(torch.device("cpu")):
    found = tests.features(frozen, sys.argv[3] or None, rank=distributed.rank(), world=2)
    alone = [batch.images for batch in tests.loader(rank=distributed.rank(), world=2).epoch(1)]
    print("computed", frozen.seen)
    computed = distributed.all_gather(frozen.seen)
    expected = [tests.network()(images) for images in alone]
    same = all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
    same = distributed.all_gather(same)
    if distributed.is_first():
        json.dump({"computed": computed, "same": same}, open(os.path.join(sys.argv[1], "found.json"), "w"))
"""


@pytest.mark.large
@pytest.mark.parametrize(
    ("caches", "shares", "most"),
    [
        ("cache", False, VARIANTS * COUNT),  # two processes on one machine
        ("cache-{rank}", False, 2 * VARIANTS * COUNT),  # two machines, each for itself
        ("cache-{rank}", True, VARIANTS * COUNT),
        ("cache", True, VARIANTS * COUNT),
    ],
)
def test_two_processes_compute_each_image_once_if_they_can_share_it(
    tmp_path: Path, caches: str, shares: bool, most: int
) -> None:
    location = str(tmp_path / "features") if shares else ""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    run_ranks(RANKS, tmp_path, str(tmp_path), caches, location, *folders)
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(found["computed"]) == most
    assert max(found["computed"]) <= most // 2 + 4
    assert found["same"] == [True, True]


def test_a_location_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a known scheme"):
        open_location("ftpx://bucket/features", is_folder=True)
    (sentence,) = describe_ignored_settings(Recipe(), None, "features/", is_frozen=False)
    assert sentence == "--feature-store changes nothing: no layer is frozen"
    (sentence,) = describe_ignored_settings(Recipe(), None, "features/", is_cached=False)
    assert sentence == "--feature-store changes nothing: features are not stored with --no-cache"
