"""What the loop is given: the network that learns, or the part of it, and batches of pictures, or of features."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.loader import BatchLoader
from svertka.device import set_memory_format
from svertka.errors import DataError, ImageError, StorageError, UsageError
from svertka.evaluation.evaluate import evaluate_network
from svertka.evaluation.report_page import SHOWN_SIDE
from svertka.models import registry
from svertka.models.heads import AdaptationHead, head_path
from svertka.progress import say
from svertka.training.config import Settings
from svertka.training.data_splits import Parts
from svertka.training.lr_finder import stable_rate
from svertka.training.recipe import Recipe
from svertka.training.training_loop import make_optimizer
from svertka.transfer import closed_form_heads, freeze
from svertka.transfer.feature_cache import cache_in_memory, cache_on_disk
from svertka.transfer.freeze import PartiallyFrozen

RATED, RATED_AT_ONCE = 64, 4  # images whose features choose a learning rate; 16 at once took 240 MB
READ = 4  # pictures by which reading is timed


@dataclass(frozen=True, eq=False)
class Learner:
    """`network`, whose modules are the classifier's own, takes what `batches` and `val` (None: no such part) give."""

    network: nn.Module
    batches: BatchLoader
    val: BatchLoader | None
    unit: str = "images"


def freeze_for(classifier: Classifier, recipe: Recipe) -> PartiallyFrozen | None:
    """The network of `classifier`, frozen as `recipe` says, in its two parts; None: all of it learns.

    Raises:
        UsageError: it has no such part as `recipe.unfreeze` names.
    """
    return freeze.freeze(classifier.network, recipe.unfreeze, classifier.preprocess.input_shape)


def optimize_frozen(made: PartiallyFrozen, classifier: Classifier, parts: Parts) -> None:
    """Have what is frozen of `classifier` computed as fast as so many pictures pay for, if it is not yet."""
    made.frozen.optimize(classifier.preprocess.input_shape[1:], sum(parts.sizes().values()))


