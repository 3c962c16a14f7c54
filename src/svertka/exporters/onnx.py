"""Export to ONNX, with metadata, and a comparison with the original in ONNX Runtime."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import onnxscript  # noqa: F401 - in which PyTorch's exporter is written
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.conv.accelerate import restore
from svertka.data.dataset import Pixels
from svertka.errors import ExportMismatchError
from svertka.exporters.onnx_preprocess import PreprocessingGraph
from svertka.graph.network_copy import copy_network
from svertka.package_version import VERSION
from svertka.tasks import AnyTask, MultiLabel, Regression
from svertka.text_width import shorten
from svertka.unknown_score import ScoredNetwork, add_unknown_score

IMAGES, LOGITS = "images", "logits"  # without preprocessing
PICTURES, PROBABILITIES, NUMBERS = "pictures", "probabilities", "numbers"  # with preprocessing
UNKNOWN_SCORE, UNKNOWN = "unknown_score", "unknown"  # with preprocessing, of a calibrated classifier
LOGIT_TOLERANCE = 1e-4  # relative to the largest logit of an image, at least 1: float32 sums in another order
# With preprocessing, whose pixels are the same (`onnx_preprocess`): float32 sums in another order.
PROBABILITY_TOLERANCE = 1e-3
SCORE_TOLERANCE = 0.1  # standard deviations of validation images
BATCH = 8  # images that are checked together
MAX_REASON = 300  # characters of an error of PyTorch's exporter


def convert_to_onnx(classifier: Classifier, *, preprocessing: bool = False) -> ModelProto:
    """Return `classifier` as an ONNX model in float32.

    It maps `images`, (N, C, size, size) float32, to `logits`, (N, K). With `preprocessing` it maps `pictures`,
    (N, H, W, 3) RGB or (N, H, W, C) of bands, of any size, to `probabilities`, (N, K); they are uint8, or uint16 if
    the classifier has an intensity range, or of the type of the bands. A network of a number then computes `numbers`,
    (N, 1). If the classifier is calibrated, two more outputs follow `probabilities`: `unknown_score`, (N,) float32, and
    `unknown`, (N,) bool, whether the score exceeds the threshold. The metadata has `names`, `preprocess` and, unless
    images have one class, `task` as JSON, `model`, and `input`, a sentence; and `unknown_threshold` with these outputs.
    """
    model = trace_with_score(classifier) if preprocessing else trace_network(copy_float_network(classifier), classifier)
    return complete_model(model, classifier, preprocessing=preprocessing)


def copy_float_network(classifier: Classifier) -> nn.Module:
    """Return a copy of the network, float32 on the CPU, in inference mode and with PyTorch's convolutions."""
    return restore(copy_network(classifier.network)).cpu().float().eval()


def trace_with_score(classifier: Classifier) -> ModelProto:
    """Return the float network as `trace_network` does, with the output `unknown_score` if it is calibrated.

    Raises:
        ExportMismatchError: PyTorch's exporter does not support the network.
    """
    network = copy_float_network(classifier)
    scored = copy_with_score(network, classifier)
    return trace_network(network if scored is None else LogitsAndScores(scored), classifier)


def trace_network(network: nn.Module, classifier: Classifier) -> ModelProto:
    """Return `network`, which takes the images of `classifier`, as an ONNX model without metadata.

    Raises:
        ExportMismatchError: PyTorch's exporter does not support the network.
    """
    preprocess = classifier.preprocess
    example = torch.zeros(2, preprocess.channels, preprocess.size, preprocess.size)
    try:
        with _silence_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[IMAGES],
                output_names=[LOGITS, UNKNOWN_SCORE] if isinstance(network, LogitsAndScores) else [LOGITS],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ExportMismatchError(
            f"PyTorch cannot export {classifier.config.model} to ONNX: {shorten(reason, MAX_REASON)}"
        ) from error
    assert program is not None  # None only if it wrote a file
    model: ModelProto = program.model_proto
    _remove_source_locations(model)
    return model


