"""Exercises of the notebook "Pooling and shifts"."""

from typing import Any

import torch
import torch.nn.functional as F

from svertka.lessons.answer_checks import check_array, check_function, check_number


def check_max_pool(answer: Any) -> str | None:
    """5.1: a function (image, size) that returns the maximum of each tile."""
    if reason := check_function(answer, "an image and a size"):
        return reason
    generator = torch.Generator().manual_seed(0)
    for height, width, size in ((4, 6, 2), (6, 9, 3)):
        image = torch.randint(-9, 10, (height, width), generator=generator).double()
        expected = F.max_pool2d(image[None, None], size)[0, 0]
        what = f"The result for an image of {height}×{width} and tiles of {size}×{size}"
        result = answer(image, size)
        hints = (
            (F.avg_pool2d(image[None, None], size)[0, 0], "It returns the means of the tiles."),
            (
                F.max_pool2d(image[None, None], size, stride=1)[0, 0],
                "The windows overlap. The next tile begins where the last one ends.",
            ),
            (-F.max_pool2d(-image[None, None], size)[0, 0], "It returns the minima of the tiles."),
            (
                image.reshape(height // size, width // size, size * size).amax(2),
                "The pixels of a row stay together here: reshape to (H / size, size, W / size, size) first.",
            ),
        )
        if reason := check_array(result, expected, what, hints):
            return reason
    return None


def check_overlapping_gradient(answer: Any) -> str | None:
    """5.2: the gradient of overlapping 3×3 maxima on an image of 4×4."""
    image = torch.tensor([[1.0, 9, 3, 0], [4, 2, 5, 1], [2, 6, 7, 3], [0, 1, 8, 2]], requires_grad=True)
    (expected,) = torch.autograd.grad(F.max_pool2d(image[None, None], 3, stride=1).sum(), image)
    hints = (
        (
            (expected > 0).float(),
            "The right pixels. But some are the maximum of two windows, and the gradients of both add up.",
        ),
        (expected * image.detach(), "The gradient of a maximum is 1 for the largest pixel, whatever its value."),
        (
            (expected > 0) * image.detach(),
            "These are the maxima. The gradient of a maximum is 1 for the largest pixel, whatever its value.",
        ),
        (
            [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
            "This is for tiles of 2×2. The four windows of 3×3 overlap: all of them contain the middle of the image.",
        ),
    )
    return check_array(answer, expected, "The gradient", hints, shows_expected=False)


def check_lone_pixel(answer: Any) -> str | None:
    """5.3: the probability that a bright pixel stays in its tile of 3×3."""
    hints = {
        1 / 3: "This is the probability that it leaves its tile. Only from the last column of a tile it does.",
        0.5: "This is right for tiles of 2×2.",
        1.0: "From the last column of a tile, the pixel moves into the next one.",
        4 / 9: "It moves to the right only; the rows do not matter.",
        8 / 9: "All three pixels of the last column leave the tile, not one.",
        1 / 9: "This is the probability of one place in the tile. From how many of the nine does the pixel stay?",
        3 / 4: "The tiles have 3×3 pixels.",
    }
    return check_number(answer, 2 / 3, hints, tolerance=0.01)


def check_moved_stripes(answer: Any) -> str | None:
    """5.4: maxima of the moved stripes."""
    hints = (
        ([0, 1, 0, 1, 0, 1], "This is the result before the shift. Write the moved row down and cut it into pairs."),
        ([1, 0, 1, 0, 1, 0], "The pairs of the moved row are not pure: each has a black and a white pixel."),
        ([0.5] * 6, "These are the means of the pairs. Max-pooling takes the larger."),
        ([0] * 6, "These are the minima of the pairs."),
    )
    return check_array(answer, torch.ones(6), "The pooled row", hints, shows_expected=False)


def check_blind_error(answer: Any) -> str | None:
    """5.5: the error of guessing one of nine places, per cent."""
    hints = {
        100 / 9: "This is the share of right guesses. The error is the rest.",
        50.0: "There are nine places, not two.",
        0.0: "The network gets the same numbers for all nine places, so it can only guess.",
        8 / 9: "This is the share; per cent are asked for.",
        100.0: "A guess is sometimes right.",
        12.5: "A guess is right for one of nine places.",
        87.5: "A guess is right for one of nine places.",
        90.0: "There are nine places, not ten.",
    }
    return check_number(answer, 800 / 9, hints, tolerance=0.01)


EXERCISES = {
    "5.1": check_max_pool, "5.2": check_overlapping_gradient, "5.3": check_lone_pixel, "5.4": check_moved_stripes,
    "5.5": check_blind_error,
}  # fmt: skip
