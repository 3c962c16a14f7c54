"""Exercises of the notebook "Sliding patches"."""

import math
from typing import Any

import torch
from torch import nn

from svertka.lessons.answer_checks import check_function, check_number, to_number


def check_patch_count(answer: Any) -> str | None:
    """10.1: patches of 224 pixels, 32 apart, in 448×672."""
    hints = {
        98.0: "The patch at the very start counts, too: (448 − 224) / 32 + 1 along an axis.",
        294.0: "The patches lie within the photograph: the last one begins 224 pixels before the end.",
        6.0: "These do not overlap. They are 32 pixels apart.",
        112.0: "The patch at the very start counts along both axes.",
        105.0: "The patch at the very start counts along both axes.",
        23.0: "There are 8 rows of 15 patches each.",
        144.0: "The last patch begins at 448 − 224 and at 672 − 224: (448 − 224) / 32 + 1 along an axis.",
    }
    return check_number(answer, 8 * 15, hints)


def check_as_convolution(answer: Any) -> str | None:
    """10.2: a function (linear, channels, side) that returns a convolution with the same weights."""
    if reason := check_function(answer, "linear, channels and side"):
        return reason
    generator = torch.Generator().manual_seed(0)
    channels, side, outputs = 3, 4, 5
    linear = nn.Linear(channels * side * side, outputs).double()
    maps = torch.randn(2, channels, side, side, generator=generator, dtype=torch.float64)
    result = answer(linear, channels, side)
    if not isinstance(result, nn.Conv2d):
        return f"It returns {type(result).__name__}; an nn.Conv2d is asked for."
    shape = outputs, channels, side, side
    if tuple(result.weight.shape) != shape:
        return f"The weights of the convolution have the shape {tuple(result.weight.shape)}; it should be {shape}."
    with torch.no_grad():
        result = result.double()
        expected = linear(maps.flatten(1))
        found = result(maps)
        if tuple(found.shape) != (2, outputs, 1, 1):
            return (
                f"On maps of {side}×{side} it gives {tuple(found.shape[2:])} positions; it should be one. No padding."
            )
        if torch.allclose(found.flatten(1), expected, atol=1e-4):
            return None
        if torch.allclose(
            found.flatten(1) + linear.bias - (0 if result.bias is None else result.bias), expected, atol=1e-4
        ):
            return "The bias is not the one of the dense layer."
        swapped = linear.weight.reshape(outputs, side, side, channels).permute(0, 3, 1, 2)
        if torch.allclose(result.weight, swapped, atol=1e-4):
            return "The weights are in the order rows, columns, channels. Flattened maps have the channels first."
        if torch.allclose(result.weight.mT, linear.weight.reshape(shape), atol=1e-4):
            return "Rows and columns of the kernel are swapped."
    return "The convolution has the right shape, but gives other numbers. Copy the weights of the dense layer."


def check_shared_work(answer: Any) -> str | None:
    """10.3: the work of 225 patches of 28×28, relative to one pass over 84×84."""
    hints = {
        225.0: "One pass over the large image reads more pixels than one over a patch.",
        9.0: "This is how many patches the large image has side by side, without overlap.",
        15.0: "15 is the number of patches along an axis.",
        4.0: "This is the share of the work that is left, in per cent. How many times less is it?",
        75.0: "The large image has 9 times as many pixels as a patch, not 3.",
    }
    return check_number(answer, 25, hints, tolerance=0.01)


def check_spoiled_rows(answer: Any) -> str | None:
    """10.4: rows that differ after three padded 3×3 convolutions."""
    hints = {
        1.0: "This is right for one convolution. The next one reads the row that is wrong, too.",
        2.0: "This is right for two convolutions.",
        6.0: "Three at the upper edge, and three at the lower.",
        7.0: "7 is the receptive field. It reaches beyond the edge from how many rows?",
        9.0: "Each convolution reads one row beyond the edge, not three.",
        0.0: "A patch is padded with zeros, and the large image has pixels there.",
    }
    return check_number(answer, 3, hints)


def check_power(answer: Any) -> str | None:
    """10.5: the power from which one strong patch outvotes a hundred weak ones."""
    hints = {
        4.0: "For k = 4 it is close: 0.9⁴ + 99 · 0.1⁴ = 0.666 for B, and 100 · 0.3⁴ = 0.81 for A.",
        1.0: "The mean of A is 0.3, that of B is 0.108.",
        2.0: "For k = 2, the sums are 9 for A and 1.8 for B.",
        3.0: "For k = 3, the sums are 2.7 for A and 0.83 for B.",
    }
    value = to_number(answer)
    if value is not None and not value.is_integer() and math.isfinite(value):
        return "A whole number is asked for."
    if value is not None and 5 < value < math.inf:
        return "It is so already before."
    return check_number(answer, 5, hints)


EXERCISES = {
    "10.1": check_patch_count, "10.2": check_as_convolution, "10.3": check_shared_work, "10.4": check_spoiled_rows,
    "10.5": check_power,
}  # fmt: skip
