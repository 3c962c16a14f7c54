"""A folder for Hugging Face's hub: weights, config.json and a model card."""

import json
from pathlib import Path

from svertka.classifier import CONFIG, WEIGHTS, Classifier, Config
from svertka.errors import RunError
from svertka.escaping import format_command, to_printable
from svertka.files import os_error_to_storage_error, write_atomic, write_json
from svertka.graph.summary import measure_network_size
from svertka.models.external_builder import GRAPH, BuilderRecord
from svertka.models.graph_file import write_graph
from svertka.run import Run
from svertka.tensor_files import write_tensors
from svertka.training.config import RunSettings
from svertka.training.training_report import describe_training

CARD_FILE = "README.md"
FRONT_MATTER = """---
library_name: svertka
pipeline_tag: image-classification
tags:
- image-classification
- svertka
---
"""


def write_hub_folder(folder: Path, classifier: Classifier, run: str) -> None:
    """Write model.safetensors, config.json with `label_names`, and the card README.md; `Classifier.load` reads them.

    Args:
        folder: Created if missing.
        classifier: The network.
        run: The run or network as the user named it.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with os_error_to_storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, classifier.network.state_dict())
    record = None if classifier.calibration is None else classifier.calibration.write(folder, folder / WEIGHTS)
    config = _shareable(classifier, folder).with_calibration(record).model_dump()
    theirs = {"architecture": config.pop("model"), "label_names": config.pop("names")}
    write_json(folder / CONFIG, theirs | config)
    write_atomic(
        folder / CARD_FILE, render_card(classifier, run, folder.resolve().name).encode(errors="backslashreplace")
    )


def _shareable(classifier: Classifier, folder: Path) -> Config:
    """Return the config; a network whose builder others do not have is exported as a graph into `folder`."""
    builder = classifier.config.builder
    if builder is None or builder.package is not None:
        return classifier.config
    write_graph(folder / GRAPH, classifier.network, classifier.preprocess.input_shape)
    shared = BuilderRecord(target=GRAPH, head_layer=builder.head_layer)
    # The path of a builder on the trainer's disk is private.
    return classifier.config.model_copy(update={"builder": shared, "model": classifier.config.model.rpartition(":")[2]})


def render_card(classifier: Classifier, run: str, folder: str) -> str:
    """Return the model card in Markdown: network, data, recipe, results, limits, and how to run it from `folder`."""
    trained = _training(run, classifier)
    sections = {
        f"{classifier.config.model}, {_classes(classifier)}": _describe_network(classifier),
        "Data and recipe": trained
        or [
            "The published network:",
            "",
            *_literal([run]),
        ],
        "Results": _results(run) or ["Not measured by svertka."],
        "Limits": _limits(classifier),
        "How to run it": _how(classifier, folder),
    }
    parts = [f"{'#' if number == 0 else '##'} {title}\n\n" for number, title in enumerate(sections)]
    bodies = ["\n".join(lines) for lines in sections.values()]
    return FRONT_MATTER + "\n".join(f"\n{head}{body}" for head, body in zip(parts, bodies, strict=True)) + "\n"


def _classes(classifier: Classifier) -> str:
    if not classifier.task.is_single_label:
        return classifier.task.describe_names(classifier.names)
    number = len(classifier.names)
    return f"{number:,} class{'' if number == 1 else 'es'}"


def _describe_network(classifier: Classifier) -> list[str]:
    """Return what the network computes, its size, and the names of its outputs."""
    size = measure_network_size(classifier.network, classifier.preprocess.input_shape)
    purpose, names = {
        "single-label": ("classifies images", "Its classes, in the order of"),
        "multi-label": ("predicts the labels of images, any number for each", "Its labels, in the order of"),
        "regression": ("predicts a number for each image", "The name of the number, from"),
    }[classifier.task.kind]
    return [
        f"A convolutional network that {purpose}: {size.parameters:,} parameters, "
        f"{size.multiply_adds:,} multiply-adds per image. {names} `label_names` in config.json:",
        "",
        *_literal([json.dumps(name, ensure_ascii=False) for name in classifier.names]),
    ]


def _training(run: str, classifier: Classifier) -> list[str]:
    """Return data and recipe; nothing for a network that svertka did not train."""
    try:
        settings = RunSettings.of(Run(run))
    except RunError:
        return []
    # The path on the trainer's disk is private.
    settings = settings.model_copy(update={"source": Path(settings.source).name})
    made = ", ".join(f"{name} {number}" for name, number in settings.versions.items())
    shown = [*describe_training(classifier, settings), ("made with", made), ("data fingerprint", settings.fingerprint)]
    return _literal([f"{label:<16}  {value}" for label, value in shown])


def _results(run: str) -> list[str]:
    try:
        result = Run(run).result()
    except RunError:
        return []
    if (sentence := result.get("sentence")) is not None:  # several labels, or a number
        return [f"On the {result['part']} images: {sentence}."]
    rows = [
        ("val", result.get("val_error"), "chose the epoch that was kept"),
        ("test", result.get("test_error"), "scored once, at the end"),
    ]
    return [
        "| part | top-1 error | |",
        "|---|---|---|",
        *(f"| {part} | {100 * error:.1f} % | {note} |" for part, error, note in rows if error is not None),
    ]


def _limits(classifier: Classifier) -> list[str]:
    if not classifier.task.is_single_label:
        predicted = "a number" if classifier.task.kind == "regression" else "labels"
        return [
            f"- It predicts {predicted} for any image, also for images unlike its training images.",
            *_unseen(classifier),
            "- The results above are for images like the training images. Others have not been measured.",
        ]
    return [
        f"- It predicts one of its {_classes(classifier)} for any image, also for images of something else"
        f"{'.' if classifier.calibration is None else ', some of which it calls unknown.'}",
        *_unseen(classifier),
        "- The results above are for images like the training images. Others have not been measured.",
        "- Probabilities are not calibrated: predictions with 90 % need not be right nine times in ten.",
    ]


def _unseen(classifier: Classifier) -> list[str]:
    one = classifier.preprocess
    lines = []
    if one.fit == "crop":
        lines.append("- It sees only the central square of an image.")
    if one.bands is not None:
        lines.append(
            f"- It reads TIFF files of {one.bands.describe()}, in the order and with the units of the training images."
        )
    if one.deep_range is not None:
        low, high = one.deep_range
        lines.append(f"- In 16-bit images {low} is black and {high} is white, as in the training images.")
    return lines


def _how(classifier: Classifier, folder: str) -> list[str]:
    one = classifier.preprocess
    color = "gray (ITU-R 601 luma)" if one.color == "gray" else one.color
    return [
        *_literal(["pip install svertka", format_command("predict", Path(f"{folder}/"), "image.jpg")]),
        "",
        *_literal(["import svertka", f"svertka.Classifier.load({json.dumps(folder + '/')}).predict('image.jpg')"]),
        "",
        f"The network takes (N, {one.channels}, {one.size}, {one.size}) float32, {color}: the image rotated "
        f"as its EXIF says, {one.describe()}, with an antialiased {one.interpolation} filter, and (x / 255 − mean) / "
        f"std with mean {list(one.mean)} and std {list(one.std)}. It gives logits.",
    ]


def _literal(lines: list[str]) -> list[str]:
    """Return lines of a code block, in which class names cannot be Markdown."""
    return [f"    {to_printable(line)}" for line in lines]
