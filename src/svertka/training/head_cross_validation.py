"""Cross-validation of a head on the stored features of few images, trained in each fold as the deployed one is."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from svertka import distributed
from svertka.data.dataset import Ints
from svertka.data.deduplicated_split import group_images
from svertka.data.loader import BatchLoader
from svertka.data.near_duplicates import find_near_duplicates
from svertka.data.preprocessing import Preprocess
from svertka.errors import TrainingError
from svertka.evaluation.cross_validation import (
    FOLDS,
    REPEATS,
    CrossValidation,
    PredictOutputs,
    count_folds,
    cross_validate,
    cross_validate_outputs,
    find_class_too_small,
)
from svertka.graph.network_copy import copy_network
from svertka.progress import say
from svertka.tasks import SINGLE_LABEL, AnyTask, MultiLabel, Regression, SingleLabel
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits
from svertka.training.recipe import Recipe
from svertka.training.trained_part_and_batches import store_features
from svertka.training.training_loop import Callback, TrainingProgress, fit, make_optimizer
from svertka.training.weight_average import WeightAverage
from svertka.transfer.freeze import HEAD, PartiallyFrozen
from svertka.transfer.logistic_and_nearest_mean_heads import SOLVERS
from svertka.transfer.multi_label_and_regression_heads import fit_logistic_regressions, fit_ridge_regression

Outputs = npt.NDArray[np.float32]  # (N, K)

MAX_SOLVED_LABELS = 10  # whose logistic regressions are fitted in each fold
FEW_IMAGES = 500  # labeled images below which a tenth is too few to judge by


def why_not_cross_validated(recipe: Recipe, parts: DataSplits, *, stored: bool) -> str | None:
    """Return why the head is not cross-validated, a phrase; "" where that is not expected; None if it is.

    Args:
        recipe: The recipe.
        parts: The images.
        stored: Whether the features of the frozen layers are stored.
    """
    if recipe.unfreeze != HEAD or parts.patches is not None or sum(parts.sizes().values()) >= FEW_IMAGES:
        return ""
    pooled = pool_images(parts)
    task, labels = parts.dataset.task, parts.dataset.labels
    known = len({parts.digests[index] for index in pooled.tolist()} & parts.manifest.inherited)
    small = None
    if task.is_single_label:
        small = find_class_too_small(labels[pooled], np.arange(len(pooled)), len(parts.dataset.names))
    largest = int(np.bincount(task.strata(labels[pooled])).max())
    reasons = {
        "the features are not stored": not stored,
        "several processes train": distributed.world_size() > 1,
        "the recipe stops early, or lowers the learning rate, by the validation error": (
            recipe.early_stop is not None or recipe.schedule.kind == "plateau"
        ),
        "the recipe computes the head first": recipe.computed_first,
        f"the weights that it starts from were trained on {known:,} of the images": bool(known),
        "" if small is None else f"{parts.dataset.names[small]} has one image": small is not None,
        "no two images have the same rarest label": largest < 2,
        f"each of {len(parts.dataset.names)} labels would have a logistic regression in each fold": (
            isinstance(task, MultiLabel) and recipe.is_computed and len(parts.dataset.names) > MAX_SOLVED_LABELS
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def pool_images(parts: DataSplits) -> Ints:
    """Return the indices of the images that are cross-validated: those of train and val, (N,) int64, ascending."""
    return np.union1d(parts.indices["train"], parts.indices["val"]).astype(np.int64)


def estimate_epoch_seconds(step: float, images: int, batch_size: int) -> float:
    """Estimate the seconds of one epoch of all folds.

    Args:
        step: Seconds per step.
        images: Number of images.
        batch_size: Images per step.
    """
    return REPEATS * (FOLDS - 1) * images / batch_size * step


def cross_validate_head(
    partial: PartiallyFrozen,
    settings: RunSettings,
    parts: DataSplits,
    preprocess: Preprocess,
    device: torch.device,
    task: AnyTask = SINGLE_LABEL,
) -> CrossValidation | None:
    """Cross-validate the head of a network on the images of train and val.

    In each fold a copy of the head is trained like the deployed one, to the last epoch. Copies, near-duplicates and
    images of one group are in one fold. The network and the random state stay as they are.

    Args:
        partial: The network in two parts, before its first step.
        settings: The settings of the training; its `cache` is not None.
        parts: The images.
        preprocess: The preprocessing.
        device: The device.
        task: What the network predicts.

    Returns:
        The result; None, with a message, if the images of a class are all related, or if the loss diverges in a fold.
    """
    dataset, pooled = parts.dataset, pool_images(parts)
    labels, classes = dataset.labels[pooled], len(dataset.names)
    alike = find_near_duplicates(dataset.images, parts.digests, pooled, settings.threads)
    groups = group_images(dataset, parts.digests, pooled, alike)
    small = find_class_too_small(labels, groups, classes) if task.is_single_label else None
    if small is not None:
        say(f"not cross-validated: all images of {dataset.names[small]} are copies of one another, or of one group")
        return None
    if not task.is_single_label:
        strata = task.strata(labels)
        if count_folds(strata, groups, int(strata.max()) + 1) < 2:
            say("not cross-validated: all images are copies of one another, or of one group")
            return None
    features = _FoldFeatures(partial, settings, parts, pooled, preprocess, device)
    recipe = settings.recipe
    predict = (
        _score_by_solver(recipe.head, features, task)
        if recipe.is_computed
        else _score_by_steps(partial, features, task)
    )
    named = "train and val" if len(parts.indices["val"]) else "train"
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if isinstance(task, SingleLabel):
                return cross_validate(
                    lambda outside, inside: predict(outside, inside).argmax(1), labels, groups, classes, named
                )
            return cross_validate_outputs(predict, labels, groups, task, named)
    except TrainingError as error:
        say(f"not cross-validated: in one of the folds {error}")
        return None


class _FoldFeatures:
    """The stored features of the pooled images, and the batches of a fold's training images.

    Args:
        partial: The network in two parts.
        settings: The settings of the training.
        parts: The images.
        pooled: Indices of the pooled images.
        preprocess: The preprocessing.
        device: The device.
    """

    def __init__(
        self,
        partial: PartiallyFrozen,
        settings: RunSettings,
        parts: DataSplits,
        pooled: Ints,
        preprocess: Preprocess,
        device: torch.device,
    ) -> None:
        self.settings, self.parts, self.pooled = settings, parts, pooled
        self.preprocess, self.device = preprocess, device
        whole, title = self._at(pooled), "computing features to cross-validate"
        self.augmented = store_features(partial, settings, whole, self._batches(whole), title)
        evaluated = whole.eval_batches("train", preprocess, device, settings.layout)
        plain = store_features(partial, settings, whole, evaluated, title)
        self.values = torch.cat([batch.images for batch in plain.epoch(0)])
        self.labels = parts.dataset.labels[pooled]

    def training_batches(self, places: Ints) -> BatchLoader:
        """Return the features of the images at `places` in shuffled batches, as the recipe trains on them."""
        return self._batches(self._at(self.pooled[places])).with_images(self.augmented.images)

    def _at(self, indices: Ints) -> DataSplits:
        nothing = np.empty(0, np.int64)
        return replace(self.parts, indices={"train": indices, "val": nothing, "test": nothing})

    def _batches(self, parts: DataSplits) -> BatchLoader:
        settings = self.settings
        recipe = settings.recipe.with_changes(batch_size=min(settings.recipe.batch_size, len(parts.indices["train"])))
        return parts.training_batches(self.preprocess, recipe, settings.seed, self.device, settings.layout)


def _score_by_solver(head: str, features: _FoldFeatures, task: AnyTask) -> PredictOutputs:
    """Return a function that fits a head to the features at some places and returns its outputs for others."""
    values = features.values.flatten(1).cpu().numpy()

    def score(outside: Ints, inside: Ints) -> Outputs:
        targets = features.labels[outside]
        if isinstance(task, MultiLabel):
            weight, bias = fit_logistic_regressions(values[outside], targets, targets.shape[1])
        elif isinstance(task, Regression):
            weight, bias = fit_ridge_regression(values[outside], targets, task)
        else:
            return score_present(outside, inside)
        return np.asarray(values[inside] @ weight.T + bias, np.float32)

    def score_present(outside: Ints, inside: Ints) -> Outputs:
        present, renumbered = np.unique(features.labels[outside], return_inverse=True)
        weight, bias = SOLVERS[head](values[outside], renumbered.astype(np.int64), len(present))
        found = np.full((len(inside), int(features.labels.max()) + 1), -np.inf, np.float32)
        found[:, present] = values[inside] @ weight.T + bias
        return found

    return score


def _score_by_steps(partial: PartiallyFrozen, features: _FoldFeatures, task: AnyTask) -> PredictOutputs:
    """Return a function that trains a copy of the head on some places and returns its outputs for others."""
    initial: nn.Module = copy_network(partial.trainable)
    settings = features.settings

    def score(outside: Ints, inside: Ints) -> Outputs:
        torch.manual_seed(settings.seed)
        return train_and_score(
            copy_network(initial),
            features.training_batches(outside),
            settings.recipe,
            features.values[torch.from_numpy(inside)],
            task,
        )

    return score


def train_and_score(
    head: nn.Module, batches: BatchLoader, recipe: Recipe, features: torch.Tensor, task: AnyTask = SINGLE_LABEL
) -> Outputs:
    """Train a head as the recipe says, to the last epoch, and return its outputs, (N, K) float32.

    Args:
        head: The head with its first weights, trained in place.
        batches: Batches of features.
        recipe: The recipe.
        features: Features of the images to predict, (N, …) float32.
        task: What the head predicts.

    Raises:
        TrainingError: The loss diverged.
    """
    average = WeightAverage(head, recipe.ema) if recipe.ema else None
    fit(head, make_optimizer(head, recipe), batches, recipe, TrainingProgress(), Callback(), average, task)
    head.eval()
    with torch.no_grad(), nullcontext() if average is None else average.applied():
        found: Outputs = head(features).float().cpu().numpy()
    return found
