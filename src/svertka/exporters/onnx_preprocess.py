"""The preprocessing of a classifier as ONNX nodes: from images of any size to the input of its network.

The steps and their order are those of `data.preprocessing`, and the pixels are exactly the same. The resize computes
the filter's weights in float64 and rounds them to 16 bits, as PyTorch's does on bytes, and multiplies them in integers.

Source: PyTorch's `aten/src/ATen/native/cpu/UpSampleKernel.cpp`, whose rounding is that of Pillow-SIMD.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from svertka.data.band_ranges import BandRanges
from svertka.data.preprocessing import Interpolation, Preprocess
from svertka.data.rgb_conversion import intensity_to_shade_factors

PREFIX = "preprocess/"
MAX_BITS = 22  # of the fraction of a weight
WEIGHT_LIMIT = 2.0**15  # weights have 16 bits with sign
LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 in units of 2⁻¹⁶, as Pillow rounds it; the sum stays exact in float32


class PreprocessingGraph:
    """`nodes` and `constants` that map `pictures`, (N, H, W, 3) RGB, to `images`, (N, C, size, size) float32.

    `element_type`: uint8, or uint16 if the preprocessing has an intensity range, or the type of the bands. `channels`:
    those of `pictures`, 3 or the number of bands.
    """

    def __init__(self, preprocess: Preprocess, pictures: str, images: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.element_type = TensorProto.UINT8 if preprocess.deep_range is None else TensorProto.UINT16
        self.channels = 3 if preprocess.bands is None else preprocess.channels
        if preprocess.deep_range is not None:
            pictures = self._shades(pictures, *preprocess.deep_range)
        if preprocess.bands is not None:
            self.element_type = helper.np_dtype_to_tensor_dtype(np.dtype(preprocess.bands.dtype))
            pictures = self._bytes(pictures, preprocess.bands)
        used = self._central_square(pictures) if preprocess.fit == "crop" else pictures
        planes = self._node("Transpose", [used], perm=[0, 3, 1, 2])
        if preprocess.fit == "pad":
            height, width = self._padded_size(pictures, preprocess.resize)
            resized = self._resized(planes, height, width, preprocess.interpolation)
            square = self._padded(resized, height, width, preprocess.resize)
        else:
            side = self._whole([preprocess.resize])
            square = self._resized(planes, side, side, preprocess.interpolation)
        colored = self._gray(square) if self.channels > preprocess.channels else square
        self._normalized(self._fitted(colored, preprocess), preprocess, images)

    def _shades(self, pictures: str, low: int, high: int) -> str:
        """Map uint16 values to (N, H, W, 3) uint8, in int32, since float32 would round some."""
        values = self._node("Sub", [self._node("Cast", [pictures], to=TensorProto.INT32), self._int32(low)])
        values = self._node("Min", [self._node("Max", [values, self._int32(0)]), self._int32(high - low)])
        factor, offset, divisor = intensity_to_shade_factors((low, high))
        scaled = self._node("Add", [self._node("Mul", [values, self._int32(factor)]), self._int32(offset)])
        return self._node("Cast", [self._node("Div", [scaled, self._int32(divisor)])], to=TensorProto.UINT8)

    def _bytes(self, pictures: str, bands: BandRanges) -> str:
        """Map values to (N, H, W, C) uint8 in float64, as `BandRanges.to_bytes` does; NaN becomes 0."""
        low, high = np.array(bands.bands, np.float64).T
        values = self._as_double(pictures)
        scaled = self._node(
            "Mul", [self._node("Sub", [values, self._constant(low)]), self._constant(255 / (high - low))]
        )
        known = self._node("Where", [self._node("IsNaN", [scaled]), self._double(0), scaled])
        clipped = self._node("Min", [self._node("Max", [known, self._double(0)]), self._double(255)])
        return self._node("Cast", [self._node("Round", [clipped])], to=TensorProto.UINT8)

    def _central_square(self, pictures: str) -> str:
        """Crop to (N, S, S, 3), S the shorter side."""
        sides = self._node("Shape", [pictures], start=1, end=3)
        side = self._node("ReduceMin", [sides], keepdims=1)
        first = self._node("Div", [self._node("Sub", [sides, side]), self._whole([2])])
        last = self._node("Add", [first, side])
        return self._node("Slice", [pictures, first, last, self._whole([1, 2])])

    def _padded_size(self, pictures: str, resize: int) -> tuple[str, str]:
        """Return height and width, (1,) each, of the image with its longer side at `resize`; see `letterboxed_size`."""
        sides = self._node("Shape", [pictures], start=1, end=3)
        longer = self._node("ReduceMax", [sides], keepdims=1)
        doubled = self._node("Add", [self._node("Mul", [sides, self._whole([2 * resize])]), longer])
        shrunk = self._node("Div", [doubled, self._node("Mul", [longer, self._whole([2])])])
        shrunk = self._node("Max", [shrunk, self._whole([1])])
        height = self._node("Slice", [shrunk, self._whole([0]), self._whole([1])])
        return height, self._node("Slice", [shrunk, self._whole([1]), self._whole([2])])

    def _padded(self, planes: str, height: str, width: str, side: int) -> str:
        """Pad with zeros so that both sides are `side`."""
        before, after = [], []
        for length in (height, width):
            missing = self._node("Sub", [self._whole([side]), length])
            first = self._node("Div", [missing, self._whole([2])])
            before.append(first)
            after.append(self._node("Sub", [missing, first]))
        none = self._whole([0, 0])
        return self._node("Pad", [planes, self._node("Concat", [none, *before, none, *after], axis=0)])

    def _resized(self, planes: str, height: str, width: str, interpolation: Interpolation) -> str:
        """Resize planes (N, 3, H, W) uint8 with antialiasing, the columns first, and return float32 in 0 to 255."""
        for side in (width, height):
            length = self._node("Shape", [planes], start=3, end=4)
            filtered = self._filtered(planes, *self._weights(length, side, interpolation))
            planes = self._node("Transpose", [filtered], perm=[0, 1, 3, 2])  # the other axis is the last
        return self._node("Cast", [planes], to=TensorProto.FLOAT)

    def _weights(self, length: str, side: str, interpolation: Interpolation) -> tuple[str, str, str]:
        """Return the weights of each of `length` pixels, (1,), in each of `side`, (1,), as integers.

        Returns:
            The higher byte of the weights plus 128 and the lower byte, (length, side) uint8 each, and the divisor of
            the weights, a power of two, int32.
        """
        is_cubic = interpolation == "bicubic"
        scale = self._node("Div", [self._as_double(length), self._as_double(side)])
        wide = self._node("Max", [scale, self._double(1.0)])
        center = self._node("Mul", [self._node("Add", [self._count(side), self._double(0.5)]), scale])
        center = self._node("Unsqueeze", [center, self._whole([0])])
        place = self._node("Unsqueeze", [self._count(length), self._whole([1])])
        support = self._node("Mul", [wide, self._double(2.0 if is_cubic else 1.0)])
        first, end = (
            self._node("Floor", [self._node("Add", [self._node(kind, [center, support]), self._double(0.5)])])
            for kind in ("Sub", "Add")
        )
        inside = self._node("And", [self._node("GreaterOrEqual", [place, first]), self._node("Less", [place, end])])
        distance = self._node("Add", [self._node("Sub", [place, center]), self._double(0.5)])
        distance = self._node("Abs", [self._node("Mul", [distance, self._node("Div", [self._double(1.0), wide])])])
        values = self._cubic(distance) if is_cubic else self._triangle(distance)
        values = self._node("Where", [inside, values, self._double(0.0)])
        values = self._node("Div", [values, self._node("ReduceSum", [values, self._whole([0])], keepdims=1)])
        return self._quantized(values)

    def _triangle(self, distance: str) -> str:
        return self._node("Max", [self._node("Sub", [self._double(1.0), distance]), self._double(0.0)])

    def _cubic(self, distance: str) -> str:
        """Return Keys' cubic convolution with a = −1/2, in the order of operations of PyTorch."""

        def compute(*steps: tuple[str, float | None]) -> str:
            value = distance
            for kind, number in steps:  # None: the distance
                value = self._node(kind, [value, distance if number is None else self._double(number)])
            return value

        near = compute(("Mul", 1.5), ("Sub", 2.5), ("Mul", None), ("Mul", None), ("Add", 1.0))
        far = compute(("Mul", -0.5), ("Sub", -2.5), ("Mul", None), ("Add", -4.0), ("Mul", None), ("Sub", -2.0))
        far = self._node("Where", [self._node("Less", [distance, self._double(2.0)]), far, self._double(0.0)])
        return self._node("Where", [self._node("Less", [distance, self._double(1.0)]), near, far])

    def _quantized(self, values: str) -> tuple[str, str, str]:
        """Return weights, (L, S) float64, as the integers that `_weights` describes, with as many bits as fit."""
        top = self._node("ReduceMax", [values], keepdims=0)
        largest = self._node("Mul", [top, self._constant(2.0 ** np.arange(1, MAX_BITS + 1))])
        rounded = self._node("Floor", [self._node("Add", [largest, self._double(0.5)])])
        fits = self._node("Cast", [self._node("Less", [rounded, self._double(WEIGHT_LIMIT)])], to=TensorProto.INT64)
        powers = self._constant((2 ** np.arange(MAX_BITS + 1)).astype(np.int32))
        divisor = self._node("Gather", [powers, self._node("ReduceSum", [fits], keepdims=0)])
        scaled = self._node("Mul", [values, self._as_double(divisor)])
        whole = self._node("Floor", [self._node("Add", [self._node("Abs", [scaled]), self._double(0.5)])])
        whole = self._node("Mul", [whole, self._node("Sign", [scaled])])
        high = self._node("Floor", [self._node("Mul", [whole, self._double(1 / 256)])])
        low = self._node("Sub", [whole, self._node("Mul", [high, self._double(256.0)])])
        offset = self._node("Add", [high, self._double(128.0)])
        as_bytes = [self._node("Cast", [one], to=TensorProto.UINT8) for one in (offset, low)]
        return as_bytes[0], as_bytes[1], divisor

    def _filtered(self, planes: str, high: str, low: str, divisor: str) -> str:
        """Multiply planes (N, 3, H, L) uint8 by weights (L, S) and return (N, 3, H, S) uint8, rounded."""
        zero, offset = self._constant(np.array(0, np.uint8)), self._constant(np.array(128, np.uint8))
        higher = self._node("MatMulInteger", [planes, high, zero, offset])  # exact; one of int8 saturates on old CPUs
        lower = self._node("MatMulInteger", [planes, low, zero, zero])
        sums = self._node("Add", [self._node("Mul", [higher, self._int32(256)]), lower])
        sums = self._node("Add", [sums, self._node("Div", [divisor, self._int32(2)])])
        shades = self._node("Div", [self._node("Max", [sums, self._int32(0)]), divisor])
        return self._node("Cast", [self._node("Min", [shades, self._int32(255)])], to=TensorProto.UINT8)

    def _count(self, length: str) -> str:
        """Return 0, 1, … up to `length`, (1,) int64, as float64."""
        whole = [self._constant(np.array(value, np.int64)) for value in (0, 1)]
        return self._as_double(self._node("Range", [whole[0], self._node("Squeeze", [length]), whole[1]]))

    def _as_double(self, value: str) -> str:
        return self._node("Cast", [value], to=TensorProto.DOUBLE)

    def _double(self, value: float) -> str:
        return self._constant(np.array(value, np.float64))

    def _gray(self, colored: str) -> str:
        weighted = self._node("Mul", [colored, self._real(np.array(LUMA).reshape(1, 3, 1, 1))])
        luma = self._node("ReduceSum", [weighted, self._whole([1])], keepdims=1)
        rounded = self._node("Add", [luma, self._real(np.array(2.0**15))])
        return self._node("Floor", [self._node("Mul", [rounded, self._real(np.array(2.0**-16))])])

    def _fitted(self, square: str, preprocess: Preprocess) -> str:
        """Pad a square that is too small with zeros, or crop the center of one that is too large."""
        size, side = preprocess.size, preprocess.resize
        if side < size:
            before = (size - side) // 2
            after = size - side - before
            return self._node("Pad", [square, self._whole([0, 0, before, before, 0, 0, after, after])])
        if side > size:
            first = (side - size) // 2
            ends = [self._whole([first] * 2), self._whole([first + size] * 2)]
            return self._node("Slice", [square, *ends, self._whole([2, 3])])
        return square

    def _normalized(self, pixels: str, preprocess: Preprocess, images: str) -> None:
        shape = (1, preprocess.channels, 1, 1)
        mean = np.array(preprocess.mean, np.float32).reshape(shape) * np.float32(255)
        scale = 1 / (np.array(preprocess.std, np.float32).reshape(shape) * np.float32(255))
        around = self._node("Sub", [pixels, self._real(mean)])
        self.nodes.append(helper.make_node("Mul", [around, self._real(scale)], [images], name=f"{PREFIX}{images}"))

    def _node(self, kind: str, inputs: Sequence[str], **settings: Any) -> str:
        output = f"{PREFIX}{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **settings))
        return output

    def _whole(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _int32(self, value: int) -> str:
        return self._constant(np.array(value, np.int32))

    def _real(self, values: npt.NDArray[np.floating]) -> str:
        return self._constant(values.astype(np.float32))

    def _constant(self, values: npt.NDArray[np.generic]) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name
