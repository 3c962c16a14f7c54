"""Weights of an ONNX model as integers, from which runtimes compute the float32 weights once, when they load the model.

16 bits halve the size and change probabilities by less than 0.001. float16 has the same size and 11 significant bits;
the scale of a channel gives most weights 13 or more. On 63 photographs the probabilities of EfficientNet-Lite0 change
by at most 0.0004, with float16 by 0.0039 (bench/classifier_page.py). 8 bits quarter the size and change probabilities
by some percent.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

SMALLEST = 1024  # values of a tensor that is worth storing so
SMALLEST_IN_8_BITS = 30_000  # smaller tensors, such as depthwise filters, take few bytes and lose most by rounding
CLIPPED_SHARES = np.linspace(0.6, 1, 21)  # of the largest weight of a channel that int8 represents

Weights = npt.NDArray[np.float32]


def store_weights_in_int16(model: ModelProto) -> None:
    """Replace each large float32 weight of `model`, in place, by int16 and a scale for each of its first axis."""
    _store(model, lambda _: np.int16)


def store_weights_in_int8(model: ModelProto) -> None:
    """Replace large float32 weights of `model`, in place, by int8, and smaller ones by int16, as above.

    The scale of a channel is the one with the least squared error of its weights.
    """
    _store(model, lambda size: np.int8 if size >= SMALLEST_IN_8_BITS else np.int16)


def _store(model: ModelProto, choose_kind: Callable[[int], type[np.int8 | np.int16]]) -> None:
    graph = model.graph
    nodes = []
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.ndim < 2 or values.size < SMALLEST:
            continue
        kind = choose_kind(values.size)
        largest = np.iinfo(kind).max
        scale = _choose_scale(values, largest) if kind is np.int8 else _scale_of_largest(values, largest)
        integers = _round(values, scale, largest).astype(kind)
        name = weight.name
        stored, cast, factor = (f"{name}/{part}" for part in (kind.__name__, "cast", "scale"))
        graph.initializer.remove(weight)
        graph.initializer.extend([numpy_helper.from_array(integers, stored), numpy_helper.from_array(scale, factor)])
        nodes.append(helper.make_node("Cast", [stored], [cast], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [cast, factor], [name]))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _round(values: Weights, scale: Weights, largest: int) -> Weights:
    rounded: Weights = np.rint(values / scale).clip(-largest, largest)
    return rounded


def _scale_of_largest(values: Weights, largest: int) -> Weights:
    """Return the scale of each channel that represents its largest weight, (C, 1, …)."""
    found = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    return np.where(found > 0, found, 1).astype(np.float32) / np.float32(largest)


def _choose_scale(values: Weights, largest: int) -> Weights:
    """Return the scale of each channel with the least squared error; the largest weights may be clipped."""
    widest = _scale_of_largest(values, largest)
    best, least = widest, np.full_like(widest, np.inf)
    for share in CLIPPED_SHARES.astype(np.float32):
        scale = widest * share
        rounded = _round(values, scale, largest) * scale
        error = ((rounded - values) ** 2).sum(axis=tuple(range(1, values.ndim)), keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best
