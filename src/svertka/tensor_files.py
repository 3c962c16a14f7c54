"""Tensors in safetensors files, which execute nothing, with a digest of the bytes and a JSON header."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from svertka.errors import RunError
from svertka.escaping import join_first
from svertka.files import error_reason, open_regular_file, read_regular_file, write_atomic
from svertka.text_width import shorten

# Errors of reading any file as tensors. KeyError: a dtype that PyTorch does not have.
UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    RuntimeError,
    AttributeError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` and the JSON values of `header` to one file, atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    # Clones of strided and shared tensors, because safetensors stores contiguous, separate ones.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # JSON keeps every float exactly (repr round-trips) and NaN as the bare word, which Python reads back.
    text = json.dumps(header or {})
    metadata = {"svertka": text, "blake2b": _digest(whole, text)}
    parts = _sort_metadata(save(whole, metadata))
    write_atomic(path, lambda file: file.writelines(parts))


def read_tensors_and_header(path: Path, remedy: str = "train again") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a file and the header that `write_tensors` put in it ({} for files of other programs).

    Args:
        path: Path of the file.
        remedy: How to make the file again, for error messages.

    Raises:
        RunError: The file is missing, damaged, or not safetensors.
    """
    try:
        # One read: `safe_open` goes back to the path for its tensors, where a training may have put the next file.
        content = read_regular_file(path, machine_memory())
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
        header = json.loads(metadata.get("svertka", "{}"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; copy it back or {remedy}") from error
    except UNREADABLE as error:
        raise unreadable_file_error(path, error, remedy) from error
    if metadata.get("blake2b") != (_digest(tensors, metadata["svertka"]) if "svertka" in metadata else None):
        raise RunError(f"{path} is damaged (its digest does not match its content); copy it again or {remedy}")
    if not isinstance(header, dict):
        raise RunError(f"{path} is damaged (its header is not a JSON object); copy it again or {remedy}")
    return tensors, header


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file by name, read from its header alone.

    Raises:
        RunError: As for `read_tensors_and_header`.
    """
    try:
        with open_regular_file(path, machine_memory()):  # a pipe would block
            pass
        if not _is_text(path):  # safe_open takes no such path
            return {
                name: tuple(tensor.shape) for name, tensor in load(read_regular_file(path, machine_memory())).items()
            }
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; copy it back or train again") from error
    except UNREADABLE as error:
        raise unreadable_file_error(path, error) from error


def unreadable_file_error(path: Path, error: Exception, remedy: str = "train again") -> RunError:
    """Return the error to raise for a file that raises `error` when it is read; `remedy` makes it again."""
    if isinstance(error, PermissionError):
        return RunError(f"{path} cannot be read: {error_reason(error)}; allow this user to read it")
    what = "is damaged or not a safetensors file" if isinstance(error, SafetensorError) else "is damaged"
    return RunError(f"{path} {what} ({_reason(error)}); copy it again or {remedy}")


def describe_nonfinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the names of the first few `tensors` with NaN or infinity as text; None if there are none."""

    def is_finite(tensor: torch.Tensor) -> bool:
        numbers = tensor.detach()
        wide = numbers if numbers.element_size() > 1 else numbers.float()  # PyTorch cannot test 8-bit numbers
        return bool(wide.isfinite().all())

    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not is_finite(tensor)]
    return join_first(bad) or None


def machine_memory() -> int:
    """Return the memory of this machine in bytes, the largest size of a file of tensors."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 2**36


def _sort_metadata(content: bytes) -> list[bytes | memoryview]:
    """Return the parts of a file with its metadata sorted: safetensors writes them in random order.

    The same tensors and header give the same bytes, so that runs can be compared by the hashes of their files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return [len(text).to_bytes(8, "little"), text, memoryview(content)[end:]]


def _is_text(path: Path) -> bool:
    """Return whether the bytes of `path` are UTF-8; file names need not be."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: BaseException) -> str:
    return shorten(" ".join(str(error).split()), 200) or type(error).__name__


def _digest(tensors: Mapping[str, torch.Tensor], header: str) -> str:
    digest = hashlib.blake2b(header.encode(errors="surrogatepass"), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
