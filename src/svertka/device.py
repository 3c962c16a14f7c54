"""Device, CPU threads and precision of computations."""

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from svertka.errors import UsageError
from svertka.text_width import shorten

MOST_THREADS = 64  # per core; more only wait for each other
P = ParamSpec("P")
T = TypeVar("T")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that `find_device` returns, and make cuDNN time its algorithms on a GPU.

    This changes a setting of the process; call it in `preserve_process_settings`.

    Raises:
        UsageError: No such device on this machine.
    """
    device = find_device(name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # results of two runs may differ in the last bits
    return device


def find_device(name: str = "auto") -> torch.device:
    """Return the device `name`: "cpu", "cuda", "cuda:1", or "auto" for cuda if available, else cpu.

    Raises:
        UsageError: No such device on this machine.
    """
    # Not mps, which has no float64.
    here = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in here.items() if present)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU per process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    kind, _, index = name.partition(":")
    if not here.get(kind) or (index and not (index.isdigit() and int(index) < torch.cuda.device_count())):
        present = ", ".join(kind for kind, present in here.items() if present)
        raise UsageError(f"device={shorten(name)} is not on this machine; use auto or one of: {present}")
    return torch.device(name)


def network_device(network: nn.Module) -> torch.device | None:
    """Return the device of the parameters of `network`; None without parameters."""
    return next((parameter.device for parameter in network.parameters()), None)


def is_dense_with_values(tensor: torch.Tensor) -> bool:
    """Return whether `tensor` is dense and has values: not sparse, nested, quantized or on the device meta."""
    return not (tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta)


def set_threads(count: int | None) -> int:
    """Set PyTorch's CPU threads to `count`, unless it is None, and return their number.

    Raises:
        UsageError: `count` is below 1, or far more than there are cores.
    """
    if count is not None:
        most = MOST_THREADS * (os.cpu_count() or 1)
        if not 1 <= count <= most:
            raise UsageError(f"threads={count} must be at least 1 and at most {most} here; leave it out for every core")
        torch.set_num_threads(int(count))  # which takes no bool
    return torch.get_num_threads()


@contextmanager
def preserve_process_settings() -> Iterator[None]:
    """Restore settings of the process after the body: PyTorch's threads, cuDNN's benchmark mode, warning filters."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def with_preserved_settings(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate `function` to run in `preserve_process_settings`."""

    @wraps(function)
    def keeping(*arguments: P.args, **options: P.kwargs) -> T:
        with preserve_process_settings():
            return function(*arguments, **options)

    return keeping


def autocast(device: torch.device, *, bfloat16: bool = False) -> AbstractContextManager[Any]:
    """Return the autocast context for `device`: bfloat16 on cuda, and on a CPU if `bfloat16` and it is native there."""
    if device.type == "cuda" or (bfloat16 and device.type == "cpu" and has_bfloat16()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 products (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _SkipNormalOnMeta(TorchFunctionMode):
    """Skips filling meta tensors with normal numbers: they have no values, and PyTorch loads torch._dynamo for it."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor as it is, or the result of `function`."""
        kwargs = kwargs or {}
        if function in (nn.init.normal_, torch.Tensor.normal_):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Build networks on the meta device in the body, without values and without allocating their weights."""
    with torch.device("meta"), _SkipNormalOnMeta():
        yield


def set_memory_format(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Convert the weights of `network` to the memory format `layout`, in place, and return it."""
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def describe_device(device: torch.device, *, bfloat16: bool = False) -> str:
    """Return "cpu, 2 threads" or the name of the GPU, and whether products are in bfloat16."""
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():  # else it is another machine's
        return f"{device}, {torch.cuda.get_device_name(device)}, bfloat16"
    if device.type != "cpu":
        return str(device)
    products = "" if not bfloat16 else ", bfloat16" if has_bfloat16() else ", float32 for want of bfloat16"
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    return f"{device}, {threads}{products}"


def cpu_name() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
