"""report.html: the result of a training or an evaluation in one self-contained HTML file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from svertka.errors import ImageError
from svertka.evaluation.confusion_plot import MAX_TABLE_CLASSES, confusion_html
from svertka.evaluation.cross_validation import ERROR, CrossValidation
from svertka.evaluation.error_by_image_property import ErrorByProperty, errors_by_property_html
from svertka.evaluation.evaluation_scope import PART_ADJECTIVES
from svertka.evaluation.metrics import MISTAKES_KEPT, ClassMetrics, Evaluation, Mistake
from svertka.evaluation.multi_label_metrics import MultiLabelEvaluation
from svertka.evaluation.regression_metrics import RegressionEvaluation
from svertka.evaluation.reliability_diagram import reliability_html
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.evaluation.task_report import Section, describe_labels, describe_numbers
from svertka.evaluation.training_curves import TrainingCurves
from svertka.files import write_atomic
from svertka.pages.html_page import render_page
from svertka.pages.inline_images import render_image, render_strip
from svertka.pages.number_format import NBSP, count_with_noun, format_percent, format_three_digits
from svertka.pages.templates import render_template
from svertka.progress import format_duration, show_spinner
from svertka.tasks import SINGLE_LABEL, AnyTask

Pixels = npt.NDArray[np.uint8]

SHOWN_SIDE = 256  # minimum shorter side, pixels
SIDE = 128  # CSS pixels of a mistake
THUMBNAIL = 32  # CSS pixels of an example
MAX_EXAMPLES = 240  # examples of all classes together, to limit the file size


@dataclass(frozen=True)
class Report:
    """The contents of report.html.

    Attributes:
        name: Name of the run.
        network: Name of the network.
        source: Source of the images.
        facts: Pairs of label and text about how the run was made; texts with the same label are shown together.
        history: Lines of metrics.jsonl; empty if nothing was trained.
        part: Part of the data set that was evaluated ("test", "val").
        evaluation: The evaluation; None shows the training curves only.
        read_image: Returns the image at an index, (H, W, 1 | 3) uint8; may raise ImageError.
        image_name: Returns its path, or the source and a number.
        slices: Error by image properties.
        cross_validation: The cross-validated error, which leads the report. None: there is none.
        task: What the network predicts.
    """

    name: str
    network: str
    source: str
    facts: Sequence[tuple[str, str]]
    history: Sequence[Mapping[str, Any]]
    part: str
    evaluation: AnyEvaluation | None
    read_image: Callable[[int], Pixels]
    image_name: Callable[[int], str]
    slices: Sequence[ErrorByProperty] = ()
    cross_validation: CrossValidation | None = None
    task: AnyTask = SINGLE_LABEL

    @cached_property
    def curves(self) -> TrainingCurves:
        """The training curves."""
        return TrainingCurves(self.history, self.task)

    @property
    def sentence(self) -> str:
        """The result in words, such as "lenet5 on digits: 1.1 % of 361 test pictures wrong after 20 epochs, 12 s"."""
        what, evaluation, epochs = f"{self.network} on {self.source}", self.evaluation, len(self.curves.epochs)
        if self.curves.is_fitted:
            training = ", last layer fitted without steps"
        elif epochs:
            training = f" after {count_with_noun(epochs, 'epoch')}"
        elif self.history or evaluation is None:
            training = " before the end of the first epoch"
        else:
            training = ""
        if self.curves.seconds:
            training += f", {format_duration(self.curves.seconds)}"
        if self.cross_validation is not None:
            pictures = count_with_noun(self.cross_validation.images, "picture")
            validated = self.cross_validation
            if validated.metric != ERROR:
                metric = f"{validated.metric} {validated.text(validated.error)}"
                return f"{what}: {metric} on {pictures} in cross-validation{training}."
            error = format_percent(validated.error)
            return f"{what}: {error} of {pictures} wrong in cross-validation{training}."
        if evaluation is None or not evaluation.images:
            return f"{what}: not evaluated yet{training}."
        pictures = count_with_noun(evaluation.images, f"{PART_ADJECTIVES[self.part]}picture")
        if isinstance(evaluation, MultiLabelEvaluation):
            return f"{what}: mAP {format_percent(evaluation.mean_average_precision)} on {pictures}{training}."
        if isinstance(evaluation, RegressionEvaluation):
            error = format_three_digits(evaluation.error)
            return f"{what}: mean absolute error of {evaluation.name} {error} on {pictures}{training}."
        return f"{what}: {format_percent(evaluation.top1_error)} of {pictures} wrong{training}."


@show_spinner("writing the report")
def write_report(path: Path, report: Report) -> None:
    """Write `report` to `path` as one HTML file, atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    write_atomic(path, render_page(f"{report.name} – svertka", _body(report)).encode())


def _body(report: Report) -> Markup:
    evaluation = report.evaluation if report.evaluation is not None and report.evaluation.images else None
    warnings = report.evaluation.warnings if report.evaluation is not None else ()
    facts: dict[str, list[str]] = {}
    for label, text in report.facts:
        facts.setdefault(label, []).append(text)
    return render_template(
        "report.html",
        report=report,
        summary="" if evaluation is None else _summary(report, evaluation),
        findings=[*(("", sentence) for sentence in warnings), *report.curves.findings()],
        curves=report.curves.curves_html(),
        epochs_table=report.curves.table_html(),
        lr_finder=report.curves.lr_finder_html(),
        evaluation=_describe(report, evaluation) if isinstance(evaluation, Evaluation) else None,
        sections={one.id: one for one in _sections(report, evaluation)},
        facts=facts,
    )


