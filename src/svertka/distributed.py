"""Several processes that train one network; alone, each function is the obvious no-op.

The processes are those that `torchrun` started: it sets RANK, WORLD_SIZE and the address at which they meet.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the processes of this job for the body, unless they are joined: gloo on the CPU, NCCL on cuda."""
    if world() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes, same shape, dtype and device; every process gets it."""
    if not dist.is_initialized():
        return values
    # NCCL sums only in a graphics card's memory.
    there = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(there)
    return there.to(values.device)


def of_first(value: float) -> float:
    """The first process's `value`, to all of them."""
    return float(total(torch.tensor(value if is_first() else 0.0, dtype=torch.float64)))


def gathered(value: T) -> list[T]:
    """Every process's `value`, in the order of their ranks; every process gets them all, and waits for them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def told_by_first(ask: Callable[[], T]) -> T:
    """What `ask` returns in the first process, the only one that calls it; what it raises is raised in all of them."""
    if not dist.is_initialized():
        return ask()
    told: T | None = None
    fault: Exception | None = None
    if is_first():
        try:
            told = ask()
        except Exception as error:
            fault = error
    told, fault = gathered((told, fault))[0]
    if fault is not None:
        raise fault
    return cast(T, told)
