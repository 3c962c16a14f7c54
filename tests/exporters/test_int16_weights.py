import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from svertka.exporters.int16_weights import store_weights_in_int16


def test_weights_are_restored_within_half_a_step_and_small_ones_exactly() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (8, 200)).astype(np.float32) * 10.0 ** np.arange(-4, 4)[:, None].astype(np.float32)
    weights[3] = 0  # a channel without a largest value
    small = rng.normal(0, 1, (200, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "weights"], ["y"], transB=1),
            helper.make_node("MatMul", ["x", "small"], ["z"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 200])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("y", 8), ("z", 2))],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(small, "small")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    before = len(model.SerializeToString())
    store_weights_in_int16(model)
    onnx.checker.check_model(model)
    assert len(model.SerializeToString()) < 0.7 * before
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    restored, exact = session.run(None, {"x": np.eye(200, dtype=np.float32)})
    step = np.abs(weights).max(1, keepdims=True) / (2**15 - 1)
    assert (np.abs(restored.T - weights) <= 0.501 * step).all()
    assert np.abs(restored.T - weights).max() > 0
    np.testing.assert_array_equal(exact, small)