def optimizer_for(classifier: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of what learns in the network of `classifier`."""
    staged = recipe.stage_rate != 1 or recipe.gradual
    depths = freeze.stage_depths(classifier.network, classifier.preprocess.input_shape) if staged else None
    return make_optimizer(classifier.network, recipe, depths)


def learner(
    classifier: Classifier, made: PartiallyFrozen | None, settings: Settings, parts: Parts, place: torch.device
) -> Learner:
    """What trains `classifier`, `made` of which was frozen; features that it learns from are computed and stored now.

    Raises:
        StorageError: there is no room for the features.
    """
    recipe, shown_as = settings.recipe, (classifier.preprocess, place, settings.layout)
    batches = parts.training_batches(
        classifier.preprocess, recipe, settings.seed, place, settings.layout, prefetch=settings.prefetch
    )
    val = parts.batches("val", *shown_as) if len(parts.indices["val"]) else None
    if made is None:
        return Learner(classifier.network, batches, val)
    if settings.accelerate:
        optimize_frozen(made, classifier, parts)
    if settings.cache is None:
        return Learner(made, batches, val)
    return Learner(
        made.trainable,
        _stored(made, settings, parts, batches, "computing features"),
        val and _stored(made, settings, parts, val, "computing features of val"),
        unit="features",
    )


def judged_by(
    classifier: Classifier, settings: Settings, parts: Parts, part: str, place: torch.device
) -> tuple[nn.Module, BatchLoader]:
    """The network of `classifier`, and the images that it is to be judged by."""
    network = set_memory_format(classifier.network, settings.layout)
    batches = parts.batches(part, classifier.preprocess, place, settings.layout)
    if settings.accelerate:
        network = classifier.optimized_for(len(batches.indices)).network
    return network, batches


def val_error_of(classifier: Classifier, settings: Settings, parts: Parts, place: torch.device) -> float:
    """The top-1 error of `classifier` on the val part of `parts`, 0 to 1."""
    network, batches = judged_by(classifier, settings, parts, "val", place)
    return evaluate_network(network, batches, classifier.names, "scoring val").top1_error


def computes_head(classifier: Classifier, recipe: Recipe) -> bool:
    """Whether the head is computed before anything else learns: one asked for, or one that stages below learn with.

    Raises:
        UsageError: one is asked for, and the network does not end in a dense layer with biases.
    """
    head = _head(classifier)
    dense = isinstance(head, nn.Linear) and head.bias is not None
    if recipe.head in closed_form_heads.SOLVERS and not dense:
        raise UsageError(
            f"head={recipe.head} computes a dense layer with biases, and {classifier.config.model} does not end in "
            "one; use linear"
        )
    return dense and (recipe.head in closed_form_heads.SOLVERS or recipe.computed_first)


@torch.inference_mode()
def head_features(classifier: Classifier, images: torch.Tensor) -> torch.Tensor | None:
    """What the dense layers at the end of the network of `classifier` are given for the first of `images`, (B, D).

    None where it ends in something else.
    """
    made = freeze.split_at_frozen(classifier.network, freeze.HEAD, classifier.preprocess.input_shape)
    if made is None or not isinstance(_head(classifier), nn.Linear | AdaptationHead):
        return None
    return torch.cat([made.frozen(some).flatten(1) for some in torch.split(images[:RATED], RATED_AT_ONCE)])


def at_a_stable_rate(classifier: Classifier, recipe: Recipe, images: torch.Tensor) -> tuple[Recipe, list[str]]:
    """`recipe` at a rate at which the head over the features of `images` does not diverge, and what to say of it."""
    features = head_features(classifier, images)
    rate = distributed.broadcast(recipe.lr if features is None else stable_rate(features, recipe))
    if rate >= recipe.lr:
        return recipe, []
    return recipe.with_changes(lr=rate), [
        f"the learning rate is {rate:g}: at {recipe.lr:g} a head over features as large as these diverges"
    ]


def head_seconds(
    classifier: Classifier, recipe: Recipe, parts: Parts, forward: float, *, stored: bool, optimizing: float = 0.0
) -> float:
    """How long `compute_head` will take, if it is to be called; `forward`: seconds of the network for a picture.

    `stored`: features that the head learns from are stored anyway. `optimizing`: seconds in which what is frozen was
    made fast; where more than the head learns, all below the head is made fast once more.
    """
    if not computes_head(classifier, recipe):
        return 0.0
    pictures, head = len(parts.indices["train"]), _head(classifier)
    assert isinstance(head, nn.Linear)
    are_there = stored and recipe.unfreeze == freeze.HEAD and not recipe.augmentations
    computing = closed_form_heads.estimate_seconds(_way(recipe), pictures, head.in_features, head.out_features)
    again = optimizing if recipe.unfreeze != freeze.HEAD else 0.0
    return computing + again + (0.0 if are_there else forward * pictures)


def scoring_seconds(parts: Parts, forward: float) -> float:
    """How long the judging of the finished network will take, and the report, for which its pictures are read again."""
    indices = parts.indices[parts.judged]
    began = time.perf_counter()
    for index in indices[:READ].tolist():
        with suppress(ImageError, DataError):
            parts.dataset.images.read(index, SHOWN_SIDE)
    return len(indices) * (forward + (time.perf_counter() - began) / max(len(indices[:READ]), 1))


def compute_head(classifier: Classifier, settings: Settings, parts: Parts, place: torch.device) -> None:
    """Compute the head of `classifier` from the features of the training pictures as they are, in place.

    By the way that the recipe names; for one that then learns with stages below, by logistic regression, so that these
    are not spoilt by a head that knows nothing yet.

    Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution", §4.
    """
    made = freeze.split_at_frozen(classifier.network, freeze.HEAD, classifier.preprocess.input_shape)
    batches = parts.batches("train", classifier.preprocess, place, settings.layout)
    head = _head(classifier)
    assert made is not None
    assert isinstance(head, nn.Linear)
    frozen = made.frozen
    if settings.accelerate:
        optimize_frozen(made, classifier, parts)
    if settings.cache is None:
        features = batches.with_images(lambda indices, _: frozen(batches.images(indices, 0)))
    else:
        features = _stored(made, settings, parts, batches, "computing features for the head")
    closed_form_heads.fit_head(head, _way(settings.recipe), features, len(classifier.names))


def _way(recipe: Recipe) -> str:
    return recipe.head if recipe.head in closed_form_heads.SOLVERS else "logistic"


def _head(classifier: Classifier) -> nn.Module:
    return classifier.network.get_submodule(head_path(registry.find_model(classifier.config.model)))


def _stored(made: PartiallyFrozen, settings: Settings, parts: Parts, batches: BatchLoader, title: str) -> BatchLoader:
    """`batches` of the features that `made` learns from, as the settings have them stored."""
    assert settings.cache is not None
    variants = settings.cache.variants if batches.augmentations else 1
    how: dict[str, Any] = {"variants": variants, "half": settings.cache.half, "title": title}
    try:
        return cache_on_disk(batches, made.frozen, made.shape, parts.digests, limit=settings.cache_limit, **how)
    except StorageError as error:
        say(f"features are not stored: {error}; they are computed again by the next training that needs them")
        return cache_in_memory(batches, made.frozen, made.shape, **how)
