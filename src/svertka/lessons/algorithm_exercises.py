"""Exercises of the notebook "im2col, Winograd, Fourier"."""

import math
from dataclasses import dataclass
from typing import Any

from svertka.lessons.answer_checks import check_function, check_number, to_number

DIRECT_PRODUCTS, WINOGRAD_PRODUCTS = 6, 4


def check_multiply_adds(answer: Any) -> str | None:
    """4.1: multiply-adds of a 3×3 layer from 64 to 128 channels, 56×56 outputs."""
    right = 64 * 128 * 9 * 56 * 56
    hints = {
        float(2 * right): "These are operations. A multiply-add is a multiplication and an addition, and counts once.",
        float(128 * 9 * 56 * 56): "Each output reads all 64 input channels.",
        float(64 * 9 * 56 * 56): "There are 128 output channels.",
        float(64 * 128 * 9): "This is the number of weights. Each is used at every position.",
        float(64 * 128 * 56 * 56): "Each pair of channels has a kernel of 9 weights.",
        float(64 * 128 * 3 * 56 * 56): "A kernel of 3×3 has 9 weights.",
        float(64 * 128 * 9 * 54 * 54): "56×56 is the size of the outputs; nothing is lost at their edges any more.",
        float(64 * 128 * 9 * 58 * 58): "56×56 is the size of the outputs. Only these are counted.",
    }
    return check_number(answer, right, hints)


def check_copies(answer: Any) -> str | None:
    """4.2: the size of the columns of a 3×3 kernel with stride 2, relative to the image."""
    hints = {
        9.0: "With stride 2 there is a column for every fourth pixel only.",
        4.5: "The stride halves both the rows and the columns of the output.",
        4.0: "Each column still has 9 numbers.",
        0.25: "This is the number of columns. Each has 9 numbers.",
    }
    return check_number(answer, 2.25, hints, tolerance=0.01)


@dataclass(frozen=True)
class _Traced:
    """A number that logs its products with other such numbers.

    Attributes:
        value: The number.
        products: One entry for each product, shared by all numbers.
    """

    value: float
    products: list[None]

    def __add__(self, other: Any) -> "_Traced":
        return _Traced(self.value + _value(other), self.products)

    def __sub__(self, other: Any) -> "_Traced":
        return _Traced(self.value - _value(other), self.products)

    def __rsub__(self, other: Any) -> "_Traced":
        return _Traced(_value(other) - self.value, self.products)

    def __neg__(self) -> "_Traced":
        return _Traced(-self.value, self.products)

    def __mul__(self, other: Any) -> "_Traced":
        if isinstance(other, _Traced):
            self.products.append(None)
        return _Traced(self.value * _value(other), self.products)

    def __truediv__(self, other: Any) -> "_Traced":
        return _Traced(self.value / _value(other), self.products)

    __radd__, __rmul__ = __add__, __mul__


def _value(number: Any) -> Any:
    return number.value if isinstance(number, _Traced) else number


def check_winograd(answer: Any) -> str | None:
    """4.3: a function of four pixels and three weights that returns two outputs from four products."""
    if reason := check_function(answer, "four pixels and three weights"):
        return reason
    for pixels, weights in (([3.0, 1.0, 4.0, 1.0], [5.0, 9.0, 2.0]), ([0.5, -2.0, 7.0, 1.0], [-1.0, 0.25, 3.0])):
        products: list[None] = []
        try:
            result = answer([_Traced(one, products) for one in pixels], [_Traced(one, products) for one in weights])
        except (RuntimeError, TypeError, ValueError) as error:
            if _Traced.__name__ not in str(error):
                raise
            return (
                "Compute with the numbers in the lists themselves, not with tensors: the check counts their products."
            )
        if not isinstance(result, list | tuple) or len(result) != 2:
            return "It has to return a list of two outputs."
        expected = [sum(pixels[place + tap] * weights[tap] for tap in range(3)) for place in range(2)]
        found = [number for one in result if (number := to_number(_value(one))) is not None]
        if len(found) != 2:
            return "It has to return a list of two numbers."
        if found == expected[::-1]:
            return "These are the two outputs, the second one first."
        if not all(abs(one - other) <= 1e-9 for one, other in zip(found, expected, strict=True)):  # NaN is wrong, too
            return f"For d={pixels} and g={weights} it returns {found}; it should be {expected}."
        if len(products) >= DIRECT_PRODUCTS:
            return f"The outputs are right, but it multiplies {len(products)} times. Use m1 to m4 only."
        if len(products) > WINOGRAD_PRODUCTS:
            return f"The outputs are right, but it multiplies {len(products)} times; compute each of m1 to m4 once."
    return None


def check_tile(answer: Any) -> str | None:
    """4.4: how many times fewer multiplications F(4×4, 3×3) needs."""
    hints = {
        2.25: "This is right for tiles of 4×4 pixels with 2×2 outputs.",
        16.0: "Compare with 9 multiplications for each of the 16 outputs, and count the products of a tile.",
        36.0: "36 is the number of products of a tile. How many are they without the trick?",
        144.0: "144 is the number without the trick. Divide by the number of products of a tile.",
        2.0: "This is the saving along one axis. There are two.",
        9.0: "An output by itself takes 9. How many products of the tile are there for each of its 16 outputs?",
    }
    return check_number(answer, 4, hints, tolerance=0.001)


def check_circle(answer: Any) -> str | None:
    """4.5: the smallest circle for all 130 outputs of 100 pixels and 31 weights."""
    hints = {
        100.0: "Then the kernel reads pixels from the other end of the row, where zeros should be.",
        131.0: "One less is enough. How many outputs have to lie side by side?",
        160.0: "The zeros of both sides may be the same ones: on a circle, the right side continues into the left.",
        128.0: "A power of two is fast, but 130 outputs do not fit on a circle of 128.",
        129.0: "There are 130 outputs. On a circle of 129, the first and the last would be one.",
        256.0: "A power of two is fast, but the smallest length is asked for.",
    }
    value = to_number(answer)
    if value is not None and 130 < value < math.inf and value not in hints:
        return "All outputs are right on such a circle, but a smaller one is enough."
    return check_number(answer, 130, hints)


def check_spectrum(answer: Any) -> str | None:
    """4.6: how many times fewer real multiplications the Fourier transform needs for 7×7."""
    hints = {
        49.0: "This takes a complex multiplication for a real one, and all frequencies.",
        98.0: "A complex multiplication takes four real ones.",
        12.25: "Only half of the frequencies have to be computed.",
        7.0: "A direct output takes 7 · 7 multiplications for each pair of channels.",
    }
    return check_number(answer, 24.5, hints, tolerance=0.01)


EXERCISES = {
    "4.1": check_multiply_adds, "4.2": check_copies, "4.3": check_winograd, "4.4": check_tile, "4.5": check_circle,
    "4.6": check_spectrum,
}  # fmt: skip
