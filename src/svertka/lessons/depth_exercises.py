"""Exercises of the notebook "From AlexNet to ResNet"."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from svertka.lessons.answer_checks import check_array, check_function, check_number

CHANNELS = 256


def check_saved_parameters(answer: Any) -> str | None:
    """11.1: parameters that three 3×3 convolutions save against one 7×7, 256 channels."""
    square = float(CHANNELS**2)
    hints = {
        22.0: "This is for one channel in and out. Each pair of channels has a kernel.",
        22.0 * CHANNELS: "Each output channel has a kernel for each input channel.",
        27 * square: "This is what the three have. How many fewer is that than one 7×7?",
        49 * square: "This is what one 7×7 has.",
        40 * square: "There are three convolutions of 3×3.",
        -22 * square: "They save parameters: 49 is more than 27.",
        22 * square + 2 * CHANNELS: "The layers have no biases.",
        22 * square - 2 * CHANNELS: "The layers have no biases.",
        22 / 49: "This is the share. How many parameters are it?",
        27 / 49: "This is the share that is left. How many parameters are saved?",
    }
    return check_number(answer, 22 * square, hints)


def check_pointwise(answer: Any) -> str | None:
    """11.2: a function (maps, weight) that mixes the channels of each pixel."""
    if reason := check_function(answer, "maps and weight"):
        return reason
    generator = torch.Generator().manual_seed(0)
    for channels, outputs in ((3, 5), (4, 4)):
        maps = torch.randn(2, channels, 6, 7, generator=generator, dtype=torch.float64)
        weight = torch.randn(outputs, channels, generator=generator, dtype=torch.float64)
        expected = F.conv2d(maps, weight[:, :, None, None])
        result = answer(maps, weight)
        what = f"The result for {channels} channels in and {outputs} out"
        if (reason := check_array(result, expected, what)) is None:
            continue
        if channels == outputs and check_array(result, F.conv2d(maps, weight.T[:, :, None, None]), what) is None:
            return "The weights are transposed: row o of `weight` belongs to output channel o."
        mixed = (maps.reshape(-1, channels) @ weight.T).reshape(2, outputs, 6, 7)
        if check_array(result, mixed, what) is None:
            return "reshape cuts the numbers in their order, so it mixes pixels. Move the channels to the end first."
        if tuple(getattr(result, "shape", ())) == (2, 6, 7, outputs):
            return "The channels are the last axis of the result. They belong to the second."
        return reason
    return None


def check_inception_path(answer: Any) -> str | None:
    """11.3: multiply-adds of 1×1 from 192 to 16 and 5×5 from 16 to 32 channels, 28×28."""
    first, second = 28 * 28 * 192 * 16, 28 * 28 * 16 * 25 * 32
    hints = {
        float(first): "This is the 1×1 convolution alone.",
        float(second): "This is the 5×5 convolution alone.",
        float(192 * 16 + 16 * 25 * 32): "These are the weights. Each is used at every position.",
        28.0 * 28 * 192 * 25 * 32: "This is the 5×5 convolution without the 1×1 before it.",
        float(first + 24 * 24 * 16 * 25 * 32): "The 5×5 convolution is padded, so it has 28×28 outputs.",
        float(2 * (first + second)): "These are operations. A multiply-add is a multiplication and an addition.",
        float(first + 28 * 28 * 16 * 5 * 32): "A kernel of 5×5 has 25 weights.",
        28.0 * 28 * 192 * 16 * 25 * 32: "The two convolutions follow each other: their multiply-adds are added.",
    }
    return check_number(answer, first + second, hints)


def check_vanishing(answer: Any) -> str | None:
    """11.4: 0.8 to the power of 50."""
    hints = {
        0.8 * 50: "The factors multiply, they do not add.",
        0.8: "This is after one layer.",
        0.8**49: "There are 50 layers.",
        0.2**50: "Each layer leaves 0.8, not 0.2.",
        0.0: "It is small, but not 0.",
        0.8 / 50: "Each of the layers multiplies by 0.8, one after the other.",
        1e-5: "The order of magnitude is right; give two digits.",
    }
    return check_number(answer, 0.8**50, hints, tolerance=0.05)


def check_residual_block(answer: Any) -> str | None:
    """11.5: the forward pass of a residual block."""
    if reason := check_function(answer, "x, first and second"):
        return reason
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (nn.Conv2d(4, 4, 3, padding=1).double() for _ in range(2))
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        kept = x.clone()
        change = second(F.relu(first(x)))
        result = answer(x, first, second)
        if not torch.equal(x, kept):
            return "It changes x in place, which others may still need."
        for hint, known in (
            ("", F.relu(x + change)),
            ("The ReLU after the sum is missing.", x + change),
            ("The ReLU comes before the sum. Then a block could only add, never take away.", x + F.relu(change)),
            ("The connection is missing: add x.", F.relu(change)),
            ("The connection is missing: add x, and then comes a ReLU.", change),
            ("x is added as it is, without ReLU. The ReLU comes after the sum.", F.relu(x) + change),
            ("x is added to f(x), not multiplied.", F.relu(x * change)),
            ("The second convolution is missing.", F.relu(x + F.relu(first(x)))),
            ("The two convolutions are swapped.", F.relu(x + first(F.relu(second(x))))),
            ("The ReLU after the first convolution is missing.", F.relu(x + second(first(x)))),
            ("The connection begins after the first convolution. It begins at x.", F.relu(F.relu(first(x)) + change)),
        ):
            if check_array(result, known, "") is None:
                return hint or None
        if isinstance(result, nn.Module):
            return "It returns a module. F.relu(…) computes; nn.ReLU(…) makes a layer."
        return check_array(result, F.relu(x + change), "The result")


EXERCISES = {
    "11.1": check_saved_parameters, "11.2": check_pointwise, "11.3": check_inception_path, "11.4": check_vanishing,
    "11.5": check_residual_block,
}  # fmt: skip
