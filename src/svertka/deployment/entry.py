"""The preprocessing of a classifier as ONNX nodes: uint8 pictures of any size in, what its network takes out.

The same steps as `data.preprocess`, in the same order. The filter of the resize rounds between columns and rows, as
PyTorch's does on bytes; PyTorch's weights have 16 bits, so that some values differ by 1 of 255, few by 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from svertka.data.preprocess import Preprocess

PREFIX = "preprocess/"
LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 in units of 2⁻¹⁶, as Pillow rounds it; the sum stays exact in float32


class Entry:
    """`nodes` and `constants` that make `images` (N, C, size, size) float32 of `pictures` (N, H, W, 3) uint8, RGB."""

    def __init__(self, preprocess: Preprocess, pictures: str, images: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        square = self._central_square(pictures)
        resized = self._resized(square, preprocess.resize)
        coloured = self._grey(resized) if preprocess.channels == 1 else resized
        self._normalised(self._fitted(coloured, preprocess), preprocess, images)

    def _central_square(self, pictures: str) -> str:
        """(N, 3, S, S) float32, S the shorter side."""
        sides = self._node("Shape", [pictures], start=1, end=3)
        side = self._node("ReduceMin", [sides], keepdims=1)
        first = self._node("Div", [self._node("Sub", [sides, side]), self._whole([2])])
        last = self._node("Add", [first, side])
        square = self._node("Slice", [pictures, first, last, self._whole([1, 2])])
        return self._node("Cast", [self._node("Transpose", [square], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)

    def _resized(self, square: str, side: int) -> str:
        for axis in (3, 2):
            settings: dict[str, Any] = {"mode": "linear", "antialias": 1, "exclude_outside": 1, "axes": [axis]}
            square = self._node("Round", [self._node("Resize", [square, "", "", self._whole([side])], **settings)])
        return square

    def _grey(self, coloured: str) -> str:
        weighted = self._node("Mul", [coloured, self._real(np.array(LUMA).reshape(1, 3, 1, 1))])
        luma = self._node("ReduceSum", [weighted, self._whole([1])], keepdims=1)
        rounded = self._node("Add", [luma, self._real(np.array(2.0**15))])
        return self._node("Floor", [self._node("Mul", [rounded, self._real(np.array(2.0**-16))])])

    def _fitted(self, square: str, preprocess: Preprocess) -> str:
        """Zeros around a square that is too small, or the middle of one that is too large."""
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

    def _normalised(self, pixels: str, preprocess: Preprocess, images: str) -> None:
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

    def _real(self, values: npt.NDArray[np.floating]) -> str:
        return self._constant(values.astype(np.float32))

    def _constant(self, values: npt.NDArray[np.generic]) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name
