"""The compiled kernels (`native/`): whether they are here, for which instructions, and the tensors that they take.

This is the only file that imports them; `native_winograd` and others compute with them.
"""

import os

import torch  # before the kernels, so that they find the threads that PyTorch has started
from torch import Tensor

from svertka.errors import UsageError

__all__ = [
    "DTYPES",
    "channels_last",
    "empty",
    "floats",
    "instruction_sets",
    "kernels",
    "multiplies_bfloat16",
    "numbers",
    "poison_scratch",
    "use",
    "used",
    "why_not",
]

DTYPES = torch.float32, torch.bfloat16

MISSING: str | None = None
try:
    import svertka.conv._kernels as kernels  # `from svertka.conv` would not say whether it is missing or broken
except ModuleNotFoundError:
    MISSING = "the package was installed without a C++ compiler, hence without kernels"
except ImportError as error:
    MISSING = f"the compiled kernels cannot be loaded: {error}"


def _compute_alone() -> None:
    """In a process that was forked: GNU's OpenMP has none of its threads here, and whoever asks it for more than one,
    as PyTorch's own operations do, would wait for them forever."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)


def why_not(dtype: torch.dtype = torch.float32) -> str | None:
    """Why no kernel can compute in `dtype`, as a phrase, or None."""
    if MISSING:
        return MISSING
    if dtype not in DTYPES:
        return f"the kernels compute float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


def instruction_sets() -> tuple[str, ...]:
    """Those of "avx512bf16", "avx512", "avx2", "baseline" that were built and that this processor has, best first."""
    return () if MISSING else tuple(kernels.instruction_sets())


def use(instructions: str) -> None:
    """From now on compute with this one of `instruction_sets()` in place of the first; what was packed is void."""
    kernels.use(instructions)


def used() -> str:
    """The one of `instruction_sets()` that is computed with."""
    return kernels.used()


def multiplies_bfloat16() -> bool:
    """Whether that one multiplies bfloat16 numbers; others only imitate it, which takes longer than with float32."""
    return not MISSING and kernels.multiplies_bfloat16()


def poison_scratch(on: bool) -> None:
    """For tests. `on`: scratch memory begins as NaN in every call, so that reading what was not written shows."""
    if not MISSING:
        kernels.poison_scratch(on)


def channels_last(tensor: Tensor) -> Tensor:
    """`tensor` in the order that the kernels read; an address of anything else would end the process."""
    if tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise UsageError(
            f"the kernels compute float32 and bfloat16 on the CPU; this tensor is "
            f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; use algorithm=auto"
        )
    # `resolve_neg`: of a view that PyTorch will negate when it reads it, memory holds the numbers before.
    return tensor.resolve_neg().contiguous(memory_format=torch.channels_last)


def floats(tensor: Tensor) -> Tensor:
    """The same in float32, for kernels that read nothing else."""
    return channels_last(tensor).float()


def numbers(vector: Tensor) -> Tensor:
    """A bias, (O), as kernels read it: float32, side by side."""
    return vector.float().resolve_neg().contiguous()


def empty(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for a result, (N, C, H, W), channels-last."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
