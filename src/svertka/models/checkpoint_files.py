"""Read a state_dict from a checkpoint file of any origin, without running code in it."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svertka.errors import UsageError
from svertka.escaping import join_first, to_printable
from svertka.files import format_bytes
from svertka.progress import say
from svertka.tensor_files import describe_nonfinite, machine_memory, read_tensors_and_header
from svertka.text_width import shorten

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".th", ".bin")
# Keys under which training scripts save the state_dict, beside the epoch and the optimizer; the first that exists is
# used. Scripts that keep an average over the last steps evaluate the average, so its keys come first.
AVERAGE_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "params_ema",
    "ema",
    "swa",
    "averaged_model",
)
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
# Prefixes that wrappers add to every name: DataParallel and AveragedModel, torch.compile, Lightning, training scripts.
NAME_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
AVERAGE_COUNTER = "n_averaged"  # saved by AveragedModel beside the tensors
MAX_NESTING = 5  # levels of dicts around the state_dict
# Tensors may take MAX_EXPANSION times the size of the file, plus EXPANSION_ALLOWANCE bytes. Larger ones are expanded
# from few stored numbers, or a decompression bomb.
MAX_EXPANSION = 4
EXPANSION_ALLOWANCE = 2**26


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the state_dict in a file with one of `SUFFIXES`, on the CPU.

    The file may be a training script's checkpoint: the entry that is used, and a prefix that is removed from all names,
    are printed.

    Raises:
        UsageError: The file does not exist, has another suffix, is damaged, or would run code when read; or its tensors
            are not dense and finite.
        RunError: A .safetensors file is damaged.
    """
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise UsageError(f"{path} is not a weights file; give a file that ends in {' or '.join(SUFFIXES)}")
    found = _Entry(read_tensors_and_header(path)[0] if _is_safetensors(path) else _unpickled(path), [])
    for _ in range(MAX_NESTING):
        found = found.unwrapped() or found
    tensors = found.tensors(path)
    prefix = ""
    while start := next((one for one in NAME_PREFIXES if all(name.startswith(prefix + one) for name in tensors)), None):
        prefix += start
    if prefix:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        found.messages.append(f"removed the prefix {prefix!r} from its names")
    _check_tensors(path, tensors)
    if found.messages:
        say(f"weights={path}: {', '.join(found.messages)}")
    return tensors


@dataclass
class _Entry:
    """The content of a file or of an entry in it, and messages that say how the entry was chosen."""

    content: Any
    messages: list[str]

    def unwrapped(self) -> "_Entry | None":
        """Return the entry of `content` that contains the state_dict; None if `content` is one or there is none."""
        if not isinstance(self.content, dict) or _tensors_in(self.content):
            return None
        candidates = [key for key in (*AVERAGE_KEYS, *STATE_DICT_KEYS) if _may_contain_tensors(self.content.get(key))]
        if not candidates:
            return None
        key, *others = candidates
        reason = "the moving average, which is what such training runs evaluate" if key in AVERAGE_KEYS else ""
        unused = f"not {' and '.join(map(repr, others))}" if others else ""
        details = "; ".join(filter(None, (reason, unused)))
        return _Entry(
            self.content[key], [*self.messages, f"using its entry {key!r}{f' ({details})' if details else ''}"]
        )

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """Return `content` as a state_dict.

        Raises:
            UsageError: `content` is something else.
        """
        tensors = _tensors_in(self.content)
        if tensors:
            return tensors
        keys = ", ".join(to_printable(str(key)[:40]) for key in list(self.content)[:5]) if self._is_dict else ""
        holds = f" (it contains {keys})" if keys else ""
        raise UsageError(
            f"{path} contains no state_dict, a dict of names and tensors{holds}; "
            "save one with torch.save(network.state_dict(), …)"
        )

    @property
    def _is_dict(self) -> bool:
        return isinstance(self.content, dict)


def _tensors_in(content: Any) -> dict[str, torch.Tensor]:
    """Return `content` without AVERAGE_COUNTER if it is a state_dict, else an empty dict."""
    if not isinstance(content, dict):
        return {}
    tensors = {name: tensor for name, tensor in content.items() if name != AVERAGE_COUNTER}
    return tensors if all(map(_is_tensor, tensors.items())) else {}


def _may_contain_tensors(content: Any) -> bool:
    """Return whether `content` is a state_dict, or a dict with an entry that may be or contain one."""
    if not isinstance(content, dict):
        return False
    keys = *AVERAGE_KEYS, *STATE_DICT_KEYS
    return bool(_tensors_in(content)) or any(isinstance(content.get(key), dict) for key in keys)


def _check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError unless all `tensors` are dense, real and finite, on the CPU, and not expanded."""
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
                f"{path} contains an unsupported tensor ({to_printable(name)} is {kind}); save the network's weights "
                "as "
                "dense float32 tensors on the CPU"
            )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_EXPANSION * path.stat().st_size + EXPANSION_ALLOWANCE:
        raise UsageError(
            f"{path} contains tensors of {format_bytes(size)}, far larger than the file; save contiguous tensors"
        )
    bad = describe_nonfinite(tensors)
    if bad:
        raise UsageError(f"{path} contains NaN or infinity (in {to_printable(bad)}); use weights that are finite")


def describe_mismatch(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], any_length: frozenset[str]
) -> str | None:
    """Describe how names, shapes and kinds of numbers of two state_dicts differ; None if they agree.

    The first few tensors of each kind are named.

    `any_length`: names of tensors whose first dimension may differ.
    """

    def shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape[1 if name in any_length else 0 :])

    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    different = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and shape(found, name) != shape(expected, name)
    ]
    # Quantized weights without their scales: as floats they would be other numbers.
    integers = [
        f"{name} ({str(found[name].dtype).removeprefix('torch.')})"
        for name, tensor in expected.items()
        if name in found and tensor.is_floating_point() and not found[name].is_floating_point()
    ]
    parts = [
        f"{len(some)} {what}: {join_first(some)}"
        for some, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (different, "with another shape"),
            (integers, "with integers instead of floats"),
        )
        if some
    ]
    return "; ".join(parts) or None


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _is_safetensors(path: Path) -> bool:
    """Return whether the file has the suffix, or begins like such a file: 8 bytes of length, then a JSON object."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickled(path: Path) -> Any:
    try:
        _refuse_bomb(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused afterwards: quantized, nested
            return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # damaged files make PyTorch's reader raise all kinds of exceptions
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UsageError(
                f"{path} would run code when read (it asks for {shorten(to_printable(wanted[1]))}) and is refused; "
                "use a file saved with torch.save(network.state_dict(), …), which contains tensors only"
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is a TorchScript program, not a state_dict; save its weights with "
                "torch.save(torch.jit.load(…).state_dict(), …)"
            ) from error
        reason = to_printable(" ".join(str(error).split())[:100]) or type(error).__name__
        raise UsageError(
            f"{path} is damaged or not a PyTorch file ({reason}); replace it with an intact copy"
        ) from error


def _refuse_bomb(path: Path) -> None:
    """Raise UsageError if the file is larger than memory, or unpacks to far more than its size."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(one.file_size for one in archive.infolist())
        if size > MAX_EXPANSION * path.stat().st_size + EXPANSION_ALLOWANCE:
            raise UsageError(f"{path} unpacks to {format_bytes(size)}, which no PyTorch file does; replace it")
    if size > machine_memory():
        raise UsageError(f"{path} contains {format_bytes(size)}, more than this machine's memory")
