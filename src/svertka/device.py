"""Where the arithmetic happens: device, threads, precision."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps"; "auto" is the first of cuda, mps, cpu that is here.

    Raises:
        UsageError: no such device on this machine.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in here.items() if present)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: a graphics card for each process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    kind, _, index = name.partition(":")
    if not here.get(kind) or (index and not (index.isdigit() and int(index) < torch.cuda.device_count())):
        present = ", ".join(kind for kind, present in here.items() if present)
        raise UsageError(f"device={name} is not on this machine; use auto or one of: {present}")
    if kind == "cuda":
        torch.backends.cudnn.benchmark = True  # it times its algorithms too; two runs may then differ in the last bits
    return torch.device(name)


def set_threads(count: int | None) -> int:
    """Let PyTorch compute with `count` threads (None: as it chose itself); returns the number in force.

    Raises:
        UsageError: `count` is below 1.
    """
    if count is not None:
        if count < 1:
            raise UsageError(f"threads={count} must be at least 1; leave it out to use every core")
        torch.set_num_threads(count)
    return torch.get_num_threads()


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The precision that suits `device`: bfloat16 products on cuda, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def in_layout(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """`network`, its weights put into the memory order `layout`, in place."""
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def describe(device: torch.device) -> str:
    """One phrase for people: "cpu, 2 threads" or the graphics card's name."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}, bfloat16"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
