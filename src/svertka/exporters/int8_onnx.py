"""A network in 8 bits as an ONNX model in QDQ form, calibrated as `optimize` does, and its check in ONNX Runtime."""

import copy
from collections.abc import Container, Sequence
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
from svertka.errors import ExportMismatchError, UsageError
from svertka.evaluation.run_images import spread_evenly
from svertka.exporters.onnx import (
    IMAGES,
    PICTURES,
    LogitsAndScores,
    complete_model,
    copy_float_network,
    copy_with_score,
    open_session,
    trace_network,
)
from svertka.exporters.qdq_steps import make_qdq_steps, quantize_results, separate_epilogues
from svertka.pages.number_format import count_with_noun
from svertka.tasks import AnyTask, MultiLabel, Regression
from svertka.unknown_score import FeaturesAndLogits, LogitsTwice, ScoredNetwork, UnknownScore

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
        unknown_agreement: The share of them that are called unknown, or not, as by the float network; None if the file
            does not tell unknown images.
    """

    images: int
    float_agreement: float
    own_agreement: float
    int8_layers: int
    layers: int
    task: str = "single-label"
    unknown_agreement: float | None = None

    @property
    def sentence(self) -> str:
        """The agreement in words."""
        share = self.unknown_agreement
        unknown = "" if share is None else f", and {share:.1%} are called unknown or known as by it"
        return (
            f"{self.int8_layers} of {count_with_noun(self.layers, 'layer')} int8; checked in ONNX Runtime on "
            f"{count_with_noun(self.images, 'image')}: {self.float_agreement:.1%} {KEPT[self.task]} of the float "
            f"network{unknown}"
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
    int32. Input, output and metadata are those of `convert_to_onnx`. The unknown score is computed in float32, of the
    features and logits of the int8 network, and corrected by its mean difference on the calibration images.

    Args:
        classifier: The classifier.
        images: Calibration images, (N, C, H, W) float32.
        checked: Images on which the model is checked, of the same kind; at most `CHECKED_IMAGES` are run.
        float_layers: Paths of the modules of layers that stay float32.
        preprocessing: Whether the model includes the preprocessing.
        pictures: With preprocessing, images of any size to check it on, (H, W, 3) uint8 RGB.

    Raises:
        ExportMismatchError: Too many images get another class in ONNX Runtime, or another answer whether they are
            unknown.
        UsageError: The network cannot be captured or quantized, or images have non-finite values.
    """
    network = copy_float_network(classifier)
    name = classifier.config.model
    scored = copy_with_score(network, classifier) if preprocessing else None
    captured = network if scored is None else scored.network
    with explain_constants(captured), torch.no_grad():
        quantized = _quantize(captured, name, images, float_layers)
    module: nn.Module = _QdqModule(make_qdq_steps(quantized)).eval()
    score = None if scored is None else _correct_mean_score(scored, quantized, images)
    if score is not None:
        module = LogitsAndScores(ScoredNetwork(module, score))
    model = trace_network(module, classifier)
    chosen = spread_evenly(len(checked), CHECKED_IMAGES)
    session = open_session(model)
    check = _check(session, classifier, scored or network, score, quantized, checked[chosen])
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
    is_part = isinstance(network, FeaturesAndLogits | LogitsTwice)  # whose modules are those of a network in a part
    places = {step.result: step.place.partition(".")[2] if is_part else step.place for step in convolutions}
    layers = {result for result, place in places.items() if place not in float_layers}
    fused, layers = separate_epilogues(unfuse_gates(fused, layers), layers)
    (observed,) = observe_activations([fused], CalibrationBatches(images, tuple(images.shape[1:]), None))
    quantized = quantize_results(quantize_network(fused, observed, layers), observed)
    if not quantized.quantizations:
        kept = any(place in float_layers for place in places.values())
        reason = "stays float in the optimized network of the run" if kept else "has no layer that int8 supports"
        raise UsageError(f"{name} {reason}; export it in fp32")
    return quantized


