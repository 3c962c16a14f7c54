"""The check that steps fit the shapes of their values, which kernels do not check themselves."""

from collections.abc import Mapping

from svertka.compiler.ir import (
    Concatenation,
    Elementwise,
    FusedConvolution,
    Interpolation,
    MatrixProduct,
    Normalization,
    Operand,
    Padding,
    Pool,
    Quantization,
    Reduction,
    Softmax,
    Step,
    TensorStep,
    step_output_numbers,
)
from svertka.graph.operation_and_value_types import Constant

Sizes = tuple[int, ...]
# Combinations that kernels of 8 bits know.
BYTE_COMBINATIONS = {"FIRST", "ADD", "SUBTRACT", "MULTIPLY", "DIVIDE", "MAXIMUM", "MINIMUM"}


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
    elif isinstance(step, TensorStep):

        def shape_of(operand: Operand) -> Sizes:
            if isinstance(operand, Constant):
                return tensors[operand.name]
            return () if operand is None else shapes[operand]

        fits = _tensor_step_fits(step, [shape_of(operand) for operand in step.operands], shapes[step.result])
    else:
        return
    if not fits:
        given = ", ".join("×".join(map(str, shapes[value])) for value in step.inputs)
        made = "×".join(map(str, shapes[step.result]))
        raise ValueError(f"{type(step).__name__} {step.place} cannot make {made} of {given}")


def check_step_quantization(step: Step, quantizations: Mapping[int, Quantization]) -> None:
    """Raise ValueError unless there are kernels for the values of 8 bits that `step` reads and computes.

    Args:
        step: Any step.
        quantizations: Those of the values of 8 bits.
    """
    inputs, results = ([one in quantizations for one in values] for values in (step.inputs, step_output_numbers(step)))
    if isinstance(step, FusedConvolution) and step.weight_scale is not None:
        fits = all(inputs) and step.gate is None
    elif isinstance(step, Elementwise | Concatenation) and not has_int8_kernel(step):
        fits = not any(inputs + results)
    elif isinstance(step, Elementwise):
        fits = True
    elif isinstance(step, Pool | Concatenation) and all(inputs + results):
        shared = {quantizations[one] for one in (*step.inputs, step.result)}
        fits = len(shared) == 1 or (isinstance(step, Pool) and step.kind != "MAXIMUM")
    else:
        fits = not any(inputs + results)
    if not fits:
        raise ValueError(f"{type(step).__name__} {step.place} cannot compute with numbers of 8 bits")


def has_int8_kernel(step: Elementwise | Concatenation) -> bool:
    """Return whether there is a kernel for this step with operands of 8 bits."""
    if isinstance(step, Concatenation):
        return step.axis == 1
    return isinstance(step.x, int) and step.combination in BYTE_COMBINATIONS


def _tensor_step_fits(step: TensorStep, operands: list[Sizes], result: Sizes) -> bool:
    x, *others = operands or [()]
    if isinstance(step, Elementwise):
        repeated = isinstance(step.x, Constant) and step.y is None
        return _broadcasts((x, *others, result) if repeated else (x, *others), result)
    if isinstance(step, Normalization):
        of_channels = [shape for shape, name in zip(others, (step.weight, step.bias), strict=True) if name is not None]
        return _normalization_fits(step, x, result, of_channels)
    if isinstance(step, MatrixProduct):
        (y,) = others
        matrices = min(len(x), len(y)) >= 2 and x[-1] == y[-2] >= 1
        return matrices and _broadcasts((x[:-2], y[:-2]), result[:-2]) and result[-2:] == (x[-2], y[-1])
    if isinstance(step, Softmax):
        return x == result and 0 not in x and 0 <= step.axis < len(x) and _broadcasts((x, *others), result)
    if isinstance(step, Reduction):
        return _reduction_fits(step, x, result)
    if isinstance(step, Interpolation):
        rows, row_weights, columns, column_weights = others
        maps = len(x) == len(result) == 4 and 0 not in x and x[:2] == result[:2]
        tables = [(rows, row_weights, result[2:3]), (columns, column_weights, result[3:])]
        return maps and all(len(a) == 2 and a == b and a[:1] == size and a[1] >= 1 for a, b, size in tables)
    if isinstance(step, Padding):
        sides = list(zip(x, step.before, step.after, strict=False))
        fits = len(x) == len(step.before) == len(step.after) and min((*step.before, *step.after), default=0) >= 0
        return fits and result == tuple(sum(side) for side in sides)
    assert isinstance(step, Concatenation)
    return _concatenation_fits(step.axis, operands, result)


def _reduction_fits(step: Reduction, x: Sizes, result: Sizes) -> bool:
    axes = step.axes
    if 0 in x or not axes or sorted(set(axes)) != list(axes) or not all(0 <= axis < len(x) for axis in axes):
        return False
    kept = [1 if axis in axes else side for axis, side in enumerate(x) if step.keep or axis not in axes]
    return result == tuple(kept)


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


def _concatenation_fits(axis: int, parts: list[Sizes], result: Sizes) -> bool:
    if not parts or not 0 <= axis < len(result) or any(len(shape) != len(result) for shape in parts):
        return False
    beside = {(*shape[:axis], *shape[axis + 1 :]) for shape in (*parts, result)}
    return len(beside) == 1 and sum(shape[axis] for shape in parts) == result[axis]
