"""The report of a training: its settings in words, and report.html."""

import torch

from svertka.classifier import Classifier
from svertka.data.band_ranges import TAIL, BandRanges
from svertka.data.box_annotations import BACKGROUND
from svertka.evaluation.error_by_image_property import errors_by_property
from svertka.evaluation.metrics import Evaluation
from svertka.evaluation.report_page import SHOWN_SIDE, Report, write_report
from svertka.evaluation.task_metrics import AnyEvaluation
from svertka.graph.summary import measure_network_size
from svertka.models.registry import Model
from svertka.pages.number_format import count_with_noun
from svertka.progress import format_duration
from svertka.run import Run
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits
from svertka.transfer.freeze import split_at_frozen


def write_training_report(
    run: Run, model: Model, settings: RunSettings, parts: DataSplits, evaluation: AnyEvaluation | None, part: str
) -> None:
    """Write report.html into the folder of a run.

    Args:
        run: The run.
        model: What builds its network.
        settings: Its settings.
        parts: Its data.
        evaluation: The evaluation of its network on `part`; None shows the training curves only.
        part: Part of the data ("val", "test").

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    pictures, classifier = parts.dataset.images, Classifier.load(run.folder, model=model)
    calibration = classifier.config.calibration
    report = Report(
        name=run.name,
        network=settings.model,
        source=settings.source,
        facts=[
            *describe_training(classifier, settings),
            *([] if calibration is None else [("unknown", calibration.unknown.sentence)]),
            *(("notes on the data", sentence) for sentence in parts.notes()),
        ],
        history=run.history(),
        part=part,
        evaluation=evaluation,
        read_image=lambda index: pictures.read(index, SHOWN_SIDE),
        image_name=pictures.name,
        cross_validation=settings.cross_validation,
        slices=errors_by_property(evaluation, pictures.read, torch.get_num_threads())
        if isinstance(evaluation, Evaluation)
        else (),
        task=parts.dataset.task,
    )
    write_report(run.report, report)


def describe_training(
    classifier: Classifier, settings: RunSettings, seconds: float | None = None
) -> list[tuple[str, str]]:
    """Return what is trained on what, how and where, as (label, text); `seconds` is the estimated time."""
    recipe, preprocess = settings.recipe, classifier.preprocess
    names = classifier.config.of_whole_images().names
    size = measure_network_size(classifier.network, preprocess.input_shape)
    color = preprocess.color if preprocess.bands is None else f"of {count_with_noun(len(preprocess.bands), 'band')}"
    fit = {"crop": "", "pad": ", padded", "squeeze": ", squeezed"}[preprocess.fit]
    sizes = ", ".join(f"{number:,} {part}" for part, number in settings.parts.items() if number)
    left_out = f"; {len(settings.bad)} bad left out" if settings.bad else ""
    changes = ", ".join(one.kind.replace("_", " ") for one in recipe.augmentations) or "no augmentation"
    settings_given = {"MixUp": recipe.mixing.mixup, "CutMix": recipe.mixing.cutmix, "EMA": recipe.ema}
    changes += "".join(f", {name} {value:g}" for name, value in settings_given.items() if value)
    steps = (
        f"{recipe.optimizer}, lr {recipe.lr:g}, {recipe.schedule.kind}, batch {recipe.batch_size}, "
        f"{recipe.epochs:g} epoch{'' if recipe.epochs == 1 else 's'}, {changes}"
    )
    lines = [
        ("data", f"{settings.source}: {sizes}; {classifier.task.describe_names(names)}{left_out}"),
        (
            "network",
            f"{settings.model}, {preprocess.size}×{preprocess.size} {color}{fit}, "
            f"{size.parameters:,} parameters, {size.multiply_adds:,} multiply-adds",
        ),
        ("recipe", f"{settings.recipe_name}: {f'{recipe.head} head, without steps' if recipe.is_computed else steps}"),
        # As recorded, since a model card may be written on another machine.
        ("device", settings.hardware or f"{settings.device}, {settings.threads} threads"),
    ]
    if recipe.mixing:
        lines.append(("training error", "of mixed images, which is higher than that of the images themselves"))
    if recipe.averages_weights:
        lines.append(("weights kept", "their moving average, which the validation error is of"))
    if settings.weights is not None:
        lines.insert(2, ("weights", f"start from {settings.weights}"))
    elif recipe.initial is not None:
        lines.insert(2, ("weights", f"{recipe.initial} initialization"))
    made = split_at_frozen(classifier.network, recipe.unfreeze, preprocess.input_shape)
    if made is not None:
        learning = sum(parameter.numel() for parameter in made.trainable.parameters())
        lines.insert(3, ("frozen", f"all layers below {made.first_trainable}; {learning:,} parameters are trained"))
    if settings.boxes is not None:
        alone = ", of patches only" if classifier.config.of_whole_images() != classifier.config else ""
        lines.insert(
            1,
            (
                "patches",
                f"at 8 scales, labeled from {settings.boxes}, and whole images; {BACKGROUND} is one more class{alone}",
            ),
        )
        lines.insert(2, ("errors", "of patches during training; of whole images at the end, as in svertka evaluate"))
    if preprocess.bands is not None:
        lines.insert(1, ("bands", _describe_bands(preprocess.bands)))
    elif preprocess.deep_range is not None:
        black, white = preprocess.deep_range
        lines.insert(1, ("16 bits", f"{black:,} is black and {white:,} is white, as in the training images"))
    if seconds is not None:
        lines.append(("time", f"about {format_duration(seconds)}"))
    return lines


def _describe_bands(bands: BandRanges) -> str:
    """Return number and type of the bands, and which values become 0 and 255."""
    if bands == BandRanges.of_bytes(len(bands)):
        return bands.describe()
    low, high = bands.bands[0]
    return (
        f"{bands.describe()}; of each, the middle {1 - 2 * TAIL:.0%} of the values in the training images become 0 to "
        f"255: in the first, {low:,.6g} to {high:,.6g}"
    )
