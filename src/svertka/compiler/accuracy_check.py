"""The check that an optimized network agrees with the original within rounding or, in bfloat16, within fixed limits."""

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svertka.compiler.output_structure import iter_output_tensors
from svertka.compiler.validation import float32_hint
from svertka.errors import UsageError
from svertka.graph.network_copy import copy_network
from svertka.graph.trace_errors import other_inputs_advice
from svertka.pages.number_format import count_with_noun

# Largest float32 error relative to the largest value. The built-in models stay below 1e-5.
TOLERANCE = 1e-3
# Error from float64 that is allowed in a network that amplifies rounding, relative to PyTorch's float32 error.
TIMES = 5
# Noisy copies of the example whose largest float32 error counts, since that of one draw may be small by chance.
NOISY_COPIES = 8
# A channel's error is relative to its largest value, or to this fraction of the largest value of all channels.
LEAST = 0.02
# In bfloat16: root mean square error relative to that of the values, and fraction of images whose class changes.
BF16_TOLERANCE, BF16_OTHER_CLASSES = 0.1, 0.01
INT8_TOLERANCE = 0.25  # the same error with 8-bit layers
# Values of an example are like those of the calibration images if they exceed them by less than this fraction of their
# range, and if the other range is at most so many times as large.
RANGE_SLACK, MAX_RANGE_RATIO = 0.25, 4
# In int8: root mean square error of a channel relative to its standard deviation, checked from MIN_VALUES numbers on.
INT8_CHANNEL_TOLERANCE, MIN_VALUES = 0.5, 16
INT8_OTHER_CLASSES = 0.2  # SqueezeNet changes the class of 7 % of photographs, so that 4 of 32 are no sign of a fault
# A channel is taken to vary by this fraction of its own values, and of the most varying channel, at least.
LEAST_OF_VALUES, LEAST_OF_OTHERS = 0.02, 1e-3
# From so many numbers per image on, they are taken for scores in one unit, of which one may hardly vary.
MIN_SCORES = 100


def measure_error(
    optimized: Callable[[Tensor], Any],
    original: nn.Module,
    example: Tensor,
    sizes: set[int],
    precisions: Container[str],
    known: Sequence[Tensor] | None = None,
) -> float:
    """Return the largest error of `optimized` relative to the largest value of `original`.

    Args:
        optimized: Called with images, (N, C, H, W) float32.
        original: The original network in inference mode; not shared with other users.
        example: Images, (N, C, H, W) float32.
        sizes: Batch sizes to compare besides that of `example`; their images are derived from it, or with "int8" are
            its own.
        precisions: Precisions of the layers of `optimized`, from "fp32", "bf16" and "int8".
        known: What `run_original` returns for `example`, if `optimized` is one of several.

    Raises:
        UsageError: The error is too large, or the original cannot run.
    """
    name, worst = type(original).__name__, 0.0
    for batch_size in (len(example), *sorted(sizes - {len(example)})):
        spread = 0.0 if "int8" in precisions else 0.5  # 8 bits cover what calibration images contain
        x = example.clone() if batch_size == len(example) else make_noisy_copies(example, batch_size, spread)
        expected = run_original(original, x) if known is None or batch_size != len(example) else known
        ours = list(iter_output_tensors(optimized(x)))
        _check_same_kinds(name, ours, expected)
        _check_comparable(name, expected)
        for number, (a, b) in enumerate(zip(ours, expected, strict=True)):
            error = max_relative_error(a, b)
            if "int8" in precisions:
                _check_mean_error("int8", name, a, b, INT8_TOLERANCE)
                if batch_size == len(example):
                    _check_channels(name, a, b)
                    if len(expected) == 1:
                        _check_classes("int8", name, a, b, INT8_OTHER_CLASSES)
            elif "bf16" in precisions:
                _check_mean_error("bfloat16", name, a, b, BF16_TOLERANCE)
                if batch_size == len(example) and len(expected) == 1:
                    _check_classes("bfloat16", name, a, b, BF16_OTHER_CLASSES)
            elif not (of_channel := max_relative_channel_error(a, b)) <= TOLERANCE and not _only_rounds(
                original, x, number, a, b
            ):
                if b.any():
                    difference = (
                        f"the largest difference is {of_channel:.1e} of the largest value of its channel, more than "
                        f"{TOLERANCE:.0e},"
                    )
                else:
                    difference = f"it returns values up to {float(a.abs().amax()):.1e} instead of zeros"
                raise UsageError(
                    f"optimized, {name} computes something else on the example: {difference} for "
                    f"{count_with_noun(batch_size, 'image')}; use the original network"
                )
            worst = max(worst, error)
    return worst


