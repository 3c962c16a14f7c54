"""Exercises of the notebook "Stride, padding, dilation"."""

from itertools import product
from typing import Any

import torch
from torch import nn

from svertka.conv_shape import output_size
from svertka.lessons.answer_checks import check_array, check_number, to_number


def check_output_size(answer: Any) -> str | None:
    """2.1: a function (size, kernel, stride, padding, dilation) that returns the output size."""
    if not callable(answer):
        return "A function of size, kernel, stride, padding and dilation is asked for."
    for size, kernel, stride, padding, dilation in product((7, 10, 32), (1, 3, 5), (1, 2, 3), (0, 1), (1, 2)):
        if dilation * (kernel - 1) + 1 > size + 2 * padding:
            continue
        result = answer(size, kernel, stride, padding, dilation)
        expected, found = output_size(size, kernel, stride, padding, dilation), to_number(result)
        if found is None:
            kind = "None" if result is None else type(result).__name__
            return f"The function returns {kind}. It has to return the number of positions."
        if found != expected:
            return (
                f"For size={size}, kernel={kernel}, stride={stride}, padding={padding}, dilation={dilation} it returns "
                f"{found:g}; there are {expected} positions."
            )
    return None


def check_same_padding(answer: Any) -> str | None:
    """2.2: the padding that keeps the size with kernel 7 and dilation 2."""
    hints = {
        3.0: "3 is right without dilation. With dilation 2, seven weights span 13 pixels.",
        12.0: "12 is the padding of both sides together. `padding` is that of one side.",
        7.0: "With dilation 2, seven weights span 13 pixels: 6 on each side of the middle.",
        13.0: "13 is what the kernel spans. How much of it lies on one side of the middle pixel?",
        6.5: "The middle pixel itself needs no padding.",
    }
    return check_number(answer, 6, hints)


def check_unread(answer: Any) -> str | None:
    """2.3: pixels of a row of 10 that a kernel of 3 with stride 4 never reads."""
    hints = {
        3.0: "There are unread pixels between the windows, too.",
        1.0: "There are unread pixels behind the last window, too.",
        2.0: "There is one between the windows, and some behind the last. A third window from pixel 8 does not fit.",
        6.0: "6 pixels are read. How many of the 10 are left?",
    }
    return check_number(answer, 4, hints)


def check_dilated_field(answer: Any) -> str | None:
    """2.4: the receptive field of three 3×3 convolutions with dilations 1, 3 and 9."""
    hints = {
        7.0: "7 is right without dilation.",
        19.0: "This is what the last convolution sees of the map before it. That map sees further.",
        39.0: "Each layer adds (3 − 1) · dilation pixels to what the one before it sees.",
        26.0: "The first pixel counts, too: each layer adds (3 − 1) · dilation to 1.",
        13.0: "The dilations add up to 13. Each layer adds (3 − 1) · dilation pixels, to 1.",
        14.0: "Each layer adds (3 − 1) · dilation pixels, not the dilation.",
        399.0: "What the layers see is added, not multiplied.",
    }
    return check_number(answer, 27, hints)


def check_halving(answer: Any) -> str | None:
    """2.5: a convolution of 3 channels to 8 that halves any even size."""
    if not isinstance(answer, nn.Conv2d):
        return f"An nn.Conv2d is asked for, and the answer is of type {type(answer).__name__}."
    if (answer.in_channels, answer.out_channels) != (3, 8):
        return f"It has {answer.in_channels} channels in and {answer.out_channels} out; 3 and 8 are asked for."
    if answer.kernel_size != (3, 3):
        return f"Its kernel is {answer.kernel_size[0]}×{answer.kernel_size[1]}; 3×3 is asked for."
    if answer.stride == (1, 1):
        return "With stride 1, the kernel stops at every pixel. What halves the size?"
    if answer.padding == (0, 0):
        return "Without padding, 32 pixels become 15: the last window would need one more pixel."
    with torch.no_grad():
        sizes = [list(answer(torch.zeros(1, 3, size, size)).shape[2:]) for size in (8, 32, 50)]
    return check_array(sizes, torch.tensor([[4, 4], [16, 16], [25, 25]]), "The list of output sizes for 8, 32 and 50")


EXERCISES = {
    "2.1": check_output_size, "2.2": check_same_padding, "2.3": check_unread, "2.4": check_dilated_field,
    "2.5": check_halving,
}  # fmt: skip
