"""The tensors of a network by name, out of files that others wrote; nothing in them is ever run."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svertka.errors import UsageError
from svertka.files import in_bytes, shortened
from svertka.progress import say
from svertka.quoting import few, printable
from svertka.tensors import memory, not_finite, read_tensors

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".th", ".bin")
# Under which training scripts keep the tensors, beside epochs and optimizers, the first that is there: an average over
# the last steps, which is what those that keep one are judged by, and the weights themselves.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "swa", "averaged_model")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
# Put before every name by wrappers: DataParallel and AveragedModel, torch.compile, Lightning, and training scripts.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
COUNTER = "n_averaged"  # of AveragedModel, beside the tensors
DEEPEST = 5  # wrappers within each other
EXPANDED = 4  # times the file's size that its tensors may take, and
SLACK = 2**26  # bytes; beyond, one number stands for many


def read(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a file in one of `SUFFIXES`, on the CPU; also of a training script's checkpoint.

    What is taken out of it, and which prefix its names lose, is said.

    Raises:
        UsageError: it is no such file, is damaged, or would run code when read; its tensors are no plain finite ones.
        RunError: a damaged .safetensors file.
    """
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise UsageError(f"{path} is not a file of weights; give one that ends in {' or '.join(SUFFIXES)}")
    found = _Found(read_tensors(path)[0] if _is_safetensors(path) else _unpickled(path), [])
    for _ in range(DEEPEST):
        found = found.inside() or found
    tensors = found.tensors(path)
    prefix = ""
    while start := next((one for one in PREFIXES if all(name.startswith(prefix + one) for name in tensors)), None):
        prefix += start
    if prefix:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        found.said.append(f"without the prefix {prefix} of its names")
    _refuse_unusable(path, tensors)
    if found.said:
        say(f"weights={path}: {', '.join(found.said)}")
    return tensors


@dataclass
class _Found:
    """What is in a file, or in part of it, and how that part was chosen."""

    content: Any
    said: list[str]

    def inside(self) -> "_Found | None":
        """The part of it that holds the tensors; None if it holds them itself, or nothing does."""
        if not isinstance(self.content, dict) or _tensors_in(self.content):
            return None
        there = [key for key in (*AVERAGES, *WRAPPERS) if _leads_on(self.content.get(key))]
        if not there:
            return None
        key, *others = there
        reason = "the moving average, which such trainings are judged by" if key in AVERAGES else ""
        rest = f"{' and '.join(map(repr, others))} left out" if others else ""
        why = "; ".join(filter(None, (reason, rest)))
        return _Found(self.content[key], [*self.said, f"taken from its {key!r}{f' ({why})' if why else ''}"])

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """The tensors by name.

        Raises:
            UsageError: it is something else.
        """
        tensors = _tensors_in(self.content)
        if tensors:
            return tensors
        keys = ", ".join(printable(str(key)[:40]) for key in list(self.content)[:5]) if self._is_dict else ""
        holds = f" (it holds {keys})" if keys else ""
        raise UsageError(
            f"{path} holds no state_dict, which is a dict of names and tensors{holds}; "
            "save one with torch.save(network.state_dict(), …)"
        )

    @property
    def _is_dict(self) -> bool:
        return isinstance(self.content, dict)


def _tensors_in(content: Any) -> dict[str, torch.Tensor]:
    """`content` where it is a dict of names and tensors, without the counter of an average; empty elsewhere."""
    if not isinstance(content, dict):
        return {}
    tensors = {name: tensor for name, tensor in content.items() if name != COUNTER}
    return tensors if all(map(_is_tensor, tensors.items())) else {}


def _leads_on(content: Any) -> bool:
    """Whether `content` holds tensors by name, or wraps what may."""
    if not isinstance(content, dict):
        return False
    return bool(_tensors_in(content)) or any(isinstance(content.get(key), dict) for key in (*AVERAGES, *WRAPPERS))


def _refuse_unusable(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError unless all of `tensors` are plain finite numbers."""
    for name, tensor in tensors.items():
        kind = (
            "nested" if tensor.is_nested
            else f"in {tensor.layout}".replace("torch.", "") if tensor.layout != torch.strided
            else "quantized" if tensor.is_quantized
            else f"on {tensor.device}, without values" if tensor.device.type != "cpu"
            else "complex" if tensor.is_complex()
            else None
        )  # fmt: skip
        if kind:
            raise UsageError(
                f"{path} holds tensors that are not plain numbers ({printable(name)} is {kind}); save the weights of "
                "the network in float32, on the CPU"
            )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > EXPANDED * path.stat().st_size + SLACK:
        raise UsageError(f"{path} holds tensors of {in_bytes(size)}, far more than the file; save contiguous ones")
    bad = not_finite(tensors)
    if bad:
        raise UsageError(f"{path} holds NaN or infinity (in {printable(bad)}), with which nothing is predicted")


def misfit(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], any_length: frozenset[str]) -> str | None:
    """How the names and shapes of `found` differ from those `expected`, with the first few of each; None: not at all.

    `any_length`: names whose first axis may have another length.
    """

    def shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape[1 if name in any_length else 0 :])

    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    different = [
        f"{name} {tuple(found[name].shape)} in place of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and shape(found, name) != shape(expected, name)
    ]
    parts = [
        f"{len(some)} {what}: {few(some)}"
        for some, what in ((missing, "missing"), (unexpected, "unexpected"), (different, "of another shape"))
        if some
    ]
    return "; ".join(parts) or None


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _is_safetensors(path: Path) -> bool:
    """Whether it begins as such files do, whatever it is called: the length of a JSON object, and that."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickled(path: Path) -> Any:
    try:
        _refuse_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # bytes at random make PyTorch's reader raise whatever they hit upon
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UsageError(
                f"{path} would run code when read (it asks for {shortened(printable(wanted[1]))}), which is refused; "
                "have its maker save tensors alone, with torch.save(network.state_dict(), …)"
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a program in TorchScript, not weights alone; save those with "
                "torch.save(torch.jit.load(…).state_dict(), …)"
            ) from error
        reason = printable(" ".join(str(error).split())[:100]) or type(error).__name__
        raise UsageError(f"{path} is damaged or no file of PyTorch's ({reason}); replace it by a whole one") from error


def _refuse_bomb(path: Path) -> None:
    """Raise UsageError if the file is larger than the memory, or unpacks to far more than it is."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(one.file_size for one in archive.infolist())
        if size > EXPANDED * path.stat().st_size + SLACK:
            raise UsageError(f"{path} unpacks to {in_bytes(size)}, as no file of PyTorch's does; replace it")
    if size > memory():
        raise UsageError(f"{path} holds {in_bytes(size)}, more than the memory of this machine")
