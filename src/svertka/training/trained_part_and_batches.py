"""The trained part of a network with the batches that it is trained and validated on: images or stored features."""

import time
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from svertka.classifier import Classifier
from svertka.data.loader import BatchLoader
from svertka.data.shard_storage import open_location
from svertka.device import set_memory_format
from svertka.errors import DataError, ImageError
from svertka.evaluation.evaluate import evaluate_network
from svertka.evaluation.report_page import SHOWN_SIDE
from svertka.training.config import FeatureCacheSettings, RunSettings
from svertka.training.data_splits import DataSplits
from svertka.training.recipe import Recipe
from svertka.training.training_loop import make_optimizer
from svertka.transfer import freeze
from svertka.transfer.feature_cache import cache_on_disk_or_in_memory, count_missing
from svertka.transfer.freeze import PartiallyFrozen

TIMED_READS = 4  # images by which reading is timed


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """The network that the training loop trains, and its batches.

    Attributes:
        network: The network, or its trainable part; its modules are those of the classifier.
        batches: The training set: images, or features if `network` takes these.
        val: The validation set; None if there is none.
        unit: What the batches hold, "images" or "features".
    """

    network: nn.Module
    batches: BatchLoader
    val: BatchLoader | None
    unit: str = "images"


def freeze_classifier(classifier: Classifier, recipe: Recipe) -> PartiallyFrozen | None:
    """Freeze layers as in `recipe` and return the network in two parts; None if all of it is trained.

    Raises:
        UsageError: The network has no such part as `recipe.unfreeze` names.
    """
    return freeze.freeze_and_split(classifier.network, recipe.unfreeze, classifier.preprocess.input_shape)


def optimize_frozen(partial: PartiallyFrozen, classifier: Classifier, parts: DataSplits) -> None:
    """Compile the frozen part of `classifier` for inference, if that pays off for so many images."""
    partial.frozen.optimize(classifier.preprocess.input_shape[1:], sum(parts.sizes().values()))


def build_optimizer(classifier: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the trainable parameters of `classifier`."""
    uses_stages = recipe.stage_rate != 1 or recipe.gradual
    depths = (
        freeze.parameter_stage_depths(classifier.network, classifier.preprocess.input_shape) if uses_stages else None
    )
    return make_optimizer(classifier.network, recipe, depths)


def build_training_inputs(
    classifier: Classifier,
    partial: PartiallyFrozen | None,
    settings: RunSettings,
    parts: DataSplits,
    device: torch.device,
) -> TrainingInputs:
    """Return what the training loop trains, after computing and storing features if the settings say so.

    Args:
        classifier: The classifier.
        partial: Its network in two parts; None if all of it is trained.
        settings: The settings of the training.
        parts: The images.
        device: The device.

    Raises:
        StorageError: There is no room for the features.
    """
    preprocess, layout = classifier.preprocess, settings.layout
    batches = parts.training_batches(
        preprocess, settings.recipe, settings.seed, device, layout, prefetch=settings.prefetch
    )
    val = parts.eval_batches("val", preprocess, device, layout) if len(parts.indices["val"]) else None
    if partial is None:
        return TrainingInputs(classifier.network, batches, val)
    if settings.accelerate:
        optimize_frozen(partial, classifier, parts)
    if settings.cache is None:
        return TrainingInputs(partial, batches, val)
    return TrainingInputs(
        partial.trainable,
        store_features(partial, settings, parts, batches, "computing features"),
        val and store_features(partial, settings, parts, val, "computing features of val"),
        unit="features",
    )


def store_features(
    partial: PartiallyFrozen, settings: RunSettings, parts: DataSplits, batches: BatchLoader, title: str
) -> BatchLoader:
    """Compute the features of `batches` and store them on disk, or in memory if the disk has no room.

    Args:
        partial: The network in two parts.
        settings: The settings of the training; its `cache` is not None.
        parts: The images.
        batches: Batches of images.
        title: Title of the progress bar.

    Returns:
        Batches of features.
    """
    assert settings.cache is not None
    variants = settings.cache.variants if batches.augmentations else 1
    return cache_on_disk_or_in_memory(
        batches,
        partial.frozen,
        partial.shape,
        parts.feature_keys,
        variants=variants,
        half=settings.cache.half,
        limit=settings.cache_limit,
        shared=None if settings.feature_store is None else open_location(settings.feature_store, is_folder=True),
        title=title,
    )


def count_missing_features(
    partial: PartiallyFrozen, cache: FeatureCacheSettings, limit: int | None, parts: DataSplits, batches: BatchLoader
) -> int:
    """Return how many features `store_features` would compute for `batches`."""
    return count_missing(
        batches,
        partial.frozen,
        partial.shape,
        parts.feature_keys,
        variants=cache.variants if batches.augmentations else 1,
        half=cache.half,
        limit=limit,
    )


def prepare_evaluation_network_and_batches(
    classifier: Classifier, settings: RunSettings, parts: DataSplits, part: str, device: torch.device
) -> tuple[nn.Module, BatchLoader]:
    """Return the network of `classifier`, compiled if that pays off, and the images of `part`."""
    network = set_memory_format(classifier.network, settings.layout)
    batches = parts.eval_batches(part, classifier.preprocess, device, settings.layout)
    if settings.accelerate:
        network = classifier.optimized_for(len(batches.indices)).network
    return network, batches


def measure_val_error(classifier: Classifier, settings: RunSettings, parts: DataSplits, device: torch.device) -> float:
    """Return the error of `classifier` on the validation set."""
    network, batches = prepare_evaluation_network_and_batches(classifier, settings, parts, "val", device)
    return evaluate_network(network, batches, classifier.names, "scoring val", classifier.task).error


def estimate_final_evaluation_seconds(parts: DataSplits, forward: float) -> float:
    """Estimate the time of the final evaluation and its report, for which the images are read again.

    Args:
        parts: The images.
        forward: Seconds of the network per image.
    """
    indices = parts.indices[parts.final_part]
    timed = indices[:TIMED_READS].tolist()
    began = time.perf_counter()
    for index in timed:
        with suppress(ImageError, DataError):
            parts.dataset.images.read(index, SHOWN_SIDE)
    return len(indices) * (forward + (time.perf_counter() - began) / max(len(timed), 1))
