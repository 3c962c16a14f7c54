import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svertka.errors import RunError
from svertka.tensor_files import read_tensor_shapes, read_tensors_and_header, write_tensors


def test_tensors_and_header_come_back_exactly(tmp_path: Path) -> None:
    tensors = {
        "weights": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "steps": torch.tensor(7),
        "none": torch.empty(0, 3),
        "half": torch.randn(3).bfloat16(),
    }
    header = {"loss": 0.1 + 0.2, "worst": float("inf"), "name": "naïve"}
    write_tensors(tmp_path / "file", tensors, header)
    back, read = read_tensors_and_header(tmp_path / "file")
    assert read == header
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert read_tensor_shapes(tmp_path / "file") == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_files_of_others_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "file")
    assert read_tensors_and_header(tmp_path / "file")[1] == {}


def test_a_file_that_is_replaced_meanwhile_is_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for step in range(2):
        write_tensors(tmp_path / str(step), {"a": torch.full((1000,), float(step))}, {"step": step})
    replacing = """
import itertools, os
for step in itertools.cycle("01"):
    os.link(step, "next")
    os.replace("next", "file")
"""
    with subprocess.Popen([sys.executable, "-c", replacing], cwd=tmp_path) as process:
        try:
            while not path.exists():
                assert process.poll() is None
            seen = [read_tensors_and_header(path) for _ in range(2000)]
            while len({header["step"] for _, header in seen}) == 1:  # a busy machine may let the other process wait
                assert process.poll() is None
                seen.append(read_tensors_and_header(path))
        finally:
            process.kill()
    assert {header["step"] for _, header in seen} == {0, 1}
    assert all((tensors["a"] == header["step"]).all() for tensors, header in seen)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is missing"):
        read_tensors_and_header(tmp_path / "file")


def test_any_changed_byte_is_noticed(tmp_path: Path, large_count: Callable[[int, int], int]) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"a": torch.randn(16, 16), "b": torch.randn(7)}, {"x": 1})
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(large_count(300, 10_000)):
        mutant = bytearray(whole)
        match random.integers(3):
            case 0:
                mutant[random.integers(len(mutant))] ^= 1 << random.integers(8)
            case 1:
                del mutant[random.integers(len(mutant)) :]
            case 2:
                start = random.integers(len(mutant))
                mutant[start : start + 8] = random.bytes(8)
        path.write_bytes(mutant)
        try:
            tensors, header = read_tensors_and_header(path)
        except RunError:
            continue
        # What is still accepted says what it said before: a bit in the padding, or in the digest's own name.
        assert torch.equal(
            tensors["a"], torch.from_numpy(np.frombuffer(whole[-1052:-28], "<f4").reshape(16, 16).copy())
        )
        assert header in ({"x": 1}, {})


def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    write_tensors(path, {"a": torch.ones(2, 3)})
    assert read_tensor_shapes(path) == {"a": (2, 3)}
    assert read_tensors_and_header(path)[0]["a"].sum() == 6


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for read in (read_tensors_and_header, read_tensor_shapes):
        with pytest.raises(
            RunError, match=r"x\.safetensors cannot be read: permission denied; allow this user"
        ) as caught:
            read(path)
        assert "Errno" not in str(caught.value)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {
        "ü": torch.arange(5.0),
        "a": torch.ones(3, dtype=torch.int8),
        "b": torch.zeros(2, 2, dtype=torch.float64),
    }
    for number in range(16):
        write_tensors(tmp_path / f"{number}.safetensors", tensors, {"name": "é\n\x7f", "step": 3})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    read = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_tensors_and_header(tmp_path / "0.safetensors")[1] == {"name": "é\n\x7f", "step": 3}
