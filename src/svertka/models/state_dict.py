"""The tensors of a network by name, out of files that others wrote; nothing in them is ever run."""

import re
from pathlib import Path
from typing import Any

import torch

from svertka.errors import UsageError
from svertka.tensors import read_tensors

SUFFIXES = (".safetensors", ".pth", ".pt")
WRAPPERS = ("state_dict", "model")  # under which training scripts keep the tensors, beside epochs and optimizers
PARALLEL = "module."  # put before every name by DataParallel and DistributedDataParallel


def read(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a file in one of `SUFFIXES`, on the CPU; also of a training script's checkpoint.

    Raises:
        UsageError: it is no such file, is damaged, or would run code when read.
        RunError: a damaged .safetensors file.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UsageError(f"{path} is not a file of weights; give one that ends in {' or '.join(SUFFIXES)}")
    content: Any = read_tensors(path)[0] if path.suffix == ".safetensors" else _unpickled(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(_is_tensor(item) for item in content.items()):
        raise UsageError(
            f"{path} holds no state_dict, which is a dict of names and tensors; "
            "save one with torch.save(network.state_dict(), …)"
        )
    tensors = dict(content)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


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
        f"{len(some)} {what}: {', '.join(some[:3])}{', …' if len(some) > 3 else ''}"
        for some, what in ((missing, "missing"), (unexpected, "unexpected"), (different, "of another shape"))
        if some
    ]
    return "; ".join(parts) or None


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes at random make PyTorch's reader raise whatever they hit upon
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UsageError(
                f"{path} would run code when read (it asks for {wanted[1]}), which is refused; "
                "have its maker save tensors alone, with torch.save(network.state_dict(), …)"
            ) from error
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UsageError(f"{path} is damaged or no file of PyTorch's ({reason}); replace it by a whole one") from error
