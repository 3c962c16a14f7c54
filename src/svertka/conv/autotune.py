"""Which algorithm is fastest for a convolution here: asked, timed once, remembered, explained.

The answer depends on the shape, the pass, the dtype, the memory order, the number of threads and the processor, and
nobody knows it beforehand; so all that can do it are timed when a shape is first met, and the winner is kept on disk.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from svertka.conv import (
    aten,
    fft,
    gemm,
    native,
    native_fft,
    native_winograd,
    native_winograd_bf16,
    space_to_depth,
    upcast,
    winograd,
)
from svertka.conv.autotune_cache import here, remember, remembered
from svertka.conv_geometry import ConvShape
from svertka.device import has_bfloat16
from svertka.errors import UsageError

Pass = Literal["forward", "input_gradient", "weight_gradient"]
PASSES: tuple[Pass, ...] = ("forward", "input_gradient", "weight_gradient")
DTYPES = torch.float32, torch.bfloat16  # in which there is more than PyTorch's own to choose from

GAIN = 0.97  # of PyTorch's own time: what is not faster by so much is within the noise, and not taken
HOPELESS = 2.0  # times the least time so far: not tried again
OVERHEAD = 3e-5  # seconds that a pass takes longer to reach through a function of ours than through PyTorch's own
ROUNDS = 25  # at most, and
LONG_ENOUGH = 0.05  # seconds for all rounds of the fastest
MEMORY = 1 << 30  # bytes that a candidate may need beside input and output to be timed at all


class Algorithm(Protocol):
    """A way to convolve: the three passes, as plain functions of tensors that trust their caller.

    Results and input gradients are in the dtype of `x` or `gradient`. Beside bfloat16, weights and bias may be float32,
    in which they learn under autocast, and their gradients then are.

    `IS_LOCAL`: whether each number of a result or an input gradient depends only on the values that the definition
    multiplies for it, as PyTorch's own do. Others transform whole tiles or pictures: a NaN or an infinite value spoils
    numbers around it that do not read it, and beside a single huge one they lose digits. `is_local` knows the dtype,
    too. `strict`: only local ones.
    """

    IS_LOCAL: bool

    def why_not(self, shape: ConvShape, dtype: torch.dtype) -> str | None:
        """Why it cannot do `shape`, as a phrase, or None."""

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
        """(N, O, H', W') of x (N, C, H, W), weight (O, C / groups, kh, kw) and bias (O)."""

    def input_gradient(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """(N, C, H, W)."""

    def weight_gradient(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """(O, C / groups, kh, kw)."""


ALGORITHMS: dict[str, Algorithm] = {
    "direct": aten,
    "widened": upcast,
    "native_winograd": native_winograd,
    "native_pairs": native_winograd_bf16,
    "native_fft": native_fft,
    "native_phases": space_to_depth,
    "winograd": winograd,
    "fft": fft,
    "gemm": gemm,
}
COMPILED, IN_TENSORS = ("native_winograd", "native_fft", "native_phases"), ("winograd", "fft", "gemm")


@dataclass(frozen=True)
class Trial:
    """How one candidate did: `seconds`, the least of its runs, or why it was not timed; `error`: against float64.

    `error`: the largest difference over the root mean square of the exact result.
    """

    seconds: float | None
    why_not: str | None = None
    error: float | None = None


CHOSEN = "auto", "strict"  # names under which an algorithm is chosen: among all, or among those that are local
Key = tuple[Pass, ConvShape, torch.memory_format, int, torch.dtype, bool]
_chosen: dict[Key, str] = {}  # by this process
_repeated: dict[str, str] = {}  # asked for, by description


def learnt_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights and their gradients for pictures of `dtype`: float32, in which they learn, for bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def is_local(name: str, dtype: torch.dtype) -> bool:
    """Whether the algorithm called `name` is local in `dtype`, as `Algorithm` says."""
    # Of bfloat16 PyTorch's own multiplies pairs: the value beside a window too, by a weight of 0.
    return ALGORITHMS[name].IS_LOCAL and not (name == "direct" and dtype == torch.bfloat16)


def need(name: str, shape: ConvShape, dtype: torch.dtype, *, strict: bool = False) -> None:
    """Nothing, if `name` is "auto" or an algorithm that can do `shape`, and is local if `strict`.

    Raises:
        UsageError: there is no such algorithm, or it cannot.
    """
    if name == "auto":
        return
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise UsageError(f"algorithm={name} is not known; use auto or one of: {', '.join(ALGORITHMS)}")
    reason = ALGORITHMS[name].why_not(shape, dtype)
    if reason:
        raise UsageError(f"algorithm={name} cannot do this convolution: {reason}; use auto")
    if strict and not is_local(name, dtype):
        local = ", ".join(each for each in ALGORITHMS if is_local(each, dtype))
        raise UsageError(f"algorithm={name} lets a NaN spoil results that do not read it; with strict=True use {local}")


def algorithm(name: str, one_pass: Pass, shape: ConvShape, like: Tensor) -> Algorithm:
    """The algorithm called `name`; of "auto" the fastest for this pass over tensors `like` this one.

    Of "strict" the fastest of those that are local.
    """
    if name not in CHOSEN:
        return ALGORITHMS[name]
    if like.device.type != "cpu" or like.dtype not in DTYPES:
        return aten  # second derivatives may come here in other dtypes, for which nothing here is faster
    layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    key = one_pass, shape, layout, torch.get_num_threads(), like.dtype, name == "strict"
    if key not in _chosen:
        _chosen[key] = _known(key) or _measured(key)
    return ALGORITHMS[_chosen[key]]


def choices() -> dict[str, str]:
    """What was chosen in this process so far, by description; for `repeating`."""
    return {_written(key): name for key, name in _chosen.items()}


@contextmanager
def repeating(choices: dict[str, str]) -> Iterator[None]:
    """Choose in the body as when `choices()` was called, however fast the algorithms are here and now."""
    before, chosen = dict(_repeated), dict(_chosen)
    _repeated.update(choices)
    _chosen.clear()
    try:
        yield
    finally:
        for now, then in ((_repeated, before), (_chosen, chosen)):
            now.clear()
            now.update(then)  # type: ignore[arg-type]


def trials(
    one_pass: Pass,
    shape: ConvShape,
    layout: torch.memory_format,
    dtype: torch.dtype = torch.float32,
    *,
    thorough: bool = False,
    strict: bool = False,
) -> dict[str, Trial]:
    """The time of each algorithm for one pass over tensors of `shape`, in turns.

    `thorough`: also of those that hardly ever win, and each one's error. `strict`: only of those that are local.
    """
    tensors = random_tensors(one_pass, shape, layout, dtype)
    found: dict[str, Trial] = {}
    candidates: list[str] = []
    for name in ALGORITHMS:
        reason = _why_not(name, one_pass, shape, dtype, thorough=thorough, strict=strict)
        if reason:
            found[name] = Trial(None, reason)
        else:
            candidates.append(name)
    best = dict.fromkeys(candidates, float("inf"))
    with torch.inference_mode():
        for rounds in range(1 + ROUNDS):
            for name in candidates:
                best[name] = min(best[name], _run(name, one_pass, tensors, shape))
            # The first round also warms threads, memory and libraries, which takes some milliseconds.
            limit = max(HOPELESS * min(best.values()), 0 if rounds else LONG_ENOUGH)
            candidates = [name for name in candidates if best[name] <= limit]
            if rounds > 1 and rounds * min(best.values()) > LONG_ENOUGH:
                break
    exact = getattr(aten, one_pass)(*(tensor.double() for tensor in tensors), shape) if thorough else None
    for name, seconds in best.items():
        error = None
        if exact is not None:
            result = getattr(ALGORITHMS[name], one_pass)(*tensors, shape)
            error = float((result.double() - exact).abs().max() / exact.square().mean().sqrt())
        found[name] = Trial(seconds, error=error)
    return {name: found[name] for name in ALGORITHMS}


def winner(tried: dict[str, Trial]) -> str:
    """The fastest of them, or PyTorch's own where none is clearly faster."""
    seconds = {name: trial.seconds for name, trial in tried.items() if trial.seconds is not None}
    fastest, own = min(seconds, key=seconds.__getitem__), "direct" if "direct" in seconds else "widened"
    return fastest if seconds[fastest] + OVERHEAD < GAIN * seconds[own] else own


