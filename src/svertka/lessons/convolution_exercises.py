"""Exercises of the notebook "Convolution as a matrix"."""

from typing import Any

import torch
import torch.nn.functional as F

from svertka.lessons.answer_checks import check_array, check_number, to_values


def check_convolve(answer: Any) -> str | None:
    """1.1: a function (image, kernel) that slides the kernel over the image."""
    if not callable(answer):
        return "A function of an image and a kernel is asked for."
    generator = torch.Generator().manual_seed(0)
    for height, width, rows, columns in ((4, 4, 2, 2), (5, 7, 3, 3), (6, 4, 3, 1)):
        image = torch.randint(0, 10, (height, width), generator=generator).double()
        kernel = torch.randint(-3, 4, (rows, columns), generator=generator).double()
        expected = F.conv2d(image[None, None], kernel[None, None])[0, 0]
        what = f"The result for an image of {height}×{width} and a kernel of {rows}×{columns}"
        result = answer(image, kernel)
        turned = F.conv2d(image[None, None], kernel.flip(0, 1)[None, None])[0, 0]
        hint = "It turns the kernel by 180°, as mathematicians do. Networks lay it on the image as it is."
        if reason := check_array(result, expected, what, [(turned, hint)]):
            return reason
    return None


def check_matrix(answer: Any) -> str | None:
    """1.2: the matrix of the kernel (1 2; 3 4) on an image of 3×3."""
    rows = ([1, 2, 0, 3, 4, 0, 0, 0, 0], [0, 1, 2, 0, 3, 4, 0, 0, 0])
    below = ([0, 0, 0, 1, 2, 0, 3, 4, 0], [0, 0, 0, 0, 1, 2, 0, 3, 4])
    expected = torch.tensor([*rows, *below])
    hint = "This is the transposed matrix: an output is a row, a pixel is a column."
    return check_array(answer, expected, "The matrix", [(expected.T, hint)])


def check_nonzero(answer: Any) -> str | None:
    """1.3: nonzero entries of the matrix of a 3×3 kernel on 28×28 pixels."""
    hints = {
        28 * 28 * 9.0: "There is a row for each output, and without padding there are fewer outputs than pixels.",
        9.0: "9 is the number of weights. Each of them is in the matrix once for each output.",
        26 * 26.0: "676 is the number of rows. How many entries of a row are not zero?",
        26.0**2 * 28**2: "This is the number of all entries, also of those that are zero.",
    }
    return check_number(answer, 26 * 26 * 9, hints)


def check_shift(answer: Any) -> str | None:
    """1.4: a 3×3 kernel that moves the image one pixel to the right, with padding 1."""
    kernel = to_values(answer)
    if kernel is None:
        return "The kernel is not an array of numbers."
    if tuple(kernel.shape) != (3, 3):
        return f"The kernel has the shape {tuple(kernel.shape)}; it should be (3, 3)."
    image = torch.arange(1.0, 26.0, dtype=torch.float64).reshape(5, 5)
    moved = F.conv2d(image[None, None], kernel[None, None], padding=1)[0, 0]
    expected = F.pad(image, (1, 0))[:, :5]
    if torch.equal(moved, F.pad(image, (0, 1))[:, 1:]):
        return "It moves the image to the left. A kernel with its 1 at the left reads what lies at the left."
    return check_array(moved, expected, "The moved image")


EXERCISES = {"1.1": check_convolve, "1.2": check_matrix, "1.3": check_nonzero, "1.4": check_shift}
