"""Exercises of the notebook "LeNet on MNIST"."""

from typing import Any

import numpy as np
import torch

from svertka.lessons.answer_checks import check_function, check_number, to_values
from svertka.lessons.lesson_data import load_digits, scan_badly
from svertka.models.lenet import make_class_codes

MIRRORED = "The digits lie right but for a mirror: a turn does not undo a reflection."
TURNED = "The digits lie on their side now. A mirror image along rows or columns does not undo what has happened."
UPSIDE_DOWN = "The digits are still mirrored along a diagonal of the image, now along the other one."


def check_full_connection(answer: Any) -> str | None:
    """6.1: parameters of C3 if each map read all six maps of S2."""
    hints = {
        2400.0: "Each map has a bias, too.",
        1516.0: "This is the number in the table, with LeCun's connections.",
        416.0: "Each of the 16 maps has a kernel for each of the six maps that it reads.",
        156.0: "This is C1.",
        2406.0: "There is a bias for each of the 16 maps that are computed, not for each of the six that are read.",
        16.0 * 6 * 26: "A map has one bias, not one for each map that it reads.",
    }
    return check_number(answer, 16 * (6 * 25 + 1), hints)


def check_dense_layer(answer: Any) -> str | None:
    """6.2: parameters of a dense layer from 32×32 pixels to 120 units."""
    hints = {
        32.0 * 32 * 120: "Each unit has a bias, too.",
        28.0 * 28 * 120: "The padded images have 32×32 pixels, and each unit has a bias.",
        28.0 * 28 * 120 + 120: "The padded images have 32×32 pixels.",
        32.0 * 32 + 120: "Each unit has a weight for each pixel.",
        32.0 * 120: "The images have 32 · 32 pixels.",
        32.0 * 32 * 120 + 1: "Each of the 120 units has a bias.",
        32.0 * 32 * 121: "Each of the 120 units has a bias. These are 1024 biases.",
    }
    return check_number(answer, 32 * 32 * 120 + 120, hints)


def check_score(answer: Any) -> str | None:
    """6.3: the score of class 8 at the code of class 3."""
    codes = make_class_codes(10)
    different = float((codes[3] != codes[8]).sum())
    hints = {
        -different: "Where the codes differ, they are +1 and −1. The square of this difference is not 1.",
        4 * different: "The score is the negative squared distance.",
        different: "This is the number of places where the codes differ.",
        -2 * different: "The distance is squared.",
        2 * different: "The distance is squared, and the score is negative.",
        -((4 * different) ** 0.5): "The score is the squared distance, without the root.",
        0.0: "This is the score of class 3, whose code the output is.",
    }
    return check_number(answer, -4 * different, hints, tolerance=1e-4)


def check_normalization(answer: Any) -> str | None:
    """6.4: mean and std that map 0 and 1 to −0.1 and 1.175."""
    right = [0.1 / 1.275, 1 / 1.275]
    for mistake, hint in (
        (right[::-1], "The mean comes first."),
        ([0.1, 1.275], "With these, 0 becomes −0.08. Solve (0 − mean) / std = −0.1 and (1 − mean) / std = 1.175."),
        ([-0.1, 1.275], "These are the numbers to multiply with and to add. Here one subtracts first, then divides."),
        ([0.1, 1 / 1.275], "The std is right. The mean is subtracted before the division."),
    ):
        if _is_close(answer, mistake):
            return hint
    if _is_close(answer, right):
        return None
    values = to_values(answer)
    if values is None or values.shape != (2,) or not values.isfinite().all() or values[1] == 0:
        return "A list of two numbers is asked for, the mean and the std; the std is not 0."
    mean, std = values.tolist()
    return f"With these, 0 becomes {-mean / std:.3g} and 1 becomes {(1 - mean) / std:.3g}, not −0.1 and 1.175."


def _is_close(answer: Any, expected: list[float]) -> bool:
    values = to_values(answer)
    return values is not None and values.shape == (2,) and bool((values - torch.tensor(expected)).abs().max() < 2e-3)


def check_repair(answer: Any) -> str | None:
    """6.5: a function that undoes the colleague's scanner."""
    if reason := check_function(answer, "scans"):
        return reason
    images, _ = load_digits()
    scans, hidden = scan_badly(images[:5]), images[:5]
    found = answer(scans.copy())
    if found is None:
        return "It returns None. The function has to return the images."
    if to_values(found) is None:
        return "The result is not an array of images."
    result = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found)
    if result.shape == hidden.shape and np.array_equal(result, hidden):
        return None
    for mistake, hint in (
        (scans, "These are the scans as they came. Compare them with the images above."),
        (255 - scans, "The ink is bright now, as it should be. Look at the 2, 3 and 7: something else is wrong."),
        (scans.transpose(0, 2, 1), "The digits stand right now. Look at their brightness."),
        *((np.rot90(255 - scans, turns, (1, 2)), MIRRORED) for turns in (1, -1)),
        *((np.flip(255 - scans, axis), TURNED) for axis in (1, 2)),
        (np.flip(255 - scans, (1, 2)), UPSIDE_DOWN),
    ):
        if np.array_equal(result, mistake):
            return hint
    if result.shape != hidden.shape:
        return f"Scans of shape {scans.shape} become images of shape {result.shape}. All axes but the last two stay."
    if result.dtype != np.uint8:
        return f"The result is {result.dtype}; images are bytes, uint8."
    return "The result is not what the colleague scanned."


EXERCISES = {
    "6.1": check_full_connection, "6.2": check_dense_layer, "6.3": check_score, "6.4": check_normalization,
    "6.5": check_repair,
}  # fmt: skip
