"""An int8 file in ONNX Runtime against svertka's own run of the same numbers, and what its nodes hold."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svertka.classifier import Classifier, Config
from svertka.compiler.optimize import optimize
from svertka.data.preprocessing import Preprocess
from svertka.errors import ExportMismatchError, UsageError

pytest.importorskip("onnx")
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from svertka.exporters import int8_onnx
from svertka.exporters.int8_onnx import Int8Check, convert_to_int8_onnx

SIZE = 24


class Block(nn.Module):
    """Each kind of epilogue and of map that layers exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)  # there is no 8-bit kernel for it
        self.wide = nn.Conv2d(16, 24, 5, stride=2, padding=(2, 1), dilation=1)
        self.last = nn.Conv2d(40, 8, 3, padding=1)
        self.dense = nn.Linear(8 * 6 * 6, 20)
        self.scores = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = nn.functional.relu6(self.first(x))
        x = nn.functional.silu(self.depthwise(shortcut))
        x = x + nn.functional.hardswish(self.grouped(x))
        x = torch.relu(self.point(x) + shortcut)
        parts = [nn.functional.max_pool2d(x, 2), nn.functional.pad(self.wide(x).relu(), (0, 1))]
        x = nn.functional.leaky_relu(self.last(torch.cat(parts, 1)), 0.1)
        return self.scores(torch.relu(self.dense(x.flatten(1))))


def classifier_of(network: nn.Module, classes: int = 4) -> Classifier:
    preprocess = Preprocess(size=SIZE, resize=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)
    config = Config(model="mlp", names=tuple("abcdefgh"[:classes]), preprocess=preprocess)
    return Classifier(network.eval(), config)


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def converted(network: nn.Module, images: Tensor, **settings: object) -> tuple[ModelProto, Int8Check]:
    return convert_to_int8_onnx(classifier_of(network), images, checked=images, **settings)  # type: ignore[arg-type]


@pytest.fixture
def _any_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks have scores that nearly tie."""
    monkeypatch.setattr(int8_onnx, "LEAST_AGREEMENT", 0.0)


def scores_of(model: ModelProto, images: Tensor, optimized: Path | None = None) -> Tensor:
    options = onnxruntime.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.std())


@pytest.mark.usefixtures("_any_agreement")
def test_onnxruntime_computes_all_layers_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = Block(), images_of(20)
    model, check = converted(network, images)
    found = scores_of(model, images, tmp_path / "optimized.onnx")
    with torch.no_grad():
        assert relative_error(found, network(images)) < 0.05
    assert (check.int8_layers, check.layers) == (7, 8)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QGemm"], kinds["Conv"], kinds["Gemm"]) == (5, 2, 1, 0)
    assert kinds["QLinearAdd"] >= 1
    assert scores_of(model, images[:3]).shape == (3, 4)  # any batch


@pytest.mark.usefixtures("_any_agreement")
def test_openvino_gives_the_scores_of_onnxruntime_and_of_svertka(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is one of the peers of bench/requirements.txt")
    torch.manual_seed(0)
    network, images = Block(), images_of(100)
    model, _ = converted(network, images)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(images.numpy())[0])
    own = optimize(network, images[:1], precision="int8", calibration=images)(images)
    for other in (scores_of(model, images), own):
        assert relative_error(found, other) < 0.01
        assert relative_error(found, other.roll(1, 0)) > 0.1  # images are told apart
    steps = [one.get_rt_info() for one in compiled.get_runtime_model().get_ordered_ops()]
    kinds = Counter((one["layerType"].astype(str), one["runtimePrecision"].astype(str)) for one in steps)
    assert kinds["Convolution", "u8"] + kinds["Convolution", "i8"] == 5
    assert kinds["FullyConnected", "u8"] + kinds["FullyConnected", "i8"] == 2


@pytest.mark.usefixtures("_any_agreement")
def test_numbers_of_a_layer_are_those_of_the_definition() -> None:
    """Weights and biases against rounding in NumPy; the result against integer sums."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.Flatten(), nn.Linear(8 * 22 * 22, 4))
    images = images_of(8)
    model, _ = converted(network, images)
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    made = {output: node for node in model.graph.node for output in node.output}
    x, weight, bias = ([stored.get(name) for name in made[one].input] for one in conv.input)
    numbers, scales, zeros = weight
    own = network[0].weight.detach().numpy()
    assert (numbers.dtype, zeros.dtype, bias[0].dtype, x[2].dtype) == (np.int8, np.int8, np.int32, np.uint8)
    assert not zeros.any()
    np.testing.assert_allclose(scales, np.abs(own).max((1, 2, 3)) / 127, rtol=1e-6)
    np.testing.assert_array_equal(numbers, np.rint(own / scales[:, None, None, None]))
    np.testing.assert_allclose(bias[1], scales * x[1], rtol=1e-6)
    # The bias is corrected for the mean error of the weights, by less than half a step of them each.
    error = np.abs(bias[0] * bias[1] - network[0].bias.detach().numpy())
    assert (error <= 0.5 * scales * np.abs(images.numpy()).mean((0, 2, 3)).sum() * 9).all()


@pytest.mark.usefixtures("_any_agreement")
def test_a_bias_that_32_bits_do_not_hold_gets_a_coarser_scale() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 22 * 22, 4))
    with torch.no_grad():
        network[0].weight[2] *= 1e-12
        network[0].bias[2] = 1.0
    images = images_of(8)
    model, _ = converted(network, images)
    with torch.no_grad():
        assert relative_error(scores_of(model, images), network(images)) < 0.05


@pytest.mark.usefixtures("_any_agreement")
def test_layers_that_stay_float_are_float_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = images_of(8)
    model, check = converted(Block(), images, float_layers={"first", "dense"})
    assert (check.int8_layers, check.layers) == (5, 8)
    scores_of(model, images, tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] + kinds["QGemm"] == 5  # ONNX Runtime gives no other layer 8-bit weights
    with pytest.raises(UsageError, match="^mlp stays float in the optimized network of the run; export it in fp32"):
        converted(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)), images, float_layers={"1"})


def test_a_file_that_changes_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)), images_of(20)
    monkeypatch.setattr(int8_onnx, "open_session", lambda _: _Wrong())
    with pytest.raises(ExportMismatchError, match=r"^in int8 only \d+\.\d% of 20.images keep the class of the float "):
        converted(network, images)


class _Wrong:
    """A session whose results are those of another network."""

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        scores = np.zeros((len(inputs["images"]), 4), np.float32)
        scores[:, 1] = 1
        return [scores]


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="^mlp has no layer that int8 supports; export it in fp32$"):
        converted(nn.Sequential(nn.AvgPool2d(SIZE), nn.Flatten()), images_of(8))