def explained(layer: str, shape: ConvShape, dtype: torch.dtype) -> list[dict[str, Any]]:
    """For each pass and algorithm `layer`, `pass`, `algorithm`, and what came of timing it now, in channels-last order.

    `seconds`, `gflops` (of the multiplications in the definition), `error` (largest, over the root mean square of the
    exact result) or else `why_not`; `taken`: whether it is what "auto" takes.
    """
    rows = []
    for one_pass in PASSES:
        tried = trials(one_pass, shape, torch.channels_last, dtype, thorough=True)
        best = winner(tried)
        for name, trial in tried.items():
            gflops = None if trial.seconds is None else 2e-9 * shape.multiply_adds / trial.seconds
            rows.append(
                {"layer": layer, "pass": one_pass, "algorithm": name, "gflops": gflops, "taken": name == best}
                | asdict(trial)
            )
    return rows


def _too_large(name: str, shape: ConvShape) -> str | None:
    """Why a candidate would take too much memory to be worth timing."""
    taps = shape.kernel[0] * shape.kernel[1]
    needed = 4 * shape.batch * shape.in_channels * taps * shape.out_height * shape.out_width
    if name == "gemm" and needed > MEMORY:
        return f"its patches would take {needed / (1 << 30):.1f} GiB"
    return None


