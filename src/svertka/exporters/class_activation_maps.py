"""Class activation maps as outputs of an ONNX model: Grad-CAM without a gradient.

If the class scores are a dense layer of averages over the last feature maps, the gradient of a score is the same at
every position: the weight of that layer, over the number of positions. Then Grad-CAM is the weighted sum of the feature
maps itself.

Source: Zhou et al. 2016, "Learning deep features for discriminative localization", eq. 2; Selvaraju et al. 2017,
"Grad-CAM", §3.1.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from svertka.exporters.onnx import LOGITS

CLASSES, MAPS = "classes", "maps"

_SAME_VALUES = {"Dropout", "Flatten", "Identity", "Reshape", "Squeeze"}
_ROUNDED = {"DequantizeLinear", "QuantizeLinear"}  # around the layers of an int8 network


def append_class_activation_maps(model: ModelProto, count: int) -> bool:
    """Add the outputs `classes`, (N, count) int64, and `maps`, (N, count, H, W) float32, to `model`, in place.

    They are the most probable classes, and for each of them the sum of the last feature maps, weighted with the weights
    of the class.

    Args:
        model: A model with the output `logits`.
        count: Classes of which maps are computed, at most all of them.

    Returns:
        Whether the model computes its logits with a dense layer from averages of feature maps; if not, it is unchanged.
    """
    found = _find_maps_and_weights(model)
    if found is None:
        return False
    maps, weights, is_transposed = found
    graph = model.graph
    constants = {"count": np.array([count]), "flat": np.array([0, 0, -1]), "restored": np.array([0, -1])}
    names = {
        name: f"{MAPS}/{name}" for name in (*constants, "scores", "rows", "columns", "sums", "size", "shape", "by")
    }
    graph.initializer.extend(
        numpy_helper.from_array(one.astype(np.int64), names[name]) for name, one in constants.items()
    )
    if not is_transposed:
        graph.node.append(helper.make_node("Transpose", [weights], [names["by"]], perm=[1, 0]))
    graph.node.extend(
        [
            helper.make_node("TopK", [LOGITS, names["count"]], [names["scores"], CLASSES], axis=1),
            helper.make_node("Gather", [weights if is_transposed else names["by"], CLASSES], [names["rows"]], axis=0),
            helper.make_node("Reshape", [maps, names["flat"]], [names["columns"]]),
            helper.make_node("MatMul", [names["rows"], names["columns"]], [names["sums"]]),
            helper.make_node("Shape", [maps], [names["size"]], start=2, end=4),
            helper.make_node("Concat", [names["restored"], names["size"]], [names["shape"]], axis=0),
            helper.make_node("Reshape", [names["sums"], names["shape"]], [MAPS]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(CLASSES, TensorProto.INT64, ["N", count]))
    graph.output.append(helper.make_tensor_value_info(MAPS, TensorProto.FLOAT, ["N", count, "H", "W"]))
    return True


def _find_maps_and_weights(model: ModelProto) -> tuple[str, str, bool] | None:
    """Return the last feature maps, the weights of the dense layer, and whether these are (K, C) rather than (C, K)."""
    made_by = {output: node for node in model.graph.node for output in node.output}

    def origin(name: str, kinds: set[str]) -> str:
        while name in made_by and made_by[name].op_type in kinds:
            name = made_by[name].input[0]
        return name

    dense = made_by.get(origin(LOGITS, _ROUNDED))
    if dense is not None and dense.op_type == "Add":
        dense = made_by.get(origin(dense.input[0], _ROUNDED))
    if dense is None or dense.op_type not in ("Gemm", "MatMul"):
        return None
    settings = {one.name: helper.get_attribute_value(one) for one in dense.attribute}
    if settings.get("alpha", 1.0) != 1.0 or settings.get("transA", 0):
        return None
    pooling = made_by.get(origin(dense.input[0], _SAME_VALUES | _ROUNDED))
    if pooling is None or not _averages_positions(model, pooling):
        return None
    return pooling.input[0], dense.input[1], bool(settings.get("transB", 0))


def _averages_positions(model: ModelProto, node: NodeProto) -> bool:
    """Return whether `node` averages (N, C, H, W) over H and W."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "ReduceMean" and len(node.input) == 2:
        constants = {one.name: numpy_helper.to_array(one).tolist() for one in model.graph.initializer}
        return sorted(constants.get(node.input[1], ())) in ([2, 3], [-2, -1])
    if node.op_type != "AveragePool":
        return False
    settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    known = {one.name: one.type.tensor_type.shape.dim for one in infer_shapes(model).graph.value_info}
    size = [one.dim_value for one in known.get(node.input[0], ())][2:]
    return size == list(settings["kernel_shape"]) and not any(settings.get("pads", ()))
