"""What a run remembers of its images: by content, and whole or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from svertka.data.split_manifest import Manifest
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors

DIGESTS = [bytes([number]) * 16 for number in range(8)]
EMPTY = np.zeros(0, np.int64)
PARTS = {"train": np.array([0, 1, 2]), "val": np.array([3]), "test": np.array([4, 5])}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = Manifest.of(DIGESTS, PARTS, frozenset({DIGESTS[6], DIGESTS[4]}))
    manifest.write(tmp_path / "manifest.safetensors")
    assert Manifest.read(tmp_path / "manifest.safetensors") == manifest
    assert (tmp_path / "manifest.safetensors").stat().st_size < 1000
    assert manifest.trained_on == {DIGESTS[i] for i in (0, 1, 2, 4, 6)}


def test_digests_are_written_in_order_with_their_zeros(tmp_path: Path) -> None:
    """So that a manifest has the same bytes whatever the order of the images."""
    digests = [bytes(16), b"a" + bytes(15), b"a" + bytes(14) + b"b", bytes(15) + b"a", b"\xff" * 16, b"a" * 16]
    Manifest.of(digests, {"train": np.array([5, 3, 1, 0, 4, 2]), "val": EMPTY, "test": EMPTY}).write(tmp_path / "m")
    written = read_tensors_and_header(tmp_path / "m")[0]["train"]
    assert [bytes(row) for row in written.numpy()] == sorted(digests)


def test_earlier_weights_count_as_training() -> None:
    manifest = Manifest.of(DIGESTS, PARTS, frozenset({DIGESTS[4], DIGESTS[6]}))
    assert manifest.parts_of(DIGESTS).tolist() == ["train"] * 3 + ["val", "train", "test", "train", ""]
    assert manifest.parts_of([]).shape == (0,)


def test_an_empty_manifest_knows_nothing(tmp_path: Path) -> None:
    empty = Manifest.of([], {part: np.zeros(0, np.int64) for part in PARTS})
    empty.write(tmp_path / "m")
    assert Manifest.read(tmp_path / "m").parts_of(DIGESTS).tolist() == [""] * 8


def test_the_parts_are_found_again_in_another_order() -> None:
    manifest = Manifest.of(DIGESTS, PARTS)
    order = [5, 7, 3, 0, 4, 2, 1]
    named = np.array([""] * len(order), "<U5")
    found = manifest.indices([DIGESTS[i] for i in order], named, np.arange(len(order)))
    assert {part: sorted(order[i] for i in some) for part, some in found.items()} == {
        part: some.tolist() for part, some in PARTS.items()
    }


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_of_copies_alone_stays_out(part: str) -> None:
    """What was drawn in its place is found again where it was, however often it was copied."""
    digests = [bytes([number]) * 16 for number in (*range(10), *range(10), *range(10))]
    parts = np.array(["train"] * 10 + [part] * 20)
    indices = {"train": np.arange(6), "val": np.arange(0), "test": np.arange(0), part: np.arange(6, 10)}
    manifest = Manifest.of(digests, indices)
    found = manifest.indices(digests, parts, np.arange(30))
    assert {name: some.tolist() for name, some in found.items()} == {
        name: some.tolist() for name, some in indices.items()
    }


def test_a_copy_that_the_source_calls_test_stays_out() -> None:
    manifest = Manifest.of(DIGESTS[:6], PARTS)
    digests = [DIGESTS[0], DIGESTS[1], DIGESTS[2], DIGESTS[3], DIGESTS[4], DIGESTS[5], DIGESTS[0], DIGESTS[4]]
    named = np.array(["train"] * 4 + ["test"] * 3 + ["train"], "<U5")
    found = manifest.indices(digests, named, np.arange(8))
    assert {part: some.tolist() for part, some in found.items()} == {"train": [0, 1, 2], "val": [3], "test": [4, 5]}


@pytest.mark.parametrize(
    "tensors", [{}, {"train": torch.zeros(1, 16)}, {"train": torch.zeros(3, 5, dtype=torch.uint8)}]
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "m"
    write_tensors(path, dict.fromkeys(("train", "val", "test", "inherited"), torch.zeros(0)) | tensors)
    with pytest.raises(RunError, match="does not hold the digests of images"):
        Manifest.read(path)
    path.write_bytes(b"no")
    with pytest.raises(RunError, match="is damaged"):
        Manifest.read(path)
