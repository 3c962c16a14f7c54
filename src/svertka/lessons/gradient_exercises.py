"""Exercises of the notebook "Gradients and transposed convolution"."""

from typing import Any

import torch
import torch.nn.functional as F

from svertka.lessons.answer_checks import check_array, check_function, check_number, check_set


def check_input_gradient(answer: Any) -> str | None:
    """3.1: a function (gradient, kernel) that returns the gradient of the input."""
    if reason := check_function(answer, "a gradient and a kernel"):
        return reason
    generator = torch.Generator().manual_seed(0)
    for height, width, rows, columns in ((6, 6, 3, 3), (7, 5, 2, 4), (5, 6, 3, 1)):
        kernel = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        gradient = torch.randn(height - rows + 1, width - columns + 1, generator=generator, dtype=torch.float64)
        expected = F.conv_transpose2d(gradient[None, None], kernel[None, None])[0, 0]
        what = f"The result for an image of {height}×{width} and a kernel of {rows}×{columns}"
        result = answer(gradient, kernel)
        if (reason := check_array(result, expected, what)) is None:
            continue
        if tuple(getattr(result, "shape", ())) == tuple(gradient.shape):
            return "It has the size of the output. The image was larger: pad the gradient first."
        for other, hint in (
            (
                kernel.flip(0, 1),
                "The kernel lies as in the forward pass. In the row of A.T above it is turned by 180°.",
            ),
            (kernel.flip(0), "Only the columns are turned around. A turn by 180° turns the rows around, too."),
            (kernel.flip(1), "Only the rows are turned around. A turn by 180° turns the columns around, too."),
            (kernel.flip(0, 1).T, "The kernel is transposed. It should be turned by 180°: kernel.flip(0, 1)."),
        ):
            if check_array(result, F.conv_transpose2d(gradient[None, None], other[None, None])[0, 0], what) is None:
                return hint
        shape = height + 2 * (columns - rows), width + 2 * (rows - columns)  # with the paddings of the axes swapped
        if tuple(getattr(result, "shape", ())) == shape:
            return "With kernels that are not square it fails: F.pad takes the last axis, the columns, first."
        return reason
    return None


def check_weight_gradient(answer: Any) -> str | None:
    """3.2: the gradient of nine weights, where each output has the gradient 1."""
    expected = torch.tensor([[16.0, 20.0, 16.0], [20.0, 25.0, 20.0], [16.0, 20.0, 16.0]])
    hints = (
        ([[25.0] * 3] * 3, "There are 25 outputs, but the upper left weight meets the zeros of the padding in 9."),
        ([[9.0] * 3] * 3, "9 is right without padding. Here the middle weight meets each of the 25 pixels."),
    )
    return check_array(answer, expected, "The gradient", hints, shows_expected=False)


def check_best_step_size(answer: Any) -> str | None:
    """3.3: the best step for a linear loss."""
    hints = {
        1e-10: "The smallest step has the largest rounding error.",
        1e-5: "This is good where the loss bends. A sum of outputs does not bend, so only rounding errors remain.",
    }
    return check_number(answer, 1, hints, tolerance=1e-6)


def check_transposed_size(answer: Any) -> str | None:
    """3.4: the output of a transposed convolution of 7 pixels, kernel 5, stride 3, padding 1."""
    hints = {
        23.0: "23 is right without padding. Padding takes pixels away here, on both sides.",
        22.0: "Padding takes pixels away on both sides.",
        25.0: "Padding does not add pixels here, but takes them away: A.T goes from the outputs to the unpadded image.",
        26.0: "The first kernel begins at pixel 0, the last one at 6 · 3 = 18. And padding takes pixels away.",
        35.0: "The kernels overlap: they begin 3 pixels apart.",
        2.0: "This is the size of a convolution. The transposed one goes the other way.",
        1.0: "This is the size of a convolution. The transposed one goes the other way.",
    }
    return check_number(answer, (7 - 1) * 3 + 5 - 2, hints)


def check_kernels_without_checkerboard(answer: Any) -> str | None:
    """3.5: the kernel sizes without checkerboard for stride 3."""
    hints = {
        (4, 6, 8): "These are the even ones, which are right for stride 2.",
        (3,): "With a kernel of 3, nothing overlaps. There are larger kernels that overlap evenly.",
        (6, 9): "With a kernel of 3, nothing overlaps, and each pixel gets one contribution.",
        (3, 5, 7, 9): "With a kernel of 5 and stride 3, some pixels get one contribution and others two along an axis.",
        (4,): "With a kernel of 4 and stride 3, one pixel of three gets two contributions along an axis.",
    }
    return check_set(answer, (3, 6, 9), hints)


EXERCISES = {
    "3.1": check_input_gradient, "3.2": check_weight_gradient, "3.3": check_best_step_size,
    "3.4": check_transposed_size, "3.5": check_kernels_without_checkerboard,
}  # fmt: skip