def _sections(report: Report, evaluation: AnyEvaluation | None) -> list[Section]:
    """Return the sections on the labels or the number; [] for classes."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return describe_labels(evaluation, report.read_image, report.image_name)
    if isinstance(evaluation, RegressionEvaluation):
        return describe_numbers(evaluation, report.read_image, report.image_name)
    return []


def _summary(report: Report, evaluation: AnyEvaluation) -> str:
    """Return the metrics that the first sentence leaves out."""
    if not isinstance(evaluation, Evaluation):
        best = report.curves.best_epoch
        kept = (
            ""
            if best is None
            else f" The weights are those of epoch {best['epoch']:g}, whose validation loss is lowest."
        )
        folds = "" if report.cross_validation is None else f" In folds: {report.cross_validation.sentence}."
        return f"In parentheses 95{NBSP}% confidence intervals. {evaluation.sentence}.{kept}{folds}"
    low, high = map(format_percent, evaluation.top1_interval)
    interval, sentences = f"95{NBSP}% confidence interval", []
    if (validated := report.cross_validation) is not None:
        lowest, highest = map(format_percent, validated.interval)
        sentences.append(
            f"{interval} of the error: {lowest} to {highest}. The pictures of {validated.parts} were divided into "
            f"{validated.folds} folds, {validated.repeats} times; each is judged by networks that were trained on the "
            "other folds."
        )
        pictures = count_with_noun(evaluation.images, f"{PART_ADJECTIVES[report.part]}picture")
        error = format_percent(evaluation.top1_error)
        sentences.append(f"Of the {pictures}, the network of this run gets {error} wrong ({interval} {low} to {high}).")
    else:
        sentences.append(f"{interval} of the error: {low} to {high}.")
    sentences.append(f"Mean loss {format_three_digits(evaluation.loss)} nats.")
    if evaluation.top5_error is not None:
        sentences.append(f"Top-5 error {format_percent(evaluation.top5_error)}.")
    if report.curves.best_epoch is not None:
        sentences.append(
            f"The weights are those of epoch {report.curves.best_epoch['epoch']:g}: of the epochs whose validation "
            "error is within one standard error of the lowest, the latest whose loss has not risen."
        )
    return " ".join(sentences)


def _describe(report: Report, evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows of the evaluation."""
    worst = evaluation.mistakes[:MISTAKES_KEPT]
    classes = evaluation.per_class
    with_images = tuple(one for one in classes if one.images)
    is_shortened = len(classes) > MAX_TABLE_CLASSES and len(with_images) < len(classes)
    return {
        "worst": [_describe_mistake(report, evaluation, one) for one in worst],
        "near_misses": [
            _describe_mistake(report, evaluation, one) for one in evaluation.near_misses if one not in set(worst)
        ],
        "confusion": confusion_html(evaluation, lambda indices, alt: _strip(report, indices, alt)),
        "num_classes": len(classes),
        "classes_without": len(classes) - len(with_images) if is_shortened else 0,
        "classes": _describe_classes(report, evaluation, with_images if is_shortened else classes),
        "reliability": reliability_html(evaluation.calibration),
        "slices": errors_by_property_html(report.slices, evaluation.images),
    }


def _describe_mistake(report: Report, evaluation: Evaluation, mistake: Mistake) -> dict[str, Any]:
    true, predicted = (evaluation.per_class[k].name for k in (mistake.label, mistake.predicted))
    path = report.image_name(mistake.index)
    alt = f"{path}: {true}, predicted as {predicted} with {format_percent(mistake.probability)}"
    pixels = _read(report, mistake.index)
    return {
        "true": true,
        "predicted": predicted,
        "probability": mistake.probability,
        "own": mistake.own,
        "path": path,
        "file": PurePath(path).name,
        "alt": alt,
        "image": None if pixels is None else render_image(pixels, SIDE, alt),
    }


def _describe_classes(report: Report, evaluation: Evaluation, listed: Sequence[ClassMetrics]) -> list[dict[str, Any]]:
    """Return what the template shows of the `listed` classes, those with the largest error first."""
    indices = {id(one): k for k, one in enumerate(evaluation.per_class)}
    num_examples = min(8, MAX_EXAMPLES // len(listed))
    described = []
    for one in sorted(listed, key=lambda one: -1.0 if one.error is None else one.error, reverse=True):
        confused = evaluation.confusion[indices[id(one)]].copy()
        confused[indices[id(one)]] = 0
        most = int(confused.argmax())
        described.append(
            {
                "name": one.name,
                "images": one.images,
                "recall": one.recall,
                "precision": one.precision,
                "examples": _strip(report, one.examples[:num_examples], f"Pictures of {one.name}"),
                "confused_with": evaluation.per_class[most].name,
                "confused_count": int(confused[most]),
            }
        )
    return described


def _strip(report: Report, indices: Sequence[int], alt: str) -> Markup:
    """Return the readable ones of the images side by side, as HTML."""
    images = [pixels for index in indices if (pixels := _read(report, index)) is not None]
    return render_strip(images, THUMBNAIL, alt) if images else Markup()


def _read(report: Report, index: int) -> Pixels | None:
    """Return the pixels; None if the file is gone."""
    try:
        return report.read_image(index)
    except ImageError:
        return None
