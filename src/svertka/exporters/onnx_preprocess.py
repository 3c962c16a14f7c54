"""The preprocessing of a classifier as ONNX nodes: from images of any size to the input of its network.

The steps and their order are those of `data.preprocessing`. The resize rounds between columns and rows, as PyTorch's
does on bytes. PyTorch's filter weights have 16 bits, so that some values differ by 1 of 255, few by 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from svertka.data.preprocessing import Interpolation, Preprocess
from svertka.data.rgb_conversion import intensity_to_shade_factors

PREFIX = "preprocess/"
LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 in units of 2⁻¹⁶, as Pillow rounds it; the sum stays exact in float32


class PreprocessingGraph:
    """`nodes` and `constants` that map `pictures`, (N, H, W, 3) RGB, to `images`, (N, C, size, size) float32.

    `element_type`: uint8, or uint16 if the preprocessing has an intensity range.
    """

    def __init__(self, preprocess: Preprocess, pictures: str, images: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.element_type = TensorProto.UINT8 if preprocess.intensity_range is None else TensorProto.UINT16
        if preprocess.intensity_range is not None:
            pictures = self._shades(pictures, *preprocess.intensity_range)
        used = self._central_square(pictures) if preprocess.fit == "crop" else pictures
        planes = self._node("Cast", [self._node("Transpose", [used], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
        if preprocess.fit == "pad":
            height, width = self._padded_size(pictures, preprocess.resize)
            resized = self._resized(planes, height, width, preprocess.interpolation)
            square = self._padded(resized, height, width, preprocess.resize)
        else:
            side = self._whole([preprocess.resize])
            square = self._resized(planes, side, side, preprocess.interpolation)
        colored = self._gray(square) if preprocess.channels == 1 else square
        self._normalized(self._fitted(colored, preprocess), preprocess, images)

    def _shades(self, pictures: str, low: int, high: int) -> str:
        """Map uint16 values to (N, H, W, 3) int32 from 0 to 255, in integers, since float32 would round some."""
        values = self._node("Sub", [self._node("Cast", [pictures], to=TensorProto.INT32), self._int32(low)])
        values = self._node("Min", [self._node("Max", [values, self._int32(0)]), self._int32(high - low)])
        factor, offset, divisor = intensity_to_shade_factors((low, high))
        scaled = self._node("Add", [self._node("Mul", [values, self._int32(factor)]), self._int32(offset)])
        return self._node("Div", [scaled, self._int32(divisor)])

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
        is_cubic = interpolation == "bicubic"
        settings: dict[str, Any] = {"mode": "cubic", "cubic_coeff_a": -0.5} if is_cubic else {"mode": "linear"}
        for axis, side in ((3, width), (2, height)):
            before, after = (
                self._node("Shape", [planes], start=0, end=axis),
                self._node("Shape", [planes], start=axis + 1),
            )
            sizes = self._node(
                "Concat", [before, side, after], axis=0
            )  # ONNX Runtime may move a Resize with axes wrongly
            resized = self._node("Resize", [planes, "", "", sizes], antialias=1, exclude_outside=1, **settings)
            if is_cubic:  # it overshoots at edges
                resized = self._node("Clip", [resized, self._real(np.array(0.0)), self._real(np.array(255.0))])
            planes = self._node("Round", [resized])
        return planes

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
