"""A classifier as one HTML page that works offline: its network, ONNX Runtime Web, and what shows the answers."""

import base64
import gzip
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from markupsafe import Markup
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.image_io import PIXEL_LIMIT
from svertka.errors import ExportMismatchError, UsageError
from svertka.exporters.class_activation_maps import CLASSES, append_class_activation_maps
from svertka.exporters.int8_onnx import KEPT, LEAST_AGREEMENT, measure_agreement
from svertka.exporters.integer_weights import store_weights_in_int8, store_weights_in_int16
from svertka.exporters.onnx import (
    IMAGES,
    LOGITS,
    NUMBERS,
    PROBABILITIES,
    UNKNOWN,
    UNKNOWN_SCORE,
    append_threshold,
    check_scores,
    copy_float_network,
    copy_with_score,
    make_prediction_nodes,
    open_session,
    trace_with_score,
    write_metadata,
)
from svertka.files import format_bytes
from svertka.pages.html_page import render_page
from svertka.pages.number_format import count_with_noun
from svertka.pages.templates import render_template
from svertka.tasks import MultiLabel, Regression
from svertka.unknown_score import ScoredNetwork

MAX_BYTES = 20_000_000  # of a page
TOLERANCE = 1e-3  # of a probability, or of a number in standard deviations
SCORE_TOLERANCE = 0.5  # of an unknown score, whose features have rounded weights; standard deviations
SHOWN_CLASSES = 5  # on the page, for each image
MAX_PIXELATED_SIZE = 64  # side in pixels up to which the page shows the pixels

RUNTIME_VERSION = "1.30.0"
_RUNTIME = ("vendor", "onnxruntime-web")
_EXPORTS = re.compile(r"export\{(?P<names>[^}]*)\};\s*(//# sourceMappingURL=\S+\s*)?$")


def convert_for_page(classifier: Classifier, precision: str) -> ModelProto:
    """Return the float network of `classifier` as the ONNX model of a page.

    Args:
        classifier: The classifier.
        precision: "int16", "int8" or "fp32", of the weights.

    Raises:
        ExportMismatchError: PyTorch's exporter does not support the network.
    """
    model = trace_with_score(classifier)
    _complete_for_page(model, classifier)
    if precision == "int16":
        store_weights_in_int16(model)
    if precision == "int8":
        store_weights_in_int8(model)
    return model


def _complete_for_page(model: ModelProto, classifier: Classifier) -> None:
    """Replace the output `logits` of `model` by `probabilities`, or by `numbers`, and add others, in place.

    `classes` and `maps` are class activation maps, where they exist; `unknown`, where `model` has an unknown score, is
    whether it exceeds the threshold.
    """
    append_class_activation_maps(model, min(SHOWN_CLASSES, len(classifier.names)))
    graph = model.graph
    nodes, predicted = make_prediction_nodes(classifier.task)
    graph.node.extend(nodes)
    gives_score = any(output.name == UNKNOWN_SCORE for output in graph.output)
    others = [output for output in graph.output if output.name not in (LOGITS, UNKNOWN_SCORE)]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(predicted, TensorProto.FLOAT, ["N", len(classifier.names)]))
    graph.output.extend(others)
    if gives_score and classifier.calibration is not None:
        append_threshold(model, classifier.calibration.threshold)
    write_metadata(model, classifier, preprocessing=False)
    onnx.checker.check_model(model)


@dataclass(frozen=True)
class PageCheck:
    """How a page's network compares with the original.

    Attributes:
        images: Images on which they were compared.
        difference: The largest difference of a probability, or of a number in standard deviations.
        agreement: The share of the images that keep their class, labels or number.
        task: The kind of the task.
    """

    images: int
    difference: float
    agreement: float
    task: str

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        return f"{self.within}, {self.agreement:.1%} {KEPT[self.task]} of the network"

    @property
    def within(self) -> str:
        """The largest difference in words."""
        text = format_difference(self.difference)
        return (
            f"numbers within {text} standard deviations"
            if self.task == "regression"
            else f"probabilities within {text}"
        )