def _why_not(
    name: str, one_pass: Pass, shape: ConvShape, dtype: torch.dtype, *, thorough: bool = False, strict: bool = False
) -> str | None:
    """Why a candidate is not timed."""
    if strict and not is_local(name, dtype):
        return "a NaN would spoil results that do not read it"
    reason = ALGORITHMS[name].why_not(shape, dtype) or _too_large(name, shape)
    return reason or (None if thorough else _too_slow(name, one_pass, shape, dtype))


def _too_slow(name: str, one_pass: Pass, shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Why a candidate is not expected to win: to time it would take longer than all others together."""
    imitated = not (native.multiplies_bfloat16() if name == "native_pairs" else has_bfloat16())
    if dtype == torch.bfloat16 and name in ("direct", "gemm", "native_pairs") and imitated:
        return "this processor only imitates bfloat16"
    if name in IN_TENSORS and shape.in_channels == shape.groups:
        return "products of one channel each leave nothing to gain"
    if name == "gemm" and one_pass == "forward" and shape.kernel == shape.stride == (1, 1):
        return "PyTorch's own is the same product"
    if name == "fft" and shape.kernel[0] * shape.kernel[1] < native_fft.LEAST_TAPS:
        return f"with fewer than {native_fft.LEAST_TAPS} taps transforms cost more than they save"
    if name in IN_TENSORS and any(ALGORITHMS[kernel].why_not(shape, dtype) is None for kernel in COMPILED):
        return "compiled kernels can do it"
    return None


def _measured(key: Key) -> str:
    one_pass, shape, layout, _, dtype, strict = key
    candidates = [name for name in ALGORITHMS if not _why_not(name, one_pass, shape, dtype, strict=strict)]
    if len(candidates) == 1:
        return candidates[0]
    with torch.random.fork_rng(devices=[]):
        name = winner(trials(one_pass, shape, layout, dtype, strict=strict))
    remember(here(ALGORITHMS), _written(key), name)
    return name


def random_tensors(
    one_pass: Pass, shape: ConvShape, layout: torch.memory_format, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The two tensors that a pass takes, normally distributed, in the memory order `layout`."""
    sizes = {
        "forward": (shape.input, shape.weight),
        "input_gradient": (shape.output, shape.weight),
        "weight_gradient": (shape.output, shape.input),
    }
    # Whatever the user has made PyTorch's default dtype and device.
    drawn = (torch.randn(size, dtype=torch.float32, device="cpu") for size in sizes[one_pass])
    first, second = (tensor.to(memory_format=layout) for tensor in drawn)
    return first.to(dtype), second.to(dtype if one_pass == "weight_gradient" else learnt_in(dtype))


def _run(name: str, one_pass: Pass, tensors: tuple[Tensor, Tensor], shape: ConvShape) -> float:
    began = time.perf_counter()
    getattr(ALGORITHMS[name], one_pass)(*tensors, shape)
    return time.perf_counter() - began


def _written(key: Key) -> str:
    one_pass, shape, layout, threads, dtype, strict = key
    sizes = "×".join(map(str, shape.input)), "×".join(map(str, shape.weight))
    settings = f"stride {shape.stride} padding {shape.padding} dilation {shape.dilation} groups {shape.groups}"
    order = "channels last" if layout == torch.channels_last else "contiguous"
    numbers = "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
    return f"{one_pass} {sizes[0]} by {sizes[1]} {settings}, {order}, {threads} threads{numbers}{', strict' * strict}"


def _known(key: Key) -> str | None:
    written = _written(key)
    name = _repeated.get(written) or remembered(here(ALGORITHMS)).get(written)
    return name if name in ALGORITHMS else None
