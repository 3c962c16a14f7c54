"""The calibration at the end of a training: when the finished run answers "unknown", and its prediction sets."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.dataset import Ints
from svertka.data.image_io import DecodingOptions
from svertka.data.prediction_inputs import list_inputs, load_pixels
from svertka.data.preprocessing import Preprocess
from svertka.data.split_manifest import Manifest
from svertka.device import network_device
from svertka.errors import DataError, ImageError, UsageError
from svertka.evaluation.unknown_threshold import (
    MAX_IMAGES,
    MAX_TRAIN_IMAGES,
    LabeledImages,
    check_examples,
    fit_calibration,
    read_examples,
)
from svertka.models.head_kinds import head_path
from svertka.progress import say
from svertka.run import Run
from svertka.training.calibrate_run import describe_set_images, find_set_parts, plan_folds, save_calibration
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits
from svertka.transfer.feature_cache import cache_on_disk_or_in_memory, count_missing
from svertka.transfer.freeze import HEAD, PartiallyFrozen, split_before_head


def check_unknown_option(unknown: str, manifest: Manifest, preprocess: Preprocess) -> None:
    """Check the option `unknown` before the training.

    Args:
        unknown: A folder of images of none of the classes.
        manifest: The images of the run.
        preprocess: Of the network, whose bands these images must have, too.

    Raises:
        UsageError: It holds no image, or images of the run, or the run has no validation images.
        DataError: None of the images can be read.
    """
    if not manifest.parts["val"]:
        raise UsageError(
            f"unknown={unknown} needs validation images, from which it tells the images of none of the classes; leave "
            "it out, or validate with --val 0.1"
        )
    inputs, decoding = list_inputs([unknown], preprocess.bands), DecodingOptions(intensity_range=preprocess.bands)
    check_examples(unknown, [image for _, image in inputs], manifest)
    reason = ""
    for name, image in inputs:
        try:
            load_pixels(image, decoding)
            return
        except ImageError as error:
            reason = f"{name}: {error}"
    raise DataError(f"unknown={unknown}: no image can be read ({reason}); name other images")


def calibrate_finished_run(run: Run, classifier: Classifier, settings: RunSettings, parts: DataSplits) -> None:
    """Calibrate the kept network of `run` and say how; say why not, if it cannot be.

    A network of several labels or a number is left as it is. Features that the training stored are not computed again.

    Args:
        run: The run.
        classifier: Its kept network.
        settings: Its settings.
        parts: Its whole images.
    """
    if not classifier.task.is_single_label:
        return
    if not len(parts.indices["val"]):
        say(
            "unknown: there are no validation images to choose a threshold on, so predictions do not say which images "
            "are of none of the classes"
        )
        return

    split = _split_before_stored_features(classifier, settings)

    def images(*names: str) -> LabeledImages:
        indices = np.sort(np.concatenate([parts.indices[name] for name in names]))
        stored = None if split is None else _find_stored_features(split, classifier, settings, parts, indices)
        return LabeledImages(parts.eval_rows, parts.dataset.labels, indices, stored)

    try:
        examples = (
            []
            if settings.unknown is None
            else read_examples(classifier, settings.unknown, parts.manifest, settings.max_pixels)
        )
        train, val = images("train"), images("val")
        is_solved = settings.recipe.is_computed and settings.recipe.head == "logistic"  # as the heads of folds are
        folds = (
            plan_folds(parts.dataset, train.indices, len(val.indices), parts.digests, settings.threads)
            if is_solved
            else None
        )
        calibration = fit_calibration(classifier, train, val, images(*find_set_parts(run)), examples, folds=folds)
    except (UsageError, DataError) as error:  # the network is trained: nothing else is lost
        say(f"the run is not calibrated: {error}")
        return
    record = save_calibration(run.folder, calibration)
    say(f"unknown: {record.unknown.sentence}")
    if record.set_images:
        say(describe_set_images(record, str(run.folder)))


def _split_before_stored_features(classifier: Classifier, settings: RunSettings) -> PartiallyFrozen | None:
    """Return the kept network, split where the training stored its features; None if it stored none.

    Args:
        classifier: The kept network.
        settings: The settings of the training.
    """
    stores_all_digits = settings.cache is not None and not settings.cache.half
    if settings.recipe.unfreeze != HEAD or not stores_all_digits or distributed.world_size() > 1:
        return None
    head = head_path(classifier.model)
    partial = split_before_head(classifier.network, head, classifier.preprocess.input_shape)
    if partial is None:
        return None
    own, stage = (
        sum(parameter.numel() for parameter in one.parameters())
        for one in (classifier.network.get_submodule(head), partial.trainable)
    )
    return partial if own == stage else None  # the last stage of a LeNet-5 has a layer more than the head


def _find_stored_features(
    split: PartiallyFrozen, classifier: Classifier, settings: RunSettings, parts: DataSplits, indices: Ints
) -> Callable[[Ints], Tensor] | None:
    """Return what reads the features before the head of images from the feature cache; None if one is not there.

    Args:
        split: The kept network, split before its head.
        classifier: The kept network.
        settings: The settings of the training.
        parts: The whole images.
        indices: Indices of the images.
    """
    nothing = np.empty(0, np.int64)
    some = replace(parts, indices={"train": indices, "val": nothing, "test": nothing})
    place = network_device(classifier.network) or torch.device("cpu")
    batches = some.eval_batches("train", classifier.preprocess, place, settings.layout)
    how = batches, split.frozen, split.shape, parts.digests
    if count_missing(*how, limit=settings.cache_limit):
        return None
    cached = cache_on_disk_or_in_memory(*how, limit=settings.cache_limit)
    return lambda chosen: cached.images(chosen, 0)


def count_calibrated_images(parts: DataSplits, *, stored: bool) -> int:
    """Return how many images `calibrate_finished_run` computes at most.

    Args:
        parts: The whole images.
        stored: Whether the features of the training and validation images are stored.
    """
    sizes = parts.sizes()
    if not sizes["val"]:
        return 0
    if stored:
        return min(sizes["test"], MAX_IMAGES)
    return min(sizes["train"], MAX_TRAIN_IMAGES) + min(sizes["val"], MAX_IMAGES) + min(sizes["test"], MAX_IMAGES)