def check_page_model(model: ModelProto, classifier: Classifier, images: Tensor, precision: str) -> PageCheck:
    """Compare `model` with `classifier` on preprocessed `images`, (N, C, H, W) float32.

    Raises:
        ExportMismatchError: A probability, or a number in standard deviations, differs by more than `TOLERANCE`, or an
            unknown score differs. In "int8": fewer than `LEAST_AGREEMENT` of the images keep their class, labels or
            number, or whether they are unknown.
    """
    session = open_session(model)
    network, task = copy_float_network(classifier), classifier.task
    names = {output.name for output in session.get_outputs()}
    outputs = [name for name in (PROBABILITIES, NUMBERS, UNKNOWN_SCORE, UNKNOWN) if name in names]
    scored = copy_with_score(network, classifier) if UNKNOWN in outputs else None
    unit, what = (task.std, "number") if isinstance(task, Regression) else (1.0, "probability")
    largest, kept, same_unknown = 0.0, 0.0, 0
    for image in torch.split(images, 1):
        with torch.inference_mode():
            wanted = task.activate(network(image))
        values, *unknown = session.run(outputs, {IMAGES: image.numpy()})
        found = torch.from_numpy(values)
        difference = float((found - wanted).abs().max()) / unit
        if not np.isfinite(difference) or (precision != "int8" and difference > TOLERANCE):
            raise ExportMismatchError(
                f"a {what} of ONNX Runtime {onnxruntime.__version__} differs by {difference:.2g}"
                f"{' standard deviations' if what == 'number' else ''}, more than {TOLERANCE:g}; no file "
                "was written; use --precision fp32, whose weights are not rounded"
            )
        largest, kept = max(largest, difference), kept + measure_agreement(task, found, wanted)
        if scored is not None and precision != "int8":
            check_scores(unknown[0], scored, image, SCORE_TOLERANCE)
        same_unknown += scored is None or precision != "int8" or unknown[1][0] == _is_unknown(classifier, scored, image)
    agreement = min(kept, same_unknown) / len(images)
    if precision == "int8" and agreement < LEAST_AGREEMENT:
        words = KEPT[task.kind] if kept <= same_unknown else "are called known or unknown as by that"
        raise ExportMismatchError(
            f"with weights in int8 only {agreement:.1%} of {count_with_noun(len(images), 'image')} {words} of the "
            f"network, less than {LEAST_AGREEMENT:.0%}; no file was written; use --precision int16"
        )
    return PageCheck(len(images), largest, kept / len(images), task.kind)


@torch.inference_mode()
def _is_unknown(classifier: Classifier, scored: ScoredNetwork, image: Tensor) -> bool:
    assert classifier.calibration is not None
    return float(scored.logits_and_scores(image)[1]) > classifier.calibration.threshold


def require_page_support(classifier: Classifier) -> None:
    """Raise UsageError unless `classifier` reads images that browsers can read."""
    if (bands := classifier.preprocess.bands) is not None:
        raise UsageError(
            f"{classifier.origin} reads images of {bands.describe()}, which browsers cannot read; export it with --to "
            "model.onnx, or use svertka serve"
        )
    if classifier.preprocess.intensity_range is not None:
        raise UsageError(
            f"{classifier.origin} reads 16-bit images, of which browsers give pages 8 bits; export it with --to "
            "model.onnx"
        )


