import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from svertka.exporters.integer_weights import store_weights_in_int8, store_weights_in_int16


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


def test_in_8_bits_the_scale_has_the_least_error_and_small_tensors_keep_16() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (4, 20_000)).astype(np.float32)
    weights[:, 0] = 7  # far from the others
    small = rng.normal(0, 1, (4, 500)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "weights"], ["y"], transB=1),
            helper.make_node("Gemm", ["s", "small"], ["z"], transB=1),
        ],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", 20_000), ("s", 500))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("y", "z")],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(small, "small")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    store_weights_in_int8(model)
    onnx.checker.check_model(model)
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert (stored["weights/int8"].dtype, stored["small/int16"].dtype) == (np.int8, np.int16)
    restored = stored["weights/int8"] * stored["weights/scale"]
    step = np.float32(7 / 127)
    errors = [
        ((np.rint(weights / (share * step)).clip(-127, 127) * share * step - weights) ** 2).sum(1)
        for share in np.linspace(0.5, 1, 101).astype(np.float32)
    ]
    found = ((restored - weights) ** 2).sum(1)
    assert (found < 0.95 * errors[-1]).all()  # the largest weight is clipped
    assert (found <= 1.02 * np.min(errors, axis=0)).all()