def complete_model(model: ModelProto, classifier: Classifier, *, preprocessing: bool) -> ModelProto:
    """Add metadata, and the preprocessing if wanted, to a traced `model`, and return it."""
    gives_score = any(output.name == UNKNOWN_SCORE for output in model.graph.output)
    if preprocessing:
        _prepend_preprocessing(model, PreprocessingGraph(classifier.preprocess, PICTURES, IMAGES), classifier.task)
    if gives_score and classifier.calibration is not None:
        append_threshold(model, classifier.calibration.threshold)
    write_metadata(model, classifier, preprocessing=preprocessing)
    onnx.checker.check_model(model)
    return model


def write_metadata(model: ModelProto, classifier: Classifier, *, preprocessing: bool) -> None:
    """Write producer, class names, preprocessing and a description of the input into the metadata of `model`."""
    model.producer_name, model.producer_version = "svertka", VERSION
    metadata = {
        "names": json.dumps(classifier.names),
        "preprocess": classifier.preprocess.model_dump_json(),
        "model": classifier.config.model,
        "input": _describe_input(classifier, preprocessing=preprocessing),
    }
    if not classifier.task.is_single_label:
        metadata["task"] = classifier.task.model_dump_json()
    if any(output.name == UNKNOWN for output in model.graph.output) and classifier.calibration is not None:
        metadata["unknown_threshold"] = repr(classifier.calibration.threshold)
    helper.set_model_props(model, metadata)


def check_onnx(model: ModelProto, classifier: Classifier, pictures: Sequence[Pixels]) -> float:
    """Compare `model` in ONNX Runtime with `classifier` on `pictures`, (H, W, 3) uint8 RGB.

    Returns:
        The largest difference: of probabilities with preprocessing, else of logits, relative to the largest logit of
        an image, at least 1.

    Raises:
        ExportMismatchError: The difference exceeds the tolerance, or a most probable class that leads by more changes;
            or an unknown score differs by more.
    """
    session = open_session(model)
    inside = session.get_inputs()[0].name == PICTURES
    tolerance = PROBABILITY_TOLERANCE if inside else LOGIT_TOLERANCE
    network = copy_float_network(classifier)
    gives_score = any(output.name == UNKNOWN for output in session.get_outputs())
    scored = copy_with_score(network, classifier) if gives_score else None
    largest = 0.0
    for some in _batches(pictures):
        values = [classifier.preprocess.to_file_values(picture) for picture in some]
        images = torch.stack([classifier.preprocess(one) for one in values])
        with torch.inference_mode():
            logits = network(images)
        if inside:
            wanted = classifier.task.activate(logits).numpy()
            twice = [np.stack([picture] * min(2, len(some))) for picture in values]  # alone and in a batch
            outputs = [session.run(None, {PICTURES: pair}) for pair in twice]
            found = np.concatenate([one[0][-1:] for one in outputs])
            unit = np.full(len(some), classifier.task.std if isinstance(classifier.task, Regression) else 1.0)
            if scored is not None:
                check_scores(np.array([one[1][-1] for one in outputs]), scored, images)
        else:
            wanted = logits.numpy()
            (found,) = session.run(None, {IMAGES: images.numpy()})
            unit = np.maximum(1, np.abs(wanted).max(1))
        differences = np.abs(found - wanted).max(1) / unit
        lost = wanted.max(1) - wanted[np.arange(len(wanted)), found.argmax(1)]
        if not (differences <= tolerance).all() or (lost > tolerance * unit).any():
            what = "probability" if inside else "logit"
            raise ExportMismatchError(
                f"a {what} of ONNX Runtime {onnxruntime.__version__} differs by {differences.max():.2g}, more than "
                f"{tolerance:g}; no file was written; report it with the versions of torch "
                f"({torch.__version__}) and onnx ({onnx.__version__})"
            )
        largest = max(largest, float(differences.max()))
    return largest


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime that runs `model` on the CPU."""
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class LogitsAndScores(nn.Module):
    """A network with an unknown score, whose forward pass returns both."""

    def __init__(self, scored: ScoredNetwork) -> None:
        super().__init__()
        self.scored = scored

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and unknown scores (N,) of images (N, C, H, W)."""
        return self.scored.logits_and_scores(images)


def copy_with_score(network: nn.Module, classifier: Classifier) -> ScoredNetwork | None:
    """Return `network`, a copy of that of `classifier`, with its unknown score; None without a calibration."""
    if classifier.calibration is None:
        return None
    shape = classifier.preprocess.input_shape
    return add_unknown_score(network, classifier.model, shape, copy.deepcopy(classifier.calibration.score).cpu())


