"""Files as PyTorch and others write them, and files that lie in wait."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svertka.errors import RunError, SvertkaError, UsageError
from svertka.models.state_dict import misfit, read


class Trap:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return dict(network.state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_every_way_of_saving_tensors_is_read(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", {"format": "pt"})
    torch.save(tensors, tmp_path / "c.pth")
    torch.save(tensors, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}}, tmp_path / "e.pth")
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "f.pth")
    for path in sorted(tmp_path.iterdir()):
        assert same(read(path), tensors), path


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "x.pth", tmp_path / "it ran"
    torch.save({"a": Trap(f"touch '{mark}'")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match=r"x.pth would run code when read \(it asks for posix.system\)") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert mark.exists()


def test_a_whole_network_is_refused_as_code(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"asks for torch.nn.modules.linear.Linear.*torch.save\(network.state_dict"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"state_dict": {"a": "b"}}, {1: 2}, torch.ones(2)])
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="x.pth holds no state_dict"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["nowhere.pth", "x.bin", "folder.pth"])
def test_no_such_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UsageError, match="is not a file of weights; give one that ends in .safetensors or .pth or .pt"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, pickle.dumps({"a": 1}, 4), b"PK\x03\x04" + b"\0" * 99])
def test_other_bytes_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UsageError, match=r"x.pth (is damaged or no file of PyTorch's|holds no state_dict)") as caught:
        read(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_mutated_file_is_refused_or_read(
    tensors: dict[str, torch.Tensor], tmp_path: Path, zipped: bool, large_count: Callable[[int, int], int]
) -> None:
    path = tmp_path / "x.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    sentences = []
    for _ in range(large_count(150, 5_000)):
        mutant = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            mutant[random.integers(len(mutant))] = random.integers(256)
        if random.random() < 0.3:
            del mutant[random.integers(len(mutant)) :]
        path.write_bytes(mutant)
        try:
            read(path)
        except SvertkaError as error:
            sentences.append(str(error))
    assert len(sentences) > 40
    assert not any("\n" in sentence for sentence in sentences)


def test_a_misfit_names_the_first_few(tensors: dict[str, torch.Tensor]) -> None:
    assert misfit(tensors, tensors, frozenset()) is None
    other = {name: tensor for name, tensor in tensors.items() if "weight" not in name}
    other |= {"0.weight": torch.zeros(9, 3, 3, 3), "head.weight": torch.zeros(2)}
    other |= {f"more.{number}": torch.zeros(1) for number in range(3)}
    assert misfit(tensors, other, frozenset()) == (
        "1 missing: 1.weight; 4 unexpected: head.weight, more.0, more.1, …; "
        "1 of another shape: 0.weight (9, 3, 3, 3) in place of (4, 3, 3, 3)"
    )
    free = misfit(tensors, other, frozenset({"0.weight"}))
    assert free == "1 missing: 1.weight; 4 unexpected: head.weight, more.0, more.1, …"
