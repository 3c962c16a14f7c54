"""A network in 8 bits as an ONNX model in QDQ form, calibrated as `optimize` does, and its check in ONNX Runtime."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.compiler.activation_ranges import observe_activations
from svertka.compiler.calibration_batches import CalibrationBatches
from svertka.compiler.capture_and_fuse import capture_and_fuse, explain_constants
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.packing import separate_shared_weights
from svertka.compiler.quantization import quantize_network, unfuse_gates
from svertka.compiler.reference import run_reference
from svertka.data.dataset import Pixels
from svertka.data.rgb_conversion import shades_to_16_bit
from svertka.errors import ExportMismatchError, UsageError
from svertka.evaluation.run_images import spread_evenly
from svertka.exporters.onnx import IMAGES, PICTURES, complete_model, copy_float_network, open_session, trace_network
from svertka.exporters.qdq_steps import make_qdq_steps, quantize_results, separate_epilogues
from svertka.pages.number_format import count_with_noun
from svertka.tasks import AnyTask, MultiLabel, Regression

LEAST_AGREEMENT = 0.9  # share of the images that must keep their class, or of their labels, or of their numbers
SAME_NUMBER = 0.1  # standard deviations by which a number that is kept may change
KEPT = {
    "single-label": "keep the class",
    "multi-label": "keep the labels",
    "regression": f"keep, to {SAME_NUMBER:g} standard deviations, the number",
}
CHECKED_IMAGES = 100  # of the calibration images, at most
BATCH = 16  # images that are run at a time


@dataclass(frozen=True)
class Int8Check:
    """How an int8 file agrees with the float network and with svertka.

    Attributes:
        images: Images on which it was run.
        float_agreement: The share of them that keep the class of the float network in ONNX Runtime; of several labels,
            the share of all their labels.
        own_agreement: The share of them to which svertka's run of the same int8 network gives the same class.
        int8_layers: The convolutions and dense layers in int8.
        layers: All convolutions and dense layers.
        task: The kind of the task.
    """

    images: int
    float_agreement: float
    own_agreement: float
    int8_layers: int
    layers: int
    task: str = "single-label"

    @property
    def sentence(self) -> str:
        """The agreement in words."""
        return (
            f"{self.int8_layers} of {count_with_noun(self.layers, 'layer')} int8; checked in ONNX Runtime on "
            f"{count_with_noun(self.images, 'image')}: {self.float_agreement:.1%} {KEPT[self.task]} of the float "
            "network"
        )


def convert_to_int8_onnx(
    classifier: Classifier,
    images: Tensor,
    *,
    checked: Tensor,
    float_layers: Container[str] = (),
    preprocessing: bool = False,
    pictures: Sequence[Pixels] = (),
) -> tuple[ModelProto, Int8Check]:
    """Return `classifier` as an ONNX model with int8 layers, and its check.

    Weights are int8 with one scale for each output channel, feature maps uint8 with one scale and zero point, biases
    int32. Input, output and metadata are those of `convert_to_onnx`.

    Args:
        classifier: The classifier.
        images: Calibration images, (N, C, H, W) float32.
        checked: Images on which the model is checked, of the same kind; at most `CHECKED_IMAGES` are run.
        float_layers: Paths of the modules of layers that stay float32.
        preprocessing: Whether the model includes the preprocessing.
        pictures: With preprocessing, images of any size to check it on, (H, W, 3) uint8 RGB.

    Raises:
        ExportMismatchError: Too many images get another class in ONNX Runtime.
        UsageError: The network cannot be captured or quantized, or images have non-finite values.
    """
    network = copy_float_network(classifier)
    name = classifier.config.model
    with explain_constants(network), torch.no_grad():
        quantized = _quantize(network, name, images, float_layers)
    model = trace_network(_QdqModule(make_qdq_steps(quantized)).eval(), classifier)
    chosen = spread_evenly(len(checked), CHECKED_IMAGES)
    session = open_session(model)
    check = _check(session, network, quantized, checked[chosen], classifier.task)
    complete_model(model, classifier, preprocessing=preprocessing)
    if preprocessing:
        _check_preprocessing(session, open_session(model), classifier, pictures)
    return model, check


def _quantize(network: nn.Module, name: str, images: Tensor, float_layers: Container[str]) -> FusedNetwork:
    """Return the quantized network; the values that ONNX operators exchange have 8 bits, too."""
    fused, _ = capture_and_fuse(network, images[:1].expand(2, -1, -1, -1))
    if fused.batch_size is not None:
        raise UsageError(f"{name} computes something else for each batch size, so there is no int8 file; use fp32")
    fused = separate_shared_weights(fused)
    convolutions = [step for step in fused.steps if isinstance(step, FusedConvolution)]
    layers = {step.result for step in convolutions if step.place not in float_layers}
    fused, layers = separate_epilogues(unfuse_gates(fused, layers), layers)
    (observed,) = observe_activations([fused], CalibrationBatches(images, tuple(images.shape[1:]), None))
    quantized = quantize_results(quantize_network(fused, observed, layers), observed)
    if not quantized.quantizations:
        kept = any(step.place in float_layers for step in convolutions)
        reason = "stays float in the optimized network of the run" if kept else "has no layer that int8 supports"
        raise UsageError(f"{name} {reason}; export it in fp32")
    return quantized


class _QdqModule(nn.Module):
    """A module that runs QDQ steps; its buffers are their tensors, which the exporter then names."""

    def __init__(self, fused: FusedNetwork) -> None:
        super().__init__()
        self._fused = fused
        self._names = {name: name.replace(".", "_") for name in fused.tensors}
        for name, tensor in fused.tensors.items():
            self.register_buffer(self._names[name], tensor)

    def forward(self, x: Tensor) -> Any:
        tensors = {name: getattr(self, own) for name, own in self._names.items()}
        return run_reference(replace(self._fused, tensors=tensors), tensors.__getitem__, x)


@torch.inference_mode()
def _check(
    session: onnxruntime.InferenceSession, network: nn.Module, quantized: FusedNetwork, images: Tensor, task: AnyTask
) -> Int8Check:
    """Return how the predictions for `images` in ONNX Runtime agree with those in svertka.

    Raises:
        ExportMismatchError: Too many differ.
    """
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "float": network,
        "own": lambda some: run_reference(quantized, quantized.tensors.__getitem__, some),
        "file": lambda some: torch.from_numpy(session.run(None, {IMAGES: some.numpy()})[0]),
    }
    scores = {name: torch.cat([run(some) for some in torch.split(images, BATCH)]) for name, run in runs.items()}
    predicted = {name: task.activate(some.float()) for name, some in scores.items()}
    of_float, own = (measure_agreement(task, predicted["file"], predicted[name]) for name in ("float", "own"))
    if not bool(scores["file"].isfinite().all()) or min(of_float, own) < LEAST_AGREEMENT:
        raise ExportMismatchError(
            f"in int8 only {of_float:.1%} of {count_with_noun(len(images), 'image')} {KEPT[task.kind]} of the "
            f"float network in ONNX Runtime {onnxruntime.__version__} ({own:.1%} that of the same int8 network in "
            f"svertka), less than {LEAST_AGREEMENT:.0%}; no file was written; give more calibration images, keep "
            "layers in float with `svertka optimize --precision auto`, or export in fp32"
        )
    layers = [step for step in quantized.steps if isinstance(step, FusedConvolution)]
    in_int8 = sum(step.weight_scale is not None for step in layers)
    return Int8Check(len(images), of_float, own, in_int8, len(layers), task.kind)


def measure_agreement(task: AnyTask, found: Tensor, wanted: Tensor) -> float:
    """Return the share of images of the same class, or number, or the share of labels that are predicted for both.

    Args:
        task: The task.
        found: Probabilities (N, K), or numbers (N, 1).
        wanted: The same of another run.
    """
    if isinstance(task, MultiLabel):
        thresholds = torch.tensor([task.threshold(label) for label in range(found.shape[1])])
        same = (found >= thresholds) == (wanted >= thresholds)
    elif isinstance(task, Regression):
        same = (found - wanted).abs() <= SAME_NUMBER * task.std
    else:
        same = found.argmax(1) == wanted.argmax(1)
    return float(same.double().mean())


def _check_preprocessing(
    inner: onnxruntime.InferenceSession,
    whole: onnxruntime.InferenceSession,
    classifier: Classifier,
    pictures: Sequence[Pixels],
) -> None:
    """Raise ExportMismatchError unless the preprocessing of the file leads to the predictions of svertka's."""
    same, task = 0.0, classifier.task
    for picture in pictures:
        values = shades_to_16_bit(picture, classifier.preprocess.intensity_range)
        (found,) = whole.run(None, {PICTURES: values[None]})
        (wanted,) = inner.run(None, {IMAGES: classifier.preprocess(picture)[None].numpy()})
        same += measure_agreement(task, torch.from_numpy(found), task.activate(torch.from_numpy(wanted)))
    if same < LEAST_AGREEMENT * len(pictures):
        raise ExportMismatchError(
            f"with its own preprocessing, {same / len(pictures):.0%} of {count_with_noun(len(pictures), 'image')} "
            f"{KEPT[task.kind]} that svertka's preprocessing leads to, less than {LEAST_AGREEMENT:.0%}; no file was "
            "written; report it"
        )
