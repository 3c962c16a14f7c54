"""The head computed from features before training, and the learning rate at which a head on features is stable."""

from functools import partial

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.errors import UsageError
from svertka.models.head_kinds import AdaptationHead, has_head, head_path
from svertka.tasks import MultiLabel, Regression, Targets
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits
from svertka.training.lr_finder import find_stable_rate
from svertka.training.recipe import Recipe
from svertka.training.trained_part_and_batches import optimize_frozen, store_features
from svertka.transfer import freeze
from svertka.transfer import logistic_and_nearest_mean_heads as heads
from svertka.transfer.freeze import PartiallyFrozen
from svertka.transfer.multi_label_and_regression_heads import fit_logistic_regressions, fit_ridge_regression

RATED_IMAGES = 64  # images whose features limit the learning rate
RATED_AT_ONCE = 4  # of them per batch: 16 took 240 MB
FITTED_IMAGES = 4000  # training images up to which the 30 epochs of the default recipe are fewer than 2,000 steps


def needs_computed_head(classifier: Classifier, recipe: Recipe) -> bool:
    """Return whether the head is computed before training: by the recipe's solver, or for training to start from.

    Raises:
        UsageError: The recipe names a solver, and the network does not end in a dense layer with biases.
    """
    head = _find_head(classifier)
    is_dense = isinstance(head, nn.Linear) and head.bias is not None
    if recipe.head in heads.SOLVERS and not is_dense:
        raise UsageError(
            f"head={recipe.head} computes a dense layer with biases, and {classifier.config.model} does not end in "
            "one; use linear"
        )
    return is_dense and (recipe.head in heads.SOLVERS or recipe.computed_first)


def fits_default_head(classifier: Classifier, recipe: Recipe, images: int) -> bool:
    """Return whether logistic regression suits a head better than the steps of the default recipe.

    A head that comes with the weights is trained further instead, and so is one that is not a dense layer.

    Args:
        classifier: The classifier before its first step; a new head is zero.
        recipe: The default recipe from trained weights.
        images: Number of training images.
    """
    is_only_head = recipe.unfreeze == freeze.HEAD and recipe.head == "linear"
    head = _find_head(classifier) if is_only_head and classifier.task.is_single_label else None
    is_new = isinstance(head, nn.Linear) and head.bias is not None and not head.weight.any()
    return is_new and images <= FITTED_IMAGES


def compute_head(
    classifier: Classifier,
    settings: RunSettings,
    parts: DataSplits,
    device: torch.device,
    frozen: PartiallyFrozen | None = None,
) -> None:
    """Compute the head of `classifier` from the features of the training images without augmentation, in place.

    A head that is then trained with stages below it is computed by logistic regression: a random head would spoil their
    features.

    Args:
        classifier: The classifier.
        settings: The settings of the training.
        parts: The images.
        device: The device.
        frozen: The network in two parts, from `freeze_classifier`. If it ends before the head, it is used, so that its
            frozen part is compiled only once.

    Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution", §4.
    """
    split = _split_before_head(classifier)
    batches = parts.eval_batches("train", classifier.preprocess, device, settings.layout)
    head = _find_head(classifier)
    assert split is not None
    assert isinstance(head, nn.Linear)
    if frozen is not None and (frozen.first_trainable, frozen.shape) == (split.first_trainable, split.shape):
        split = frozen
    prefix = split.frozen
    if settings.accelerate:
        optimize_frozen(split, classifier, parts)
    if settings.cache is None:
        features = batches.with_images(lambda indices, _: prefix(batches.images(indices, 0)))
    else:
        features = store_features(split, settings, parts, batches, "computing features for the head")
    heads.fit_head(head, partial(_solve, classifier, _solver(settings.recipe)), features)


def _solve(
    classifier: Classifier, solver: str, features: heads.Floats, targets: Targets
) -> tuple[heads.Floats, heads.Floats]:
    """Return weights (K, D) and biases (K,) of a head fitted to features (N, D) and the targets of its task."""
    task, outputs = classifier.task, len(classifier.names)
    if isinstance(task, MultiLabel):
        return fit_logistic_regressions(features, targets, outputs)
    if isinstance(task, Regression):
        return fit_ridge_regression(features, targets, task)
    return heads.SOLVERS[solver](features, targets, outputs)


def estimate_head_seconds(
    classifier: Classifier,
    recipe: Recipe,
    parts: DataSplits,
    forward: float,
    *,
    stored: bool,
    optimizing: float = 0.0,
    fits: int = 1,
) -> float:
    """Estimate the time of `compute_head`; 0 if the head is not computed.

    Args:
        classifier: The classifier.
        recipe: The recipe.
        parts: The images.
        forward: Seconds of the network per image.
        stored: Whether the features of frozen layers are stored for training.
        optimizing: Seconds that compiling the frozen layers took. It is done once more if stages below the head are
            trained.
        fits: How often the head is fitted, with the folds of a cross-validation.
    """
    if not needs_computed_head(classifier, recipe):
        return 0.0
    images, head = len(parts.indices["train"]), _find_head(classifier)
    assert isinstance(head, nn.Linear)
    has_features = stored and recipe.unfreeze == freeze.HEAD and not recipe.augmentations
    solving = fits * heads.estimate_fit_seconds(_solver(recipe), images, head.in_features, head.out_features)
    again = optimizing if recipe.unfreeze != freeze.HEAD else 0.0
    return solving + again + (0.0 if has_features else forward * images)


def lower_diverging_rate(classifier: Classifier, recipe: Recipe, images: torch.Tensor) -> tuple[Recipe, list[str]]:
    """Lower the learning rate if a head on frozen features would diverge.

    Args:
        classifier: The classifier.
        recipe: The recipe.
        images: Training images (B, C, H, W).

    Returns:
        The recipe, and a sentence if its learning rate changed.
    """
    features = _head_inputs(classifier, images)
    rate = distributed.broadcast(recipe.lr if features is None else find_stable_rate(features, recipe, classifier.task))
    if rate >= recipe.lr:
        return recipe, []
    return recipe.with_changes(lr=rate), [
        f"the learning rate is {rate:g}: at {recipe.lr:g} a head on features as large as these diverges"
    ]


@torch.inference_mode()
def _head_inputs(classifier: Classifier, images: torch.Tensor) -> torch.Tensor | None:
    """Return the inputs (B, D) of the dense layers at the end of the network; None if it ends in something else."""
    split = _split_before_head(classifier)
    if split is None or not isinstance(_find_head(classifier), nn.Linear | AdaptationHead):
        return None
    some = torch.split(images[:RATED_IMAGES], RATED_AT_ONCE)
    return torch.cat([split.frozen(batch).flatten(1) for batch in some])


def _split_before_head(classifier: Classifier) -> PartiallyFrozen | None:
    """Split the network before its head; None if it has none, or cannot be split."""
    if not has_head(classifier.model):
        return None
    return freeze.split_before_head(classifier.network, head_path(classifier.model), classifier.preprocess.input_shape)


def _solver(recipe: Recipe) -> str:
    return recipe.head if recipe.head in heads.SOLVERS else "logistic"


def _find_head(classifier: Classifier) -> nn.Module | None:
    model = classifier.model
    return classifier.network.get_submodule(head_path(model)) if has_head(model) else None
