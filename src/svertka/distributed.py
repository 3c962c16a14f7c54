"""Collectives of torch.distributed for several processes that train one network; without a group, no-ops.

`torchrun` starts the processes and sets RANK, WORLD_SIZE and the address of the rendezvous.
"""

import faulthandler
import gc
import importlib
import os
import platform
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from svertka import torch_internals
from svertka.errors import SvertkaError, TrainingError
from svertka.signals import record_stop

T = TypeVar("T")
# Keys of the rendezvous store, after a prefix that each group has of its own.
FAILURE = "failure"  # under which a process writes why it failed
LOST = "lost"  # under which the first process that misses others writes which
BEAT = "beat"  # under which each process counts its heartbeats
BEAT_SECONDS = 0.5  # between two heartbeats
SOURCE_PLACE = re.compile(r"^\[[^\]]*:\d+\] ")
SILENCE_SECONDS = 3.0  # without a heartbeat, after which a process is lost
LEAVE_SECONDS = 60.0  # in which a process that failed leaves its group, or it is ended


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
        store = _open_store()
        with nullcontext() if store is None else _heartbeat(store):
            try:
                yield
            except Exception as error:
                raise _for_all(error, store) from error
    except BaseException as error:
        # A process that fails must end: the others wait for it until torchrun ends them.
        faulthandler.dump_traceback_later(LEAVE_SECONDS, exit=True, file=sys.__stderr__ or 2)
        _clear_frames(error)
        _leave_group()
        faulthandler.cancel_dump_traceback_later()
        raise
    else:
        _leave_group()


def _leave_group() -> None:
    """Leave the group, of which nothing else may be left but cycles of references.

    The last owner of a group waits for its threads, and those need the lock of the interpreter to free Python objects.
    PyTorch releases the lock meanwhile, but not where DistributedDataParallel is the last owner: in a frame of an
    exception, or in a cycle. Such a process would never end.
    """
    gc.collect()
    dist.destroy_process_group()


def _clear_frames(error: BaseException) -> None:
    """Drop the local variables of the frames that `error`, its causes and the errors before it were raised through."""
    pending, seen = [error], set[int]()
    while pending:
        one = pending.pop()
        if id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += [other for other in (one.__cause__, one.__context__) if other is not None]


def _open_store() -> Any:
    """Return the key-value store of the group; None if PyTorch hides it. All processes must call this."""
    shared = torch_internals.rendezvous_store()
    # torchrun keeps the store when it restarts the processes.
    prefix = broadcast(f"svertka/{uuid.uuid4().hex}")
    return None if shared is None else dist.PrefixStore(prefix, shared)  # type: ignore[attr-defined]


@contextmanager
def _heartbeat(store: Any) -> Iterator[None]:
    """Show to the other processes, during the body, that this one runs, also while it waits for them."""
    stopped = threading.Event()

    def beat() -> None:
        count = 0
        with suppress(RuntimeError):  # the store may be gone
            store.set(f"{BEAT}/{rank()}/host", platform.node())
            while not stopped.wait(BEAT_SECONDS):
                count += 1
                store.set(f"{BEAT}/{rank()}", str(count))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _name_lost(store: Any) -> str:
    """Return which processes have ended, such as "process 1 of 2, on node-b,"; "a process" if that is not known."""
    unknown = "a process"
    if store is None:
        return unknown
    with suppress(RuntimeError):  # the store may be gone, too
        if not store.check([LOST]):
            before = _read_beats(store)
            time.sleep(SILENCE_SECONDS)
            after = _read_beats(store)
            if not store.check([LOST]):  # else those that found it first may have ended meanwhile
                silent = [one for one in range(world_size()) if one != rank() and after[one] == before[one]]
                named = [f"process {one} of {world_size()}, on {_read(store, f'{BEAT}/{one}/host')}," for one in silent]
                store.set(LOST, " and ".join(named) or unknown)
        return _read(store, LOST)
    return unknown


def _read_beats(store: Any) -> list[str]:
    """Return how many heartbeats each process has counted."""
    return [_read(store, f"{BEAT}/{one}") for one in range(world_size())]


def _read(store: Any, key: str) -> str:
    """Return the value of a key; "" if no process has written it."""
    return str(store.get(key).decode(errors="replace")) if store.check([key]) else ""


class PeerLostError(TrainingError):
    """Another process of the group has ended; the message says what can be done, without which process it was."""


def is_peer_lost(error: BaseException) -> bool:
    """Return whether `error` means that another process ended, rather than that this one failed."""
    said = str(error).lower()
    return isinstance(error, dist.DistError | PeerLostError) or (
        isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "nccl", "closed by peer"))
    )


def _for_all(error: Exception, store: Any) -> Exception:
    """Return what this process raises for `error`.

    An error of its own is written to the store of the group. If another process ended, its error is read from there.
    """
    if is_peer_lost(error):
        with suppress(RuntimeError):
            if store is not None and (failure := _read(store, FAILURE)):
                return TrainingError(failure)
        advice = str(error) if isinstance(error, PeerLostError) else "run the same command again"
        reason = _first_sentence(error.__cause__ or error)
        with record_stop():  # torchrun stops the other processes of this machine meanwhile
            return TrainingError(f"{_name_lost(store)} was lost ({reason}); {advice}")
    if store is None:
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


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of the message of an error, without the place in PyTorch's sources and its advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return SOURCE_PLACE.sub("", line).split(". ")[0]


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def job_id() -> str | None:
    """Return the --rdzv-id of torchrun, which is the same after a restart; None if it has none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "", "none") else name


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


def place_among_equals(value: object) -> tuple[int, int]:
    """Return the place of this process among those with the same `value`, from 0, and their number."""
    values = all_gather(value)
    return values[: rank()].count(value), values.count(value)


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


def call_on_all(function: Callable[[], T], kind: type[SvertkaError]) -> T:
    """Call `function` in every process and return its result; if it raises `kind` in one, raise that in all of them."""
    result: T | None = None
    fault: SvertkaError | None = None
    try:
        result = function()
    except kind as error:
        fault = error
    # A collective call: every process must reach it, also after an error.
    faults = [one for one in all_gather(fault and str(fault)) if one]
    if faults:
        raise kind(faults[0]) from fault
    return cast(T, result)