def run_original(original: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """Return the tensors in the output of the original network for images `x`.

    Raises:
        UsageError: It cannot run.
    """
    try:
        return list(iter_output_tensors(original(x.clone())))
    except Exception as reason:  # a network may raise anything
        raise UsageError(_describe_failure(original, len(x), reason)) from reason


def check_int8_error(
    optimized: Callable[[Tensor], Any], original: nn.Module, example: Tensor, calibrated: tuple[float, float]
) -> None:
    """Raise UsageError if an int8 network is far off on `example`, as it is if calibration images are scaled otherwise.

    Args:
        optimized: Called with images, (N, C, H, W) float32.
        original: The original network in inference mode; not shared with other users.
        example: Images, (N, C, H, W) float32.
        calibrated: The smallest and the largest number of the calibration images.
    """
    for a, b in zip(
        iter_output_tensors(optimized(example)), iter_output_tensors(original(example.clone())), strict=True
    ):
        if not b.is_floating_point() or not b.numel():
            continue
        error = _relative_rms(a, b)
        if not error <= INT8_TOLERANCE:
            low, high = (float(one) for one in example.aminmax())
            least, most = calibrated
            slack = RANGE_SLACK * (high - low)
            is_alike = least - slack <= low and high <= most + slack and most - least <= MAX_RANGE_RATIO * (high - low)
            advice = "so use precision='auto', or 'fp32'" if is_alike else "so preprocess both alike"
            raise UsageError(
                f"in int8 {type(original).__name__} is too inaccurate on the example: the error is {error:.1%} of the "
                f"values (root mean square), more than {INT8_TOLERANCE:.0%}; the example has values from {low:.3g} to "
                f"{high:.3g} and the calibration images from {least:.3g} to {most:.3g}, {advice}"
            )


def _only_rounds(original: nn.Module, x: Tensor, number: int, ours: Tensor, theirs: Tensor) -> bool:
    """Return whether output `number` is nearly as close to `original` in float64 as PyTorch's float32 output is.

    PyTorch's error is the largest of those on `x` and on noisy copies of it.
    """
    try:
        twin = copy_network(original).double()

        def exact(images: Tensor) -> Tensor:
            return list(iter_output_tensors(twin(images.double())))[number]

        expected = exact(x)
        error = max_relative_channel_error(ours, expected)
        if error <= TIMES * max_relative_channel_error(theirs, expected) < torch.inf:
            return True
        return any(
            error <= TIMES * max_relative_channel_error(run_original(original, copy)[number], exact(copy)) < torch.inf
            for copy in torch.split(make_noisy_copies(x, NOISY_COPIES * len(x)), len(x))
        )
    except Exception:  # the network may support only float32
        return False


def make_noisy_copies(example: Tensor, batch_size: int, noise_level: float = 0.5) -> Tensor:
    """Return `batch_size` images of `example` with noise, `noise_level` times as large as its numbers vary."""
    chosen = example[torch.arange(batch_size, device="cpu") % len(example)].clone()
    generator = torch.Generator().manual_seed(batch_size)
    spread = float(chosen.std()) if chosen.numel() > 1 else 0.0
    noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float32, device="cpu")
    return chosen + noise * noise_level * (spread or 2.0)


def max_relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the largest value; with non-finite values 0 if equal, otherwise inf."""
    return _relative_error(ours, theirs, lambda values: values.amax())


def max_relative_channel_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the largest value of its channel, or to 2 % of the global one."""

    def scale(values: Tensor) -> Tensor:
        if values.dim() < 2:
            return values.amax()
        others = [dim for dim in range(values.dim()) if dim != 1]
        return torch.maximum(values.amax(others, keepdim=True), LEAST * values.amax())

    return _relative_error(ours, theirs, scale)


def _relative_error(ours: Tensor, theirs: Tensor, scale: Callable[[Tensor], Tensor]) -> float:
    if not theirs.numel():
        return 0.0
    if theirs.is_complex():
        ours, theirs = torch.view_as_real(ours), torch.view_as_real(theirs)
    a, b = ours.detach().double(), theirs.detach().double()
    finite = b.isfinite()
    same = (a == b) | (a.isnan() & b.isnan())
    if not bool((same | finite).all()):
        return torch.inf
    difference, values = (a - b).abs().where(~same, 0), b.abs().where(finite, 0)
    return float((difference / scale(values).clamp(min=1e-30)).amax().nan_to_num(nan=torch.inf))


