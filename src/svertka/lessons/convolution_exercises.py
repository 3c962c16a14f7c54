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
    packed = torch.tensor([[1, 2, 3, 4, 0, 0, 0, 0, 0]])
    hints = [
        (expected.T, "This is the transposed matrix: an output is a row, a pixel is a column."),
        (
            torch.cat([packed.roll(shift, 1) for shift in range(4)]),
            "The weights 3 and 4 meet the next row of pixels: x has the pixel below a pixel three places later.",
        ),
        (
            torch.stack([expected[0].roll(shift) for shift in range(4)]),
            "The third output is in the next row of the image. Its window begins at pixel 3, not 2.",
        ),
        (
            torch.stack([torch.tensor([4, 3, 0, 2, 1, 0, 0, 0, 0]).roll(shift) for shift in (0, 1, 3, 4)]),
            "It turns the kernel by 180°. Networks lay it on the image as it is.",
        ),
    ]
    return check_array(answer, expected, "The matrix", hints, shows_expected=False)


def check_nonzero(answer: Any) -> str | None:
    """1.3: nonzero entries of the matrix of a 3×3 kernel on 28×28 pixels."""
    hints = {
        28 * 28 * 9.0: "There is a row for each output, and without padding there are fewer outputs than pixels.",
        9.0: "9 is the number of weights. Each of them is in the matrix once for each output.",
        26 * 26.0: "676 is the number of rows. How many entries of a row are not zero?",
        26.0**2 * 28**2: "This is the number of all entries, also of those that are zero.",
        26.0**2 * 28**2 - 26 * 26 * 9: "This is the number of entries that are zero.",
        28.0 * 28: "784 is the number of columns. How many entries of a row are not zero, and how many rows are there?",
        27.0 * 27 * 9: "A kernel of 3 fits at 28 − 3 + 1 = 26 places along an axis.",
        25.0 * 25 * 9: "A kernel of 3 fits at 28 − 3 + 1 = 26 places along an axis.",
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
    ones = kernel.nonzero().tolist()
    if len(ones) != 1:
        return f"A kernel that only moves has one weight that is not zero; this one has {len(ones)}."
    if torch.equal(moved, F.pad(image, (0, 1))[:, 1:]):
        return "It moves the image to the left. A kernel with its 1 at the left reads what lies at the left."
    row, column = ones[0]
    if (row, column) == (1, 1):
        return "The weight in the middle reads the pixel itself, so this kernel does not move the image."
    if row != 1:
        return f"It moves the image {'down' if row == 0 else 'up'}{' and sideways' if column != 1 else ''}."
    return check_array(moved, expected, "The moved image")


EXERCISES = {"1.1": check_convolve, "1.2": check_matrix, "1.3": check_nonzero, "1.4": check_shift}
