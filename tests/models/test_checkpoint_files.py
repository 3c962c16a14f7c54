"""Files as PyTorch and training scripts write them, and hostile files."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import hostile
from svertka.errors import RunError, SvertkaError, UsageError
from svertka.models.checkpoint_files import NAME_PREFIXES, describe_mismatch, read_state_dict
from svertka.models.registry import MODELS


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
        assert same(read_state_dict(path), tensors), path


def averaged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torch.optim.swa_utils.AveragedModel saves them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network.load_state_dict(tensors)
    return dict(AveragedModel(network).state_dict())


def with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


WRAPPED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "lightning.ckpt": (
        lambda t: {"epoch": 1, "state_dict": with_prefix("model.", t), "optimizer_states": [{"state": {}}]},
        "using its entry 'state_dict', removed the prefix 'model.' from its names",
    ),
    "tutorial.pth.tar": (
        lambda t: {
            "epoch": 9,
            "arch": "resnet20",
            "best_acc1": torch.tensor(0.9),
            "state_dict": with_prefix("module.", t),
        },
        "using its entry 'state_dict', removed the prefix 'module.' from its names",
    ),
    "keras.th": (lambda t: {"model_state_dict": t, "loss": 0.1}, "using its entry 'model_state_dict'"),
    "compiled.pt": (lambda t: with_prefix("_orig_mod.", t), "removed the prefix '_orig_mod.' from its names"),
    "both.pt": (lambda t: with_prefix("module._orig_mod.", t), "removed the prefix 'module._orig_mod.' from its names"),
    "swa.pth": (averaged, "removed the prefix 'module.' from its names"),
    "hub.bin": (lambda t: t, ""),
    "NET.PTH": (
        lambda t: {"net": with_prefix("backbone.", t)},
        "using its entry 'net', removed the prefix 'backbone.'",
    ),
    "network.pt": (lambda t: {"network": {"state_dict": t}}, "using its entry 'network', using its entry 'state_dict'"),
    "params.pth": (lambda t: {"params": t, "step": 5}, "using its entry 'params'"),
    "average.pth": (
        lambda t: {"model": {name: tensor + 1 for name, tensor in t.items()}, "ema": with_prefix("module.", t)},
        "using its entry 'ema' (the moving average, which is what such training runs evaluate; not 'model'), removed",
    ),
    "timm.pth": (
        lambda t: {"state_dict": {name: tensor + 1 for name, tensor in t.items()}, "state_dict_ema": t},
        "using its entry 'state_dict_ema' (the moving average, which is what such training runs evaluate; not 'state",
    ),
    "two.pth": (
        lambda t: {"net": {name: tensor + 1 for name, tensor in t.items()}, "state_dict": t},
        "using its entry 'state_dict' (not 'net')",
    ),
    "no average.pth": (lambda t: {"ema": None, "model": t}, "using its entry 'model'"),
}


@pytest.mark.parametrize("name", list(WRAPPED))
def test_checkpoints_of_training_scripts_are_unwrapped_with_a_message(
    tensors: dict[str, torch.Tensor], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped, sentence = WRAPPED[name]
    torch.save(wrapped(tensors), tmp_path / name)
    assert same(read_state_dict(tmp_path / name), tensors)
    said = capsys.readouterr().err
    assert (f"weights={tmp_path / name}: {sentence}" in said) if sentence else not said


def test_safetensors_are_known_by_their_content(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "pytorch_model.bin")
    assert same(read_state_dict(tmp_path / "pytorch_model.bin"), tensors)


def test_no_model_has_names_with_a_removable_prefix() -> None:
    one_of_each = {str(re.match("[a-z]+", name)): model for name, model in MODELS.items()}
    for model in one_of_each.values():
        with torch.device("meta"):
            names = list(model.build().state_dict())
        assert not any(all(name.startswith(prefix) for name in names) for prefix in NAME_PREFIXES), model.name


def odd(kind: str) -> torch.Tensor:
    whole = torch.ones(4, 3)
    match kind:
        case "meta":
            return whole.to("meta")
        case "sparse_coo":
            return whole.to_sparse()
        case "sparse_csr":
            return whole.to_sparse_csr()
        case "quantized":
            return torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8)
        case "nested":
            return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        case "complex":
            return whole.to(torch.complex64)
        case "expanded":
            return torch.ones(1).expand(10**12)
        case _:
            return torch.tensor([1.0, float(kind)])


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested", "ignore:torch.quantize")
@pytest.mark.filterwarnings("ignore:TypedStorage", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("meta", "odd is on meta, without values"),
        ("sparse_coo", "odd is in sparse_coo"),
        ("sparse_csr", "odd is in sparse_csr"),
        ("quantized", "(odd is quantized|would run code|is damaged)"),
        ("nested", "(odd is nested|would run code|is damaged)"),
        ("complex", "odd is complex"),
        ("expanded", "contains tensors of 4,000 GB, far larger than the file"),
        ("nan", r"contains NaN or infinity \(in odd\)"),
        ("inf", r"contains NaN or infinity \(in odd\)"),
    ],
)
def test_unsupported_tensors_are_refused_in_one_sentence(
    tensors: dict[str, torch.Tensor], tmp_path: Path, kind: str, sentence: str
) -> None:
    torch.save({**tensors, "odd": odd(kind)}, tmp_path / "x.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of quantized tensors
        with pytest.raises(UsageError, match=sentence) as caught:
            read_state_dict(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_far_more_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({**tensors, "zeros": torch.zeros(2**25)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as whole, zipfile.ZipFile(tmp_path / "x.pth", "w", 8) as small:
        for one in whole.infolist():
            small.writestr(one.filename, whole.read(one))
    with pytest.raises(UsageError, match="unpacks to 134 MB, which no PyTorch file does"):
        read_state_dict(tmp_path / "x.pth")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "x.pt")
        with pytest.raises(UsageError, match="x.pt is a TorchScript program, not a state_dict"):
            read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, suffix: str) -> None:
    for kind, path in hostile.files(tmp_path / "hostile", suffix).items():
        if kind == "unreadable" and os.geteuid() == 0:
            path.chmod(0o644)
        with pytest.raises((UsageError, RunError), match=re.escape(str(path))) as caught:
            read_state_dict(path)
        assert "\n" not in str(caught.value), kind


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "x.pth", tmp_path / "it ran"
    torch.save({"a": Trap(f"touch '{mark}'")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match=r"x.pth would run code when read \(it asks for posix.system\)") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert mark.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"asks for torch.nn.modules.linear.Linear.*torch.save\(network.state_dict"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"state_dict": {"a": "b"}}, {1: 2}, torch.ones(2)])
def test_content_other_than_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="x.pth contains no state_dict"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["nowhere.pth", "x.txt", "folder.pth"])
def test_missing_files_and_other_suffixes_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UsageError, match="is not a weights file; give a file that ends in .safetensors or .pth or .pt"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, pickle.dumps({"a": 1}, 4), b"PK\x03\x04" + b"\0" * 99])
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UsageError, match=r"x.pth (is damaged or not a PyTorch file|contains no state_dict)") as caught:
        read_state_dict(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_state_dict(tmp_path / "x.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_files_are_read_or_refused(
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
            read_state_dict(path)
        except SvertkaError as error:
            sentences.append(str(error))
    assert len(sentences) > 40
    assert not any("\n" in sentence for sentence in sentences)


def test_a_mismatch_lists_the_first_few_names(tensors: dict[str, torch.Tensor]) -> None:
    assert describe_mismatch(tensors, tensors, frozenset()) is None
    other = {name: tensor for name, tensor in tensors.items() if "weight" not in name}
    other |= {"0.weight": torch.zeros(9, 3, 3, 3), "head.weight": torch.zeros(2)}
    other |= {f"more.{number}": torch.zeros(1) for number in range(3)}
    assert describe_mismatch(tensors, other, frozenset()) == (
        "1 missing: 1.weight; 4 unexpected: head.weight, more.0, more.1 and 1 more; "
        "1 with another shape: 0.weight (9, 3, 3, 3) instead of (4, 3, 3, 3)"
    )
    free = describe_mismatch(tensors, other, frozenset({"0.weight"}))
    assert free == "1 missing: 1.weight; 4 unexpected: head.weight, more.0, more.1 and 1 more"
