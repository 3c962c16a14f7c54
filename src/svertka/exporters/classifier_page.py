"""A classifier as one HTML page that works offline: its network, ONNX Runtime Web, and what shows the answers."""

import base64
import gzip
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from markupsafe import Markup
from onnx import ModelProto, TensorProto, helper

from svertka.classifier import Classifier
from svertka.data.dataset import Pixels
from svertka.data.image_io import PIXEL_LIMIT
from svertka.errors import ExportMismatchError, UsageError
from svertka.exporters.class_activation_maps import CLASSES, append_class_activation_maps
from svertka.exporters.int16_weights import store_weights_in_int16
from svertka.exporters.onnx import (
    IMAGES,
    LOGITS,
    NUMBERS,
    PROBABILITIES,
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
        precision: "int16" or "fp32", of the weights.

    Raises:
        ExportMismatchError: PyTorch's exporter does not support the network.
    """
    model = trace_with_score(classifier)
    complete_for_page(model, classifier)
    if precision == "int16":
        store_weights_in_int16(model)
    return model


def complete_for_page(model: ModelProto, classifier: Classifier) -> None:
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


def check_page_model(model: ModelProto, classifier: Classifier, pictures: Sequence[Pixels]) -> float:
    """Return the largest difference between `model` and `classifier` on `pictures`, (H, W, 3) uint8.

    It is that of a probability, or of a number in standard deviations of the training images.

    Raises:
        ExportMismatchError: It exceeds `TOLERANCE`, or an unknown score differs.
    """
    session = open_session(model)
    network = copy_float_network(classifier)
    gives_score = any(output.name == UNKNOWN_SCORE for output in session.get_outputs())
    scored = copy_with_score(network, classifier) if gives_score else None
    task = classifier.task
    (predicted,) = {PROBABILITIES, NUMBERS} & {output.name for output in session.get_outputs()}
    unit, what = (task.std, "number") if isinstance(task, Regression) else (1.0, "probability")
    largest = 0.0
    for picture in pictures:
        image = classifier.preprocess(picture)[None]
        with torch.inference_mode():
            wanted = task.activate(network(image)).numpy()
        (found,) = session.run([predicted], {IMAGES: image.numpy()})
        difference = float(np.abs(found - wanted).max()) / unit
        if not difference <= TOLERANCE:
            raise ExportMismatchError(
                f"a {what} of ONNX Runtime {onnxruntime.__version__} differs by {difference:.2g}"
                f"{' standard deviations' if what == 'number' else ''}, more than {TOLERANCE:g}; no file "
                "was written; use --precision fp32, whose weights are not rounded"
            )
        if scored is not None:
            found_score = session.run([UNKNOWN_SCORE], {IMAGES: image.numpy()})[0]
            check_scores(found_score, scored, image, SCORE_TOLERANCE)
        largest = max(largest, difference)
    return largest


def require_page_support(classifier: Classifier) -> None:
    """Raise UsageError unless `classifier` reads images that browsers can read."""
    if classifier.preprocess.intensity_range is not None:
        raise UsageError(
            f"{classifier.origin} reads 16-bit images, of which browsers give pages 8 bits; export it with --to "
            "model.onnx"
        )


def render_classifier_page(classifier: Classifier, model: ModelProto, precision: str) -> bytes:
    """Return the page as UTF-8.

    Args:
        classifier: The classifier.
        model: Its network, completed by `complete_for_page`.
        precision: "int16", "fp32" or "int8", for the sentence of an error.

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