def append_threshold(model: ModelProto, threshold: float) -> None:
    """Add the outputs `unknown_score` and `unknown` to a model that computes the former."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(threshold, np.float32), "unknown_threshold"))
    graph.node.append(helper.make_node("Greater", [UNKNOWN_SCORE, "unknown_threshold"], [UNKNOWN]))
    graph.output.append(helper.make_tensor_value_info(UNKNOWN_SCORE, TensorProto.FLOAT, ["N"]))
    graph.output.append(helper.make_tensor_value_info(UNKNOWN, TensorProto.BOOL, ["N"]))


@torch.inference_mode()
def check_scores(
    found: npt.NDArray[np.float32], scored: ScoredNetwork, images: Tensor, tolerance: float = SCORE_TOLERANCE
) -> None:
    """Raise ExportMismatchError if the unknown scores `found`, (N,), are not those of `images`, (N, C, H, W)."""
    wanted = scored.logits_and_scores(images)[1].numpy()
    difference = float(np.abs(found - wanted).max())
    if not difference <= tolerance:
        raise ExportMismatchError(
            f"an unknown score of ONNX Runtime {onnxruntime.__version__} differs by {difference:.2g}, more than "
            f"{tolerance:g}; no file was written; report it with the versions of torch ({torch.__version__}) and "
            f"onnx ({onnx.__version__})"
        )


def _batches(pictures: Sequence[Pixels]) -> Iterator[Sequence[Pixels]]:
    """Yield one image alone, then batches of BATCH, to test several batch sizes."""
    bounds = [0, 1, *range(1 + BATCH, len(pictures), BATCH), len(pictures)]
    yield from (pictures[first:last] for first, last in pairwise(bounds) if last > first)


def _remove_source_locations(model: ModelProto) -> None:
    """Remove the source locations of nodes, which take more bytes than the nodes."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]


def make_prediction_nodes(task: AnyTask) -> tuple[list[NodeProto], str]:
    """Return the nodes that make probabilities, or the number, of the output `logits`, and the name of their output."""
    if isinstance(task, Regression):
        scale = [helper.make_tensor(name, TensorProto.FLOAT, [], [getattr(task, name)]) for name in ("std", "mean")]
        constants = [helper.make_node("Constant", [], [f"target_{one.name}"], value=one) for one in scale]
        scaled = helper.make_node("Mul", [LOGITS, "target_std"], ["scaled"])
        return [*constants, scaled, helper.make_node("Add", ["scaled", "target_mean"], [NUMBERS])], NUMBERS
    if isinstance(task, MultiLabel):
        return [helper.make_node("Sigmoid", [LOGITS], [PROBABILITIES])], PROBABILITIES
    return [helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1)], PROBABILITIES


def _prepend_preprocessing(model: ModelProto, entry: PreprocessingGraph, task: AnyTask) -> None:
    """Put the preprocessing `entry` before the network, and after it what makes a prediction of its outputs."""
    graph = model.graph
    after, output = make_prediction_nodes(task)
    nodes = [*entry.nodes, *graph.node, *after]
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(entry.constants)
    graph.input.append(helper.make_tensor_value_info(PICTURES, entry.element_type, ["N", "H", "W", entry.channels]))
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes]))


def _describe_input(classifier: Classifier, *, preprocessing: bool) -> str:
    one = classifier.preprocess
    if preprocessing:
        if one.bands is not None:
            return (
                f"pictures: (N, H, W, {one.channels}) {one.bands.dtype}, the bands as in the training images, upright, "
                "of any size; all N of the same"
            )
        known = one.deep_range
        bits = "uint8" if known is None else f"uint16 ({known[0]} is black, {known[1]} white)"
        return f"pictures: (N, H, W, 3) {bits}, RGB, upright, of any size; all N of the same"
    scaled = "" if one.bands is None else ", to which the ranges of the metadata map the values"
    return (
        f"images: (N, {one.channels}, {one.size}, {one.size}) float32, {one.color}: {one.describe()}, "
        f"(x / 255 - mean) / std of bytes x{scaled}"
    )


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the logs and warnings of PyTorch's exporter during the body."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
