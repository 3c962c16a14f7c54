"""The check that steps fit the shapes of their values, which kernels do not check themselves."""

from collections.abc import Mapping

from svertka.compiler.ir import (
    Concatenation,
    Elementwise,
    FusedConvolution,
    Normalization,
    Pool,
    Quantization,
    Step,
    step_results,
)
from svertka.graph.captured_operations import Constant

Sizes = tuple[int, ...]


def check_step_shapes(
    step: Step, shapes: Mapping[int, Sizes], weights: Mapping[str, Sizes], tensors: Mapping[str, Sizes]
) -> None:
    """Raise ValueError if shapes of inputs and results of `step` do not fit. Operations are checked after they run.

    Args:
        step: Any step.
        shapes: Shape of each value for one batch size.
        weights: Shapes of the weights of convolutions, by name.
        tensors: Shapes of other tensors, by name.

    Raises:
        ValueError: Something does not fit; the message names the step and the shapes.
    """
    if isinstance(step, FusedConvolution):
        bias = None if step.bias is None else tensors[step.bias]
        fits = _convolution_fits(step, shapes, weights[step.weight], bias)
    elif isinstance(step, Pool):
        fits = _pool_fits(step, _map(shapes[step.x]), _map(shapes[step.result]))
    elif isinstance(step, Elementwise):
        y = tensors[step.y.name] if isinstance(step.y, Constant) else () if step.y is None else shapes[step.y]
        fits = _broadcasts((shapes[step.x], y), shapes[step.result])
    elif isinstance(step, Normalization):
        of_channels = [tensors[name] for name in (step.weight, step.bias) if name is not None]
        fits = _normalization_fits(step, shapes[step.x], shapes[step.result], of_channels)
    elif isinstance(step, Concatenation):
        fits = _concatenation_fits([shapes[part] for part in step.inputs], shapes[step.result])
    else:
        return
    if not fits:
        given = ", ".join("×".join(map(str, shapes[value])) for value in step.inputs)
        made = "×".join(map(str, shapes[step.result]))
        raise ValueError(f"{type(step).__name__} {step.place} cannot make {made} of {given}")


def check_step_quantization(step: Step, quantizations: Mapping[int, Quantization]) -> None:
    """Raise ValueError unless there are kernels for the values of 8 bits that `step` reads and computes.

    Args:
        step: any step.
        quantizations: of the values of 8 bits.
    """
    inputs, results = ([one in quantizations for one in values] for values in (step.inputs, step_results(step)))
    if isinstance(step, FusedConvolution) and step.weight_scale is not None:
        fits = all(inputs) and step.gate is None
    elif isinstance(step, Elementwise):
        fits = True
    elif isinstance(step, Pool | Concatenation) and all(inputs + results):
        shared = {quantizations[one] for one in (*step.inputs, step.result)}
        fits = len(shared) == 1 or (isinstance(step, Pool) and step.kind != "MAXIMUM")
    else:
        fits = not any(inputs + results)
    if not fits:
        raise ValueError(f"{type(step).__name__} {step.place} cannot compute with numbers of 8 bits")


def _broadcasts(operands: tuple[Sizes, ...], result: Sizes) -> bool:
    """Return whether `result` is the shape of the broadcast operands."""
    longest = max(map(len, operands))
    sides = list(zip(*((1,) * (longest - len(shape)) + shape for shape in operands), strict=True))
    fits = all(len({side for side in sizes if side != 1}) <= 1 for sizes in sides)
    return fits and result == tuple(next((side for side in sizes if side != 1), 1) for sizes in sides)


def _normalization_fits(step: Normalization, x: Sizes, result: Sizes, of_channels: list[Sizes]) -> bool:
    if x != result or not x or 0 in x or not step.epsilon >= 0:
        return False
    if step.groups is None:
        return all(shape == x[-1:] for shape in of_channels)
    fits = len(x) == 4 and step.groups >= 1 and x[1] % step.groups == 0
    return fits and all(shape == x[1:2] for shape in of_channels)


def _map(shape: Sizes) -> Sizes:
    """Return (N, C, H, W) for a feature map or for vectors, which are maps of one pixel."""
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(f"there is no map of {'×'.join(map(str, shape))}")
    return (*shape, 1, 1)[:4]


def _convolution_fits(step: FusedConvolution, shapes: Mapping[int, Sizes], weight: Sizes, bias: Sizes | None) -> bool:
    x, result = _map(shapes[step.x]), _map(shapes[step.result])
    settings = (*step.stride, *step.dilation, step.groups, *(1 + pad for pad in step.padding))
    return (
        len(weight) == 4
        and min(*settings, *weight) >= 1
        and x[0] == result[0]
        and x[1] == weight[1] * step.groups
        and result[1] == weight[0]
        and weight[0] % step.groups == 0
        and bias in (None, weight[:1])
        and (step.residual is None or _map(shapes[step.residual]) == result)
        and (step.gate is None or _gate_fits(step, x, _map(shapes[step.gate]), weight))
    )


def _gate_fits(step: FusedConvolution, x: Sizes, gate: Sizes, weight: Sizes) -> bool:
    """Return whether the gate has one factor for each channel of `x`, and the kernel is one that takes a gate."""
    return gate == (*x[:2], 1, 1) and weight[2:] == (1, 1) and step.padding == (0, 0) and step.groups == 1


def _pool_fits(step: Pool, x: Sizes, result: Sizes) -> bool:
    settings = (*step.kernel, *step.stride, *step.dilation, *(1 + pad for pad in step.padding))
    if min(settings) < 1 or x[:2] != result[:2]:
        return False
    axes = zip(x[2:], result[2:], step.kernel, step.stride, step.padding, step.dilation, strict=True)
    # Each window begins in the map or the padding before it, and the last one ends within the padding or the stride.
    return all(
        (made - 1) * stride - pad < size and (made - 1) * stride + dilation * (taps - 1) < size + 2 * pad + stride
        for size, made, taps, stride, pad, dilation in axes
    )


def _concatenation_fits(parts: list[Sizes], result: Sizes) -> bool:
    if not parts or any(len(shape) != 4 for shape in (*parts, result)):
        return False
    beside = {(shape[0], *shape[2:]) for shape in (*parts, result)}
    return len(beside) == 1 and sum(shape[1] for shape in parts) == result[1]
