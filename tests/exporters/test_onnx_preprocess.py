from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from svertka.data.preprocessing import FITS, INTERPOLATIONS, Fit, Interpolation, Preprocess
from svertka.data.rgb_conversion import Range, make_shade_table, shades_to_16_bit

pytest.importorskip("onnx")
import onnxruntime
from onnx import TensorProto, checker, helper

from svertka.exporters.onnx_preprocess import PreprocessingGraph

PHOTOGRAPH = load_sample_image("flower.jpg")


def session(preprocess: Preprocess) -> Any:
    entry = PreprocessingGraph(preprocess, "in", "out")
    before = helper.make_tensor_value_info("in", entry.element_type, ["N", "H", "W", 3])
    size = preprocess.size
    behind = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", preprocess.channels, size, size])
    graph = helper.make_graph(entry.nodes, "entry", [before], [behind], entry.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def levels(preprocess: Preprocess, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """By how many of 255 levels the graph's values differ, (N, C, size, size)."""
    (found,) = session(preprocess).run(None, {"in": shades_to_16_bit(pictures, preprocess.intensity_range)})
    wanted = np.stack([preprocess(picture).numpy() for picture in pictures])
    scale = np.array(preprocess.std).reshape(-1, 1, 1) * 255
    difference: npt.NDArray[np.float64] = np.abs(found - wanted) * scale
    return difference


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(8, 40),
    st.integers(8, 40),
    st.booleans(),
    st.integers(0, 400),
    st.sampled_from(FITS),
    st.sampled_from(INTERPOLATIONS),
    st.sampled_from([None, (0, 1023), (0, 4095), (30_000, 31_000)]),
)
@example(height=24, width=24, size=8, resize=19, gray=False, corner=3, fit="crop", kind="bilinear", values=None)
@example(height=24, width=24, size=8, resize=19, gray=False, corner=3, fit="crop", kind="bicubic", values=None)
@example(height=1, width=150, size=9, resize=8, gray=False, corner=3, fit="pad", kind="bilinear", values=None)
def test_the_graph_prepares_as_python_does(
    height: int,
    width: int,
    size: int,
    resize: int,
    gray: bool,
    corner: int,
    fit: Fit,
    kind: Interpolation,
    values: Range | None,
) -> None:
    mean, std = (0.3,) if gray else (0.3, 0.5, 0.6), (0.25,) if gray else (0.25, 0.2, 1.0)
    preprocess = Preprocess(
        size=size, resize=resize, mean=mean, std=std, fit=fit, interpolation=kind, intensity_range=values
    )
    difference = levels(preprocess, PHOTOGRAPH[None, :height, corner % 400 :][:, :, :width])
    assert difference.max() <= 1e-3  # float32's rounding of the normalization, no level


@pytest.mark.parametrize("values", [(0, 1023), (0, 4095), (0, 32767), (30_000, 31_000), (5, 6), (0, 255)])
def test_the_graph_brings_every_16_bit_value_to_the_shade_that_python_gives_it(values: Range) -> None:
    one = Preprocess(size=256, resize=256, mean=(0.0,) * 3, std=(1.0,) * 3, intensity_range=values)
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    rgb = np.repeat(every[:, :, None], 3, axis=2)
    (found,) = session(one).run(None, {"in": rgb[None]})
    np.testing.assert_allclose(found[0], one(rgb).numpy(), atol=1e-6)
    np.testing.assert_allclose(found[0][0] * 255, make_shade_table(values).reshape(256, 256), atol=1e-3)


def test_no_value_differs_in_a_photograph() -> None:
    preprocess = Preprocess(size=224, resize=256, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert levels(preprocess, np.stack([PHOTOGRAPH, PHOTOGRAPH[::-1]])).max() <= 1e-3


def test_nothing_differs_where_nothing_is_resized() -> None:
    for channels in (1, 3):
        preprocess = Preprocess(size=90, resize=100, mean=(0.5,) * channels, std=(0.2,) * channels)
        assert levels(preprocess, PHOTOGRAPH[None, :100, :150]).max() < 1e-3  # float32's rounding, no level