@torch.inference_mode()
def _correct_mean_score(scored: ScoredNetwork, quantized: FusedNetwork, images: Tensor) -> UnknownScore:
    """Return the score whose mean on calibration images is that of the float network: rounding lengthens distances.

    Args:
        scored: The float network with its score.
        quantized: The int8 network, which returns features and logits.
        images: The calibration images, of which `CHECKED_IMAGES` are run.
    """
    score = copy.deepcopy(scored.score)
    differences = []
    for some in torch.split(images[spread_evenly(len(images), CHECKED_IMAGES)], BATCH):
        own = scored.score(*run_reference(quantized, quantized.tensors.__getitem__, some))
        differences.append(own - scored.logits_and_scores(some)[1])
    if score.method == "mahalanobis+energy":
        score.scale[0, 0] += torch.cat(differences).mean() * score.scale[0, 1]
    return score


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
    session: onnxruntime.InferenceSession,
    classifier: Classifier,
    network: nn.Module,
    score: UnknownScore | None,
    quantized: FusedNetwork,
    images: Tensor,
) -> Int8Check:
    """Return how the predictions for `images` in ONNX Runtime agree with those in svertka.

    Args:
        session: The file in ONNX Runtime.
        classifier: The classifier.
        network: Its float network, with an unknown score if the file has one.
        score: The unknown score of the file; None if it does not tell unknown images.
        quantized: The int8 network.
        images: Preprocessed images, (N, C, H, W).

    Raises:
        ExportMismatchError: Too many differ.
    """
    task = classifier.task

    def run_float(some: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(network, ScoredNetwork):
            return network.logits_and_scores(some)
        return network(some), torch.zeros(len(some))

    def run_own(some: Tensor) -> tuple[Tensor, Tensor]:
        found = run_reference(quantized, quantized.tensors.__getitem__, some)
        return (found, torch.zeros(len(some))) if score is None else (found[1], score(*found))

    def run_file(some: Tensor) -> tuple[Tensor, Tensor]:
        logits, *scores = map(torch.from_numpy, session.run(None, {IMAGES: some.numpy()}))
        return logits, scores[0] if scores else torch.zeros(len(some))

    threshold = 0.0 if classifier.calibration is None else classifier.calibration.threshold
    logits, unknown = {}, {}
    for name, run in {"float": run_float, "own": run_own, "file": run_file}.items():
        found = [run(some) for some in torch.split(images, BATCH)]
        logits[name], unknown[name] = (torch.cat(some) for some in zip(*found, strict=True))
        unknown[name] = unknown[name] > threshold
    predicted = {name: task.activate(some.float()) for name, some in logits.items()}
    of_float, own = (measure_agreement(task, predicted["file"], predicted[name]) for name in ("float", "own"))
    same_float, same_own = (float((unknown["file"] == unknown[one]).double().mean()) for one in ("float", "own"))
    advice = (
        f"less than {LEAST_AGREEMENT:.0%}; no file was written; give more calibration images, keep layers in float "
        "with `svertka optimize --precision auto`, or export in fp32"
    )
    in_words = f"of {count_with_noun(len(images), 'image')}"
    if not bool(logits["file"].isfinite().all()) or min(of_float, own) < LEAST_AGREEMENT:
        raise ExportMismatchError(
            f"in int8 only {of_float:.1%} {in_words} {KEPT[task.kind]} of the float network in ONNX Runtime "
            f"{onnxruntime.__version__} ({own:.1%} that of the same int8 network in svertka), {advice}"
        )
    if min(same_float, same_own) < LEAST_AGREEMENT:
        raise ExportMismatchError(
            f"in int8 only {same_float:.1%} {in_words} are called unknown or known as by the float network "
            f"({same_own:.1%} as by the same int8 network in svertka), {advice}, or without preprocessing"
        )
    layers = [step for step in quantized.steps if isinstance(step, FusedConvolution)]
    in_int8 = sum(step.weight_scale is not None for step in layers)
    of_unknown = None if score is None else same_float
    return Int8Check(len(images), of_float, own, in_int8, len(layers), task.kind, of_unknown)


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
        values = classifier.preprocess.to_file_values(picture)
        found, *_ = whole.run(None, {PICTURES: values[None]})
        wanted, *_ = inner.run(None, {IMAGES: classifier.preprocess(values)[None].numpy()})
        same += measure_agreement(task, torch.from_numpy(found), task.activate(torch.from_numpy(wanted)))
    if same < LEAST_AGREEMENT * len(pictures):
        raise ExportMismatchError(
            f"with its own preprocessing, {same / len(pictures):.0%} of {count_with_noun(len(pictures), 'image')} "
            f"{KEPT[task.kind]} that svertka's preprocessing leads to, less than {LEAST_AGREEMENT:.0%}; no file was "
            "written; report it"
        )