def _check_same_kinds(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    kinds = [[(tuple(one.shape), one.dtype, one.device) for one in tensors] for tensors in (ours, theirs)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"optimized, {name} returns tensors of other shapes or types, or on other devices; use the original network"
        )


def _check_comparable(name: str, theirs: Sequence[Tensor]) -> None:
    """Raise UsageError if an output contains nothing but NaN and infinite values, so that it cannot be compared."""
    for one in theirs:
        numbers = one.double() if one.is_floating_point() else one  # PyTorch cannot test 8-bit floats
        if one.numel() and not bool(numbers.isfinite().any()):
            raise UsageError(
                f"{name} gives nothing but NaN or infinite values on the example; correct the example or the weights"
            )


def _check_mean_error(precision: str, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Raise UsageError if outputs of a lower precision differ too much."""
    if not theirs.is_floating_point() or not theirs.numel():
        if not torch.equal(ours, theirs):
            raise UsageError(f"in {precision} {name} returns different integers; use precision='fp32'")
        return
    error = _relative_rms(ours, theirs)
    if not bool(theirs.isfinite().all()):
        raise UsageError(
            f"{name} gives NaN or infinite values on the example, so that its error in {precision} cannot be measured; "
            "correct its weights, or use precision='fp32'"
        )
    if not error <= tolerance:
        raise UsageError(
            f"in {precision} {name} is too inaccurate: the error is {error:.1%} of the values (root mean square), more "
            f"than {tolerance:.0%}; use precision='fp32'"
        )


def _relative_rms(ours: Tensor, theirs: Tensor) -> float:
    """Return the root mean square error relative to that of the values."""
    a, b = ours.double(), theirs.double()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30))


def _check_channels(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise UsageError if an output channel, axis 1, differs too much from that of the float network."""
    if not theirs.is_floating_point() or theirs.dim() < 2 or theirs[:, :1].numel() < MIN_VALUES:
        return
    a, b = (one.double().transpose(0, 1).flatten(1) for one in (ours, theirs))  # (C, values)
    deviation, values = b.std(1, correction=0), b.square().mean(1).sqrt()
    is_scores = theirs.dim() == 2 and len(deviation) >= MIN_SCORES
    of_others = deviation.square().mean().sqrt() if is_scores else LEAST_OF_OTHERS * deviation.amax()
    least = torch.maximum(LEAST_OF_VALUES * values, of_others).clamp(min=1e-30)
    errors = (a - b).square().mean(1).sqrt() / torch.maximum(deviation, least)
    worst = int(errors.argmax())
    if not float(errors[worst]) <= INT8_CHANNEL_TOLERANCE:
        raise UsageError(
            f"in int8 {name} is too inaccurate in output channel {worst}: the error (root mean square) is "
            f"{float(errors[worst]):.0%} of the channel's standard deviation over the calibration images, more than "
            f"{INT8_CHANNEL_TOLERANCE:.0%}; use precision='fp32'"
        )


def _check_classes(precision: str, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Raise UsageError unless class scores, (N, K), predict the same classes; other outputs have none."""
    if theirs.is_floating_point() and theirs.dim() == 2 and theirs.shape[1] > 1:
        others = float((ours.argmax(1) != theirs.argmax(1)).double().mean())
        if others > tolerance:
            images = "calibration images" if precision == "int8" else "example's images"
            more = "more calibration images" if precision == "int8" else "an example of more images"
            raise UsageError(
                f"in {precision} {name} gives another class for {others:.1%} of the {images}, more than "
                f"{tolerance:.0%}; use precision='fp32', or {more}"
            )


def suggest_after_failed_capture(original: nn.Module, example: Tensor) -> str:
    """Return what to do about `original`, whose capture failed, as the end of an error message."""
    if other_inputs_advice(original):
        return ""  # which the failure says
    try:
        original(example.clone())
    except Exception:  # a network may raise anything
        return (
            float32_hint(original) or "; it cannot run as it is either: use an example such that network(example) runs"
        )
    return "; write that part with operations of PyTorch on tensors, or optimize the parts before and after"


def _describe_failure(network: nn.Module, batch_size: int, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    return f"{type(network).__name__} cannot run on {batch_size} float32 images itself: {reason}{float32_hint(network)}"
