"""Several processes that train one network; alone, each function is the obvious no-op.

The processes are those that `torchrun` started: it sets RANK, WORLD_SIZE and the address at which they meet.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from svertka.errors import SvertkaError, TrainingError

T = TypeVar("T")
FAILURE = "svertka/failure"  # under which a process leaves word why it ended, where all of them meet


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
    except Exception as error:
        raise _for_all(error) from error
    finally:
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another process is gone, not that something went wrong in this one."""
    if isinstance(error.__cause__, RuntimeError) and isinstance(error, TrainingError):
        error = error.__cause__
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "nccl", "closed by peer"))
    )


def _for_all(error: Exception) -> Exception:
    """What to raise for an `error` that ended this process.

    Its own is left where the others find it. One that says that another process is gone becomes that one's own.
    """
    store = dist.distributed_c10d._get_default_store()
    if is_lost(error):
        with suppress(RuntimeError):
            if store.check([FAILURE]):  # it leaves word before it goes
                return TrainingError(store.get(FAILURE).decode(errors="replace"))
        return error
    text = " ".join(str(error).split())[:500]
    if not isinstance(error, SvertkaError):
        text = f"{type(error).__name__}: {text}"
    said = f"process {rank()} of {world()} failed: {text}"
    with suppress(RuntimeError):  # the place where they meet may be gone too
        store.set(FAILURE, said)
    if isinstance(error, SvertkaError) and is_first():
        return error
    return type(error)(said) if isinstance(error, SvertkaError) else TrainingError(said)


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def replicated(network: nn.Module) -> nn.Module:
    """`network` such that gradients are means over all processes; it is wrapped anew when other parameters learn."""
    return nn.parallel.DistributedDataParallel(network) if dist.is_initialized() else network


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's buffers of `network`, such as the running statistics of batch norm."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


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