def render_classifier_page(
    classifier: Classifier, model: ModelProto, precision: str, check: PageCheck | None = None
) -> bytes:
    """Return the page as UTF-8.

    Args:
        classifier: The classifier.
        model: Its network, made by `convert_for_page`.
        precision: "int16", "fp32" or "int8".
        check: What `check_page_model` returned, which a page in "int8" shows.

    Raises:
        UsageError: The page would have more than `MAX_BYTES`.
    """
    folder = files("svertka.pages").joinpath(*_RUNTIME)
    network = _encode(gzip.compress(model.SerializeToString(), mtime=0))
    program = _encode(folder.joinpath("ort-wasm-simd-threaded.wasm.gz").read_bytes())
    has_maps = any(output.name == CLASSES for output in model.graph.output)
    known, size = len(classifier.names), classifier.preprocess.size
    classes = classifier.task.describe_names(classifier.names)
    if classifier.task.is_single_label:
        classes = count_with_noun(known, "class") if known == 1 else f"{known:,} classes"
    body = render_template(
        "classifier.html",
        sentence=f"{classifier.config.model}: {classes}. It sees a picture at {size}×{size} pixels.",
        note=_describe_int8(check) if check is not None and precision == "int8" else None,
        facts={
            "names": classifier.names,
            "task": _describe_task(classifier),
            "shown": min(SHOWN_CLASSES, known),
            "hasMaps": has_maps,
            "isPixelated": size <= MAX_PIXELATED_SIZE,
            "settings": _describe_preprocessing(classifier),
            "worker": _make_worker(folder),
        },
        program=Markup(program),
        network=Markup(network),
        version=RUNTIME_VERSION,
        license=folder.joinpath("LICENSE").read_text("utf-8"),
    )
    page = render_page(f"{classifier.config.model} – svertka", body, kind="classifier", computes=True).encode()
    if len(page) > MAX_BYTES:
        smaller = {"fp32": "int16 or int8", "int16": "int8"}.get(precision)
        advice = f"use --precision {smaller}, or a smaller network" if smaller else "use a smaller network"
        raise UsageError(
            f"the page would have {format_bytes(len(page))}, of which the network in {precision} takes "
            f"{format_bytes(len(network))}, more than the limit of {format_bytes(MAX_BYTES)}; {advice}"
        )
    return page


def _describe_int8(check: PageCheck) -> str:
    return (
        "The weights of this page have 8 bits, so its answers are not exactly those of the original network: on "
        f"{count_with_noun(check.images, 'picture')}, {check.within}, and {check.agreement:.1%} {KEPT[check.task]}."
    )


def format_difference(difference: float) -> str:
    """Format a difference of probabilities, rounded up to two significant digits: 0.061 or 1.3e-07."""
    if difference == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(difference)) - 1)
    return f"{math.ceil(difference / step) * step:.2g}"


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _describe_task(classifier: Classifier) -> dict[str, Any]:
    """Return the kind of the task, and the threshold of each label."""
    task = classifier.task
    if not isinstance(task, MultiLabel):
        return {"kind": task.kind}
    return {"kind": task.kind, "thresholds": [task.threshold(label) for label in range(len(classifier.names))]}


def _describe_preprocessing(classifier: Classifier) -> dict[str, Any]:
    """Return the settings of the worker; the values are those of `Preprocess.standardize`, rounded to float32."""
    preprocess = classifier.preprocess
    mean = np.array(preprocess.mean, np.float32) * np.float32(255)
    scale = np.float32(1) / (np.array(preprocess.std, np.float32) * np.float32(255))
    return {
        "size": preprocess.size,
        "resize": preprocess.resize,
        "fit": preprocess.fit,
        "interpolation": preprocess.interpolation,
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "pixelLimit": PIXEL_LIMIT,
    }


def _make_worker(folder: Traversable) -> str:
    """Return the source of the worker: ONNX Runtime as a classic script, followed by svertka's own.

    Browsers start no module as a worker from a page on disk.
    """
    source = folder.joinpath("ort.wasm.bundle.min.mjs").read_text("utf-8")
    found = _EXPORTS.search(source)
    assert found is not None, "ONNX Runtime Web ends in its exports"
    pairs = (pair.split(" as ") for pair in found["names"].split(","))
    exported = ",".join(f"{public}:{local}" for local, public in pairs)
    classic = source[: found.start()].replace("import.meta.url", "location.href")
    own = files("svertka.pages").joinpath("static", "classifier-worker.js").read_text("utf-8")
    return f'"use strict";\n{classic}const ort={{{exported}}};\n{own}'
