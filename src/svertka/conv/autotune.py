"""The choice of the fastest convolution algorithm on this machine, timed once for each shape and cached on disk.

The fastest algorithm depends on the shape, the pass, the dtype, the memory order, the number of threads and the CPU,
and cannot be predicted. The first convolution of each shape therefore times all algorithms that support it and writes
the winner to the cache folder. A process spends at most about TOTAL_BUDGET seconds on this; further shapes use the
algorithm of the most similar one, and are timed by later processes. `svertka tune` prints the timings.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil, log, prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from svertka.conv import (
    aten,
    fft,
    gemm,
    native_direct,
    native_fft,
    native_grouped,
    native_support,
    native_winograd,
    native_winograd_bf16,
    space_to_depth,
    upcast,
    winograd,
)
from svertka.conv_shape import ConvShape
from svertka.device import cpu_name, has_bfloat16
from svertka.errors import StorageError, UsageError
from svertka.files import cache_folder, lock_file, read_json, write_json
from svertka.progress import say

Pass = Literal["forward", "input_gradient", "weight_gradient"]
PASSES: tuple[Pass, ...] = ("forward", "input_gradient", "weight_gradient")
DTYPES = torch.float32, torch.bfloat16  # the dtypes with a choice of algorithms

REQUIRED_RATIO = 0.95  # of PyTorch's time; a smaller gain is within the noise
DROP_RATIO = 2.0  # times the best time so far: slower algorithms are not timed again
# Seconds that a pass takes longer in svertka than in PyTorch, because its autograd functions are in Python.
CALL_OVERHEAD: dict[str, float] = {"forward": 5e-5, "input_gradient": 1e-4, "weight_gradient": 1e-4}
MAX_ROUNDS = 25
MAX_REPEATS = 4  # of a run that another program interrupted
TIMING_BUDGET = 0.01  # seconds for all rounds of the fastest algorithm
TOTAL_BUDGET = 2.0  # seconds of a process for all choices
TIMED_FLOPS = 4e8  # with more in a pass, fewer images are timed
TIMED_PIXELS = 400  # of the result, at least: with fewer, preparing the weights decides
DRAWN = 2**16 + 1  # random numbers of a tensor; not a multiple of its sizes
CLEAR_RATIO = 0.75  # of PyTorch's time: a winner by so much is not timed again
MAX_WORKSPACE = 1 << 30  # bytes: an algorithm that needs more beside input and output is not timed

CACHE_FORMAT = 4  # of the cache file; files of another format are ignored
CACHE_FILE = "convolutions.json"  # in the cache folder

# Names in caches and checkpoints of earlier versions, and the current ones.
FORMER_NAMES = {
    "direct": "aten",
    "widened": "upcast",
    "native_pairs": "native_winograd_bf16",
    "native_phases": "space_to_depth",
}


class Algorithm(Protocol):
    """The interface of an algorithm module: three passes that do not check their arguments.

    Results and input gradients have the dtype of `x` or `gradient`. With bfloat16 images, weights and bias may be
    float32, as under autocast; the weight gradient is then float32.

    `IS_LOCAL`: whether each value of a result or an input gradient depends only on the values inside its window, as in
    PyTorch's convolution. Algorithms that transform whole tiles or images are not local: a NaN or an infinite value
    spreads to neighboring results, and a single huge value costs its neighbors precision.
    `is_window_local` also considers the dtype.
    """

    IS_LOCAL: bool

    def why_not(self, shape: ConvShape, dtype: torch.dtype) -> str | None:
        """Return why the algorithm does not support `shape`, as a phrase, or None if it does."""

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
        """Return (N, O, H', W') for x (N, C, H, W), weight (O, C / groups, kh, kw) and bias (O)."""

    def input_gradient(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient with respect to the input, (N, C, H, W)."""

    def weight_gradient(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient with respect to the weights, (O, C / groups, kh, kw)."""


ALGORITHMS: dict[str, Algorithm] = {
    "aten": aten,
    "upcast": upcast,
    "native_winograd": native_winograd,
    "native_winograd_bf16": native_winograd_bf16,
    "native_fft": native_fft,
    "native_grouped": native_grouped,
    "native_direct": native_direct,
    "space_to_depth": space_to_depth,
    "winograd": winograd,
    "fft": fft,
    "gemm": gemm,
}
COMPILED = "native_winograd", "native_fft", "native_grouped", "native_direct", "space_to_depth"
PURE_TORCH = "winograd", "fft", "gemm"


@dataclass(frozen=True)
class AlgorithmTiming:
    """The timing of one algorithm.

    Attributes:
        seconds: The shortest run, or None if the algorithm was not timed.
        why_not: Why it was not timed, or None.
        error: The largest difference from the float64 result, over the root mean square of that result.
    """

    seconds: float | None
    why_not: str | None = None
    error: float | None = None


SELECTORS = "auto", "strict"  # the fastest of all algorithms, or of those that are local
Key = tuple[Pass, ConvShape, torch.memory_format, int, torch.dtype, bool]
_chosen: dict[Key, str] = {}  # by this process
_spent = {"seconds": 0.0}  # by this process on timing
_pinned: dict[str, str] = {}  # by description; see `pin_choices`
# Whether PyTorch's algorithm is chosen for all passes of a call: a layer then runs PyTorch's method without overhead.
calls_left_to_pytorch: dict[tuple[Any, ...], bool] = {}


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of weights and their gradients for images of `dtype`: float32 for bfloat16, else `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def is_window_local(name: str, dtype: torch.dtype) -> bool:
    """Return whether the algorithm called `name` is local in `dtype`; see `Algorithm`."""
    # PyTorch multiplies bfloat16 values in pairs, so it also reads the value beside a window, with a weight of 0.
    return ALGORITHMS[name].IS_LOCAL and not (name == "aten" and dtype == torch.bfloat16)


def check_algorithm(name: str, shape: ConvShape, dtype: torch.dtype, *, strict: bool = False) -> None:
    """Raise UsageError unless `name` is "auto" or an algorithm that supports `shape` (and is local, if `strict`)."""
    if name == "auto":
        return
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise UsageError(f"algorithm={name} is not known; use auto or one of: {', '.join(ALGORITHMS)}")
    reason = ALGORITHMS[name].why_not(shape, dtype)
    if reason:
        raise UsageError(f"algorithm={name} does not support this convolution: {reason}; use auto")
    if strict and not is_window_local(name, dtype):
        local = ", ".join(each for each in ALGORITHMS if is_window_local(each, dtype))
        raise UsageError(
            f"algorithm={name} spreads NaN to results that do not read it; with strict=True use auto or one of: {local}"
        )


def memory_order(*tensors: Tensor) -> torch.memory_format:
    """Return the memory order in which PyTorch convolves `tensors`: channels-last if one of them is."""
    return torch.channels_last if any(map(_is_channels_last, tensors)) else torch.contiguous_format


def _is_channels_last(tensor: Tensor) -> bool:
    """Return whether strides of (N, C, H, W) grow from channels to columns, rows and images, with or without gaps.

    Source: `is_channels_last_strides_2d` in PyTorch's c10/core/MemoryFormat.h.
    """
    sizes, strides = tensor.shape, tensor.stride()
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:  # (N, 1, 1, 1) and vectors are contiguous
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return bool(strides[1])


def select_algorithm(
    name: str, one_pass: Pass, shape: ConvShape, like: Tensor, other: Tensor | None = None
) -> Algorithm:
    """Return the algorithm called `name`; for "auto" or "strict" the fastest one for this pass.

    Args:
        name: A key of ALGORITHMS, "auto" (the fastest of all) or "strict" (the fastest that is local).
        one_pass: The pass to compute.
        shape: The sizes and settings of the convolution.
        like: The first tensor of the pass; its device, dtype and memory order count.
        other: The second tensor of the pass, whose memory order counts, too, or None.
    """
    if name not in SELECTORS:
        return ALGORITHMS[name]
    if like.device.type != "cpu" or like.dtype not in DTYPES:
        return aten  # second derivatives may have other dtypes, for which no algorithm is faster
    layout = memory_order(like) if other is None else memory_order(like, other)
    key = one_pass, shape, layout, torch.get_num_threads(), like.dtype, name == "strict"
    if key not in _chosen:
        _chosen[key] = _look_up(key) or _choose(key)
    return ALGORITHMS[_chosen[key]]


def get_choices_of_process() -> dict[str, str]:
    """Return the algorithms chosen by this process so far, by description of the convolution; see `pin_choices`."""
    return {_describe(key): name for key, name in _chosen.items()}


@contextmanager
def pin_choices(choices: dict[str, str]) -> Iterator[None]:
    """Use `choices` of `get_choices_of_process` in the body, without timing: a resumed training rounds identically."""
    pinned_before, chosen_before = dict(_pinned), dict(_chosen)
    _pinned.update(choices)
    _chosen.clear()
    calls_left_to_pytorch.clear()
    try:
        yield
    finally:
        calls_left_to_pytorch.clear()
        for current, before in ((_pinned, pinned_before), (_chosen, chosen_before)):
            current.clear()
            current.update(before)  # type: ignore[arg-type]


def time_algorithms(
    one_pass: Pass,
    shape: ConvShape,
    layout: torch.memory_format,
    dtype: torch.dtype = torch.float32,
    *,
    thorough: bool = False,
    strict: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, AlgorithmTiming]:
    """Time each algorithm for one pass, in alternating rounds.

    Args:
        one_pass: The pass to time.
        shape: The sizes and settings of the convolution.
        layout: The memory order of the tensors.
        dtype: The dtype of the images.
        thorough: Whether to time algorithms that rarely win, too, and measure the error of each one.
        strict: Whether to time only local algorithms.
        only: The names of the algorithms to time, or None for all.

    Returns:
        An AlgorithmTiming for each algorithm, by name.
    """
    tensors = make_random_tensors(one_pass, shape, layout, dtype)
    found: dict[str, AlgorithmTiming] = {}
    candidates: list[str] = []
    for name in ALGORITHMS:
        reason = _reason_to_skip(name, one_pass, shape, dtype, thorough=thorough, strict=strict)
        if only is not None and name not in only:
            reason = "it was not asked for"
        if reason:
            found[name] = AlgorithmTiming(None, reason)
        else:
            candidates.append(name)
    best = dict.fromkeys(candidates, float("inf"))
    with torch.inference_mode():
        for rounds in range(1 + MAX_ROUNDS):
            for name in candidates:
                for _ in range(MAX_REPEATS):
                    seconds, is_interrupted = _time_once(name, one_pass, tensors, shape, layout)
                    best[name] = min(best[name], seconds)
                    if not is_interrupted or seconds > 10 * TIMING_BUDGET:
                        break
            # The first round also warms up threads, memory and libraries, which takes a few milliseconds.
            limit = max(DROP_RATIO * min(best.values()), 0 if rounds else TIMING_BUDGET)
            candidates = [name for name in candidates if best[name] <= limit]
            if rounds > 1 and rounds * min(best.values()) > TIMING_BUDGET:
                break
    exact = getattr(aten, one_pass)(*(tensor.double() for tensor in tensors), shape) if thorough else None
    for name, seconds in best.items():
        error = None
        if exact is not None:
            result = getattr(ALGORITHMS[name], one_pass)(*tensors, shape)
            error = float((result.double() - exact).abs().max() / exact.square().mean().sqrt())
        found[name] = AlgorithmTiming(seconds, error=error)
    return {name: found[name] for name in ALGORITHMS}


def choose_by_timings(tried: dict[str, AlgorithmTiming], one_pass: Pass = "forward") -> str:
    """Return the fastest algorithm, or PyTorch's if none is clearly faster, including the overhead of `one_pass`."""
    seconds = {name: trial.seconds for name, trial in tried.items() if trial.seconds is not None}
    fastest, own = min(seconds, key=seconds.__getitem__), "aten" if "aten" in seconds else "upcast"
    return fastest if seconds[fastest] + CALL_OVERHEAD[one_pass] < REQUIRED_RATIO * seconds[own] else own


def time_algorithms_for_all_passes(layer: str, shape: ConvShape, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Time all algorithms for all passes of one convolution, in channels-last order, and return a table.

    Returns:
        A row for each pass and algorithm, with `layer`, `pass`, `algorithm`; `seconds`, `gflops` (of the
        multiplications in the definition) and `error` (the largest, over the root mean square of the exact result), or
        `why_not`; `taken`: whether "auto" uses the algorithm.
    """
    rows = []
    for one_pass in PASSES:
        tried = time_algorithms(one_pass, shape, torch.channels_last, dtype, thorough=True)
        best = choose_by_timings(tried, one_pass)
        for name, trial in tried.items():
            gflops = None if trial.seconds is None else 2e-9 * shape.multiply_adds / trial.seconds
            rows.append(
                {"layer": layer, "pass": one_pass, "algorithm": name, "gflops": gflops, "taken": name == best}
                | asdict(trial)
            )
    return rows


def make_random_tensors(
    one_pass: Pass, shape: ConvShape, layout: torch.memory_format, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the two tensors that a pass takes, normally distributed, in the memory order `layout`."""
    sizes = {
        "forward": (shape.input, shape.weight),
        "input_gradient": (shape.output, shape.weight),
        "weight_gradient": (shape.output, shape.input),
    }
    first, second = (_draw(size).to(memory_format=layout) for size in sizes[one_pass])
    return first.to(dtype), second.to(dtype if one_pass == "weight_gradient" else weight_dtype(dtype))


def _draw(size: tuple[int, ...]) -> Tensor:
    """Return random numbers; large tensors repeat them, since drawing them takes longer than a convolution."""
    count = prod(size)
    # dtype and device are given because users change PyTorch's defaults.
    numbers = torch.randn(min(count, DRAWN), dtype=torch.float32, device="cpu")
    return numbers.repeat(ceil(count / DRAWN))[:count].reshape(size) if count else numbers.reshape(size)


def _reason_to_skip(
    name: str, one_pass: Pass, shape: ConvShape, dtype: torch.dtype, *, thorough: bool = False, strict: bool = False
) -> str | None:
    """Return why an algorithm is not timed, or None."""
    if strict and not is_window_local(name, dtype):
        return "it spreads NaN to results that do not read it"
    reason = ALGORITHMS[name].why_not(shape, dtype) or _too_large(name, shape)
    return reason or (None if thorough else _too_slow(name, one_pass, shape, dtype))


def _too_large(name: str, shape: ConvShape) -> str | None:
    """Return why an algorithm needs too much memory to be timed, or None."""
    taps = shape.kernel[0] * shape.kernel[1]
    needed = 4 * shape.batch * shape.in_channels * taps * shape.out_height * shape.out_width
    if name == "gemm" and needed > MAX_WORKSPACE:
        return f"its patches would take {needed / (1 << 30):.1f} GiB"
    return None


def _too_slow(name: str, one_pass: Pass, shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why an algorithm is not expected to win, or None. Timing it would take longer than timing all others."""
    is_emulated = not (native_support.multiplies_bfloat16() if name == "native_winograd_bf16" else has_bfloat16())
    if dtype == torch.bfloat16 and name in ("aten", "gemm", "native_winograd_bf16") and is_emulated:
        return "this CPU emulates bfloat16"
    if name == "native_direct" and one_pass == "input_gradient" and 1 not in (max(shape.stride), max(shape.kernel)):
        return "with a stride, it multiplies zeros"
    if name in PURE_TORCH and shape.in_channels == shape.groups:
        return "depthwise convolutions gain nothing from it"
    if name == "gemm" and one_pass == "forward" and shape.kernel == shape.stride == (1, 1):
        return "aten computes the same product"
    if name == "fft" and shape.kernel[0] * shape.kernel[1] < native_fft.MIN_TAPS:
        return f"with fewer than {native_fft.MIN_TAPS} taps, transforms cost more than they save"
    if name in PURE_TORCH and any(ALGORITHMS[kernel].why_not(shape, dtype) is None for kernel in COMPILED):
        return "a compiled kernel supports this shape"
    return None


def _choose(key: Key) -> str:
    """Return the algorithm for `key`: timed and saved, or without time left that of the most similar shape."""
    one_pass, shape, _, _, dtype, strict = key
    candidates = [name for name in ALGORITHMS if not _reason_to_skip(name, one_pass, shape, dtype, strict=strict)]
    if len(candidates) == 1:
        return candidates[0]
    if _spent["seconds"] >= TOTAL_BUDGET:
        return _find_similar(key) or candidates[0]
    began = time.thread_time()  # on a busy machine, waiting does not count
    name = _time_and_save(key, candidates)
    _spent["seconds"] += time.thread_time() - began
    return name


def _time_and_save(key: Key, candidates: Sequence[str]) -> str:
    one_pass, shape, layout, threads, dtype, strict = key
    shape = _with_fewer_images(shape, threads)
    with torch.random.fork_rng(devices=[]):
        tried = time_algorithms(one_pass, shape, layout, dtype, strict=strict)
        name = choose_by_timings(tried, one_pass)
        own = [each for each in ("aten", "upcast") if each in candidates][:1]
        # Time a close winner a second time, so that another program's load does not choose it.
        if name not in own and not _is_clear(tried, name, *own):
            again = time_algorithms(one_pass, shape, layout, dtype, strict=strict, only=(*own, name))
            name = choose_by_timings(again, one_pass)
    save_choice(describe_timing_environment(ALGORITHMS), _describe(key), name)
    return name


def _is_clear(tried: dict[str, AlgorithmTiming], winner: str, own: str) -> bool:
    fastest, other = tried[winner].seconds, tried[own].seconds
    return fastest is not None and other is not None and fastest < CLEAR_RATIO * other


def _with_fewer_images(shape: ConvShape, threads: int) -> ConvShape:
    """Return `shape` with as many images as have TIMED_FLOPS, on which the order of algorithms hardly depends."""
    least = ceil(TIMED_PIXELS / max(shape.out_height * shape.out_width, 1))
    if threads == 1 and shape.kernel == (1, 1):
        least = max(least, 16)  # with fewer images, PyTorch computes 1×1 kernels in another way
    of_image = 2 * shape.multiply_adds / max(shape.batch, 1)
    return replace(shape, batch=min(shape.batch, max(least, ceil(TIMED_FLOPS / of_image))))


def _find_similar(key: Key) -> str | None:
    """Return the choice for the shape most like that of `key`, with the same kernel, or None if there is none."""

    def kind(other: Key) -> tuple[Any, ...]:
        one_pass, shape, *rest = other
        depth = shape.in_channels // shape.groups
        return one_pass, *rest, shape.kernel, shape.stride, shape.dilation, shape.groups == 1, depth == 1

    def sizes(shape: ConvShape) -> tuple[int, ...]:
        pixels = max(shape.batch, 1) * shape.out_height * shape.out_width
        return shape.in_channels // shape.groups, shape.out_channels, pixels

    def distance(other: Key) -> float:
        # Layers of one network have about as many multiplications, but not as many channels.
        return sum(abs(log(size / own)) for size, own in zip(sizes(other[1]), sizes(shape), strict=True))

    _, shape, _, _, dtype, _ = key
    alike = [other for other in _chosen if kind(other) == kind(key)]
    able = [other for other in alike if ALGORITHMS[_chosen[other]].why_not(shape, dtype) is None]
    return _chosen[min(able, key=distance)] if able else None


def _time_once(
    name: str, one_pass: Pass, tensors: tuple[Tensor, Tensor], shape: ConvShape, layout: torch.memory_format
) -> tuple[float, bool]:
    """Return the seconds of one run, and whether they include time that another program took."""
    # Other programs do not count in the time of a thread, but other threads of this one would have to.
    own_thread = torch.get_num_threads() == 1
    clock = time.thread_time if own_thread else time.perf_counter
    interruptions, began = _count_interruptions(), clock()
    # The operator converts results to the memory order of its tensors.
    getattr(ALGORITHMS[name], one_pass)(*tensors, shape).contiguous(memory_format=layout)
    seconds = clock() - began
    return seconds, not own_thread and _count_interruptions() > interruptions


def _count_interruptions() -> int:
    """Return how often another program took a CPU from a thread of this process, or 0 if the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _describe(key: Key) -> str:
    """Return the description under which caches and checkpoints store the choice for `key`."""
    one_pass, shape, layout, threads, dtype, strict = key
    sizes = "×".join(map(str, shape.input)), "×".join(map(str, shape.weight))
    settings = f"stride {shape.stride} padding {shape.padding} dilation {shape.dilation} groups {shape.groups}"
    order = "channels last" if layout == torch.channels_last else "contiguous"
    numbers = "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
    return f"{one_pass} {sizes[0]} by {sizes[1]} {settings}, {order}, {threads} threads{numbers}{', strict' * strict}"


def _look_up(key: Key) -> str | None:
    """Return the pinned or cached choice for `key`, or None; also None if it needs kernels that are not here."""
    description = _describe(key)
    _, shape, _, _, dtype, _ = key
    name = _pinned.get(description) or load_choices(describe_timing_environment(ALGORITHMS)).get(description)
    return name if name in ALGORITHMS and ALGORITHMS[name].why_not(shape, dtype) is None else None


# The cache on disk: choices by environment, then by description of the convolution.


def describe_timing_environment(names: Iterable[str]) -> str:
    """Return what timings depend on besides the shape: CPU, PyTorch's version, kernels and the algorithms `names`."""
    without = ", without kernels" if native_support.MISSING else ""
    return f"{cpu_name()}, torch {torch.__version__}, algorithms {', '.join(names)}{without}"


def replace_former_algorithm_names(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return `choices` with algorithm names from earlier versions replaced by those of ALGORITHMS."""
    return {str(key): FORMER_NAMES.get(str(name), str(name)) for key, name in choices.items()}


@cache
def load_choices(place: str) -> dict[str, str]:
    """Return the cached choices for the environment `place`, read once per process; `save_choice` adds to them."""
    return _choices_for(place, _read_cache())


def save_choice(place: str, description: str, name: str) -> None:
    """Store one choice in memory and, if the cache can be written, add it to those on disk."""
    load_choices(place)[description] = name
    with suppress(StorageError):  # then the next process times it again
        path = cache_folder() / CACHE_FILE
        with lock_file(path.with_suffix(".lock")):
            everything = _read_cache()
            everything[place] = _choices_for(place, everything) | {description: name}
            write_json(path, {"format": CACHE_FORMAT, "choices": everything})


def _choices_for(place: str, everything: dict[str, Any]) -> dict[str, str]:
    """Return the choices for `place`, including those written by earlier versions under other names."""
    found: dict[str, str] = {}
    for key in sorted(everything, key=place.__eq__):  # `place` itself last, because its choices are newer
        machine, separator, names = key.rpartition(", algorithms ")
        current = ", ".join(FORMER_NAMES.get(name, name) for name in names.split(", "))
        if machine + separator + current == place and isinstance(everything[key], dict):
            found |= replace_former_algorithm_names(everything[key])
    return found


def _read_cache() -> dict[str, Any]:
    """Return all choices on disk by environment; if the file is damaged, warn and return none."""
    try:
        path = cache_folder() / CACHE_FILE
        content: Any = read_json(path)
    except (FileNotFoundError, StorageError):
        return {}
    except (OSError, ValueError):
        content = None
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, dict):
        say(f"{path} is damaged; timing convolutions again")
        return {}
    return choices if content.get("format") == CACHE_FORMAT else {}
