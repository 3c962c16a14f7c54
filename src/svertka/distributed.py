"""Collectives of torch.distributed for several processes that train one network; without a group, no-ops.

`torchrun` starts the processes and sets RANK, WORLD_SIZE and the address of the rendezvous.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from svertka import torch_internals
from svertka.errors import SvertkaError, TrainingError

T = TypeVar("T")
FAILURE = "svertka/failure"  # key of the rendezvous store under which a process writes why it failed


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group of this job during the body: gloo on the CPU, NCCL on cuda.

    With one process, or inside a group, this does nothing.

    Args:
        device: Device that this process trains on.

    Raises:
        SvertkaError: The body failed in this process, or in another one; the message names its rank.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Default arguments of this module hold the group that exists when it is imported, as DistributedDataParallel does.
    # The group would outlive the interpreter, and its threads, which free Python objects, would then abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except Exception as error:
        raise _for_all(error) from error
    finally:
        dist.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Return whether `error` means that another process ended, rather than that this one failed."""
    if isinstance(error.__cause__, RuntimeError) and isinstance(error, TrainingError):
        error = error.__cause__
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "nccl", "closed by peer"))
    )


def _for_all(error: Exception) -> Exception:
    """Return what this process raises for `error`.

    An error of its own is written to the rendezvous store. If another process ended, its error is read from there.
    """
    store = torch_internals.rendezvous_store()
    if store is None:
        return error
    if is_peer_lost(error):
        with suppress(RuntimeError):
            if store.check([FAILURE]):
                return TrainingError(store.get(FAILURE).decode(errors="replace"))
        return error
    text = " ".join(str(error).split())[:500]
    if not isinstance(error, SvertkaError):
        text = f"{type(error).__name__}: {text}"
    said = f"process {rank()} of {world_size()} failed: {text}"
    with suppress(RuntimeError):  # the store may be gone, too
        store.set(FAILURE, said)
    if isinstance(error, SvertkaError) and is_first():
        return error
    return type(error)(said) if isinstance(error, SvertkaError) else TrainingError(said)


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process has rank 0, the one that prints and writes."""
    return rank() == 0


def data_parallel(network: nn.Module, *, bfloat16: bool = False) -> nn.Module:
    """Return `network` with gradients averaged over all processes.

    Call it again after other parameters are unfrozen.

    Args:
        network: The network.
        bfloat16: Whether to round gradients to bfloat16 before they are sent, which halves the traffic.
    """
    if not dist.is_initialized():
        return network
    replica = nn.parallel.DistributedDataParallel(network)
    if bfloat16:
        replica.register_comm_hook(None, _average_in_bfloat16)
    return replica


def _average_in_bfloat16(
    _: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Return a future of the averaged gradients of a bucket: the communication hook of DistributedDataParallel.

    PyTorch's own bf16_compress_hook does this with NCCL only.
    """
    gradients = bucket.buffer()
    rounded = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    sent = dist.all_reduce(rounded, async_op=True)
    assert sent is not None
    averaged: torch.futures.Future[torch.Tensor] = sent.get_future().then(lambda done: gradients.copy_(done.value()[0]))
    return averaged


def without_gradient_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward passes of `network` add to its gradients without averaging them.

    Args:
        network: What `data_parallel` returned.
    """
    return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()


def broadcast_buffers(network: nn.Module) -> None:
    """Copy the buffers of `network`, such as running statistics of batch norm, from rank 0 to all processes."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Wait until every process calls this."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over all processes: same shape, dtype and device."""
    if not dist.is_initialized():
        return values
    # NCCL reduces only tensors on a GPU.
    there = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(there)
    return there.to(values.device)


def all_gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Return `values` (n,) of every process, in the order of their ranks: (world size, n)."""
    if not dist.is_initialized():
        return values[None]
    rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def all_gather(value: T) -> list[T]:
    """Return the `value` of every process, in the order of their ranks. Values are pickled and may differ in size."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return the `value` of rank 0 in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def call_on_first(function: Callable[[], T]) -> T:
    """Call `function` in rank 0 only; return its result, or raise its exception, in every process."""
    if not dist.is_initialized():
        return function()
    result: T | None = None
    fault: Exception | None = None
    if is_first():
        try:
            result = function()
        except Exception as error:
            fault = error
    result, fault = broadcast((result, fault))
    if fault is not None:
        raise fault
    return cast(T, result)
