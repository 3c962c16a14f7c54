"""The check that steps fit the shapes of their values, because native kernels do not check sizes themselves."""

from collections.abc import Mapping

from svertka.compiler.ir import Concatenation, FusedConvolution, Pool, Step, Sum

Sizes = tuple[int, ...]


def check_step_shapes(
    step: Step, shapes: Mapping[int, Sizes], weights: Mapping[str, Sizes], biases: Mapping[str, Sizes]
) -> None:
    """Raise ValueError if the shapes around `step` do not fit. Operations are checked when they have run.

    Args:
        step: any step.
        shapes: value -> shape, for one batch size.
        weights: name -> shape.
        biases: name -> shape.

    Raises:
        ValueError: something does not fit; the message names the step and the shapes.
    """
    if isinstance(step, FusedConvolution):
        bias = None if step.bias is None else biases[step.bias]
        fits = _convolution_fits(step, shapes, weights[step.weight], bias)
    elif isinstance(step, Pool):
        fits = _pool_fits(step, _map(shapes[step.x]), _map(shapes[step.result]))
    elif isinstance(step, Sum):
        fits = all(shapes[value] == shapes[step.result] for value in step.inputs)
    elif isinstance(step, Concatenation):
        fits = _concatenation_fits([shapes[part] for part in step.inputs], shapes[step.result])
    else:
        return
    if not fits:
        given = ", ".join("×".join(map(str, shapes[value])) for value in step.inputs)
        made = "×".join(map(str, shapes[step.result]))
        raise ValueError(f"{type(step).__name__} {step.place} cannot make {made} of {given}")


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
    )


def _pool_fits(step: Pool, x: Sizes, result: Sizes) -> bool:
    settings = (*step.kernel, *step.stride, *step.dilation, *(1 + pad for pad in step.padding))
    if min(settings) < 1 or x[:2] != result[:2]:
        return False
    axes = zip(x[2:], result[2:], step.kernel, step.stride, step.padding, step.dilation, strict=True)
    # Each window begins in the map or the padding before it; the last does not extend beyond the padding and stride.
    return all(
        (made - 1) * stride - pad < size and (made - 1) * stride + dilation * (taps - 1) < size + 2 * pad + stride
        for size, made, taps, stride, pad, dilation in axes
    )


def _concatenation_fits(parts: list[Sizes], result: Sizes) -> bool:
    if not parts or any(len(shape) != 4 for shape in (*parts, result)):
        return False
    beside = {(shape[0], *shape[2:]) for shape in (*parts, result)}
    return len(beside) == 1 and sum(shape[1] for shape in parts) == result[1]
