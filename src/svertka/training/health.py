"""Problems that the history of a training shows: guessing, plateaus, overfitting, dead units, bad gradients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from svertka.errors import UsageError
from svertka.escaping import join_first
from svertka.graph.summary import Layer
from svertka.inspection.activations import LayerHook, hook_layers, is_activation_function, list_layers
from svertka.training.recipe import Recipe

STALE_EPOCHS = 6  # without a lower validation error: a plateau, if they are also a fifth of all epochs
NAMED = 5  # classes named in a sentence
PROBED = 256  # images on which units and scores are checked
CONSTANT = 1e-6  # largest range of a score that counts as constant
DEAD_SHARE = 0.25  # share of a layer's units that is reported
DEAD_IMAGES = 32  # on fewer images, a unit that one in ten activates looks dead with a probability over 0.9³² = 3 %
EXPLODING = 30.0  # gradient norm relative to the median of earlier epochs
VANISHING = 1e-4  # gradient of the first layer relative to that of the last, each divided by its weights


@dataclass(frozen=True)
class Finding:
    """A problem.

    Attributes:
        kind: A word, such as "plateau".
        sentence: What was observed and what to try.
    """

    kind: str
    sentence: str


def find_problems(
    epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe, *, rate_was_found: bool = False
) -> list[Finding]:
    """Return the problems that show after the last of `epochs`; no advice repeats a setting of the recipe.

    Args:
        epochs: The "epoch" lines of metrics.jsonl, with train_loss, train_error, val_loss, val_error, gradients, dead
            and constant_scores.
        classes: Number of classes.
        recipe: The recipe.
        rate_was_found: Whether a learning rate range test chose the learning rate.
    """
    return [
        finding
        for finding in (
            describe_constant_scores(epochs[-1].get("constant_scores", ()), recipe),
            _guessing(epochs, classes, recipe, rate_was_found=rate_was_found),
            _plateau(epochs, recipe),
            _overfit(epochs, recipe),
            _dead(epochs, recipe),
            _exploding(epochs, recipe),
            _vanishing(epochs),
        )
        if finding is not None
    ]


def has_all_metrics(entry: Mapping[str, Any]) -> bool:
    """Return whether an "epoch" line of metrics.jsonl holds all numbers that `find_problems` reads."""
    needed, optional = ("train_loss", "train_error", "learning_rate"), ("val_loss", "val_error")
    numbers = [entry.get(name) for name in needed] + [entry[name] for name in optional if entry.get(name) is not None]
    for name in ("gradients", "dead"):
        shares = entry.get(name, {})
        numbers += shares.values() if isinstance(shares, dict) else [None]
    return all(isinstance(number, int | float) for number in numbers) and all(name in entry for name in optional)


def divergence_advice(recipe: Recipe) -> str:
    """Return what to try after the loss diverged, a phrase."""
    tried = [f"a lower learning rate (--lr {recipe.lr / 10:.2g})"]
    tried += ["--warmup 1"] * (not recipe.warmup) + ["--clip 1"] * (recipe.clip is None)
    return "try " + " or ".join(filter(None, (", ".join(tried[:-1]), tried[-1])))


def describe_constant_scores(names: Sequence[str], recipe: Recipe) -> Finding | None:
    """Return the finding that the scores of the classes `names` are the same for every image; None without names."""
    if not names:
        return None
    initial = "" if recipe.initial == "he" else ", another initialization (--initial he)"
    return Finding(
        "constant-scores",
        f"The score of {join_first(names, NAMED)} is the same for every image of a batch, so that it does "
        f"not learn: try a lower learning rate (--lr {recipe.lr / 10:.2g}){initial} or another network.",
    )


def _guessing(
    epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe, *, rate_was_found: bool
) -> Finding | None:
    chance = 1 - 1 / classes
    error, val_error = epochs[-1]["train_error"], epochs[-1].get("val_error")
    # The error on mixed images is high also where the images themselves are recognized.
    lowest = min(error, val_error) if recipe.mixing and val_error is not None else error
    if len(epochs) < 3 or lowest < 0.97 * chance:
        return None
    return Finding(
        "guessing",
        f"After {len(epochs)} epochs the training error is at chance level ({error:.1%}; chance is {chance:.1%}): "
        f"try another learning rate{'' if rate_was_found else ' (--lr find)'} and check the labels (svertka check).",
    )


def _plateau(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    errors, losses = ([epoch[key] for epoch in epochs] for key in ("val_error", "val_loss"))
    if None in errors or None in losses:
        return None
    best = min(range(len(errors)), key=errors.__getitem__)
    # While the loss still falls, the error may follow: images near the boundary change their class last.
    stale = len(errors) - 1 - max(best, min(range(len(losses)), key=losses.__getitem__))
    rates = [epoch["learning_rate"] for epoch in epochs[best:]]
    if stale < max(STALE_EPOCHS, recipe.epochs / 5) or errors[best] == 0 or min(rates) < 0.5 * max(rates):
        return None
    falls = (
        ""
        if recipe.schedule.kind != "constant"
        else ", or choose a schedule that lowers it (--schedule plateau or cosine)"
    )
    return Finding(
        "plateau",
        f"The validation error has not improved for {stale} epochs at nearly the same learning rate (best "
        f"{errors[best]:.1%} in epoch {best + 1}): lower the learning rate (--lr {recipe.lr / 10:.2g}){falls}.",
    )


def _overfit(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    losses = [epoch["val_loss"] for epoch in epochs]
    if len(losses) < 4 or None in losses:
        return None
    last = epochs[-1]
    rising = min(losses[-3:]) > 1.15 * min(losses)
    if not rising or last["train_loss"] > 0.5 * last["val_loss"]:
        return None
    return Finding(
        "overfit",
        f"The network overfits: the validation loss has risen from {min(losses):.3g} to {losses[-1]:.3g} while the "
        f"training loss is {last['train_loss']:.3g} (errors {last['val_error']:.1%} and {last['train_error']:.1%}): "
        f"more images, {'' if recipe.augmentations else 'augmentation, '}"
        f"{'more ' if recipe.weight_decay else ''}weight decay or fewer epochs would help.",
    )


def _dead(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    worst = max(epochs[-1].get("dead", {}).items(), key=lambda layer: layer[1], default=("", 0.0))
    if worst[1] < DEAD_SHARE:
        return None
    return Finding(
        "dead",
        f"{worst[1]:.0%} of the units after {worst[0]} are dead (constant over a sample of {DEAD_IMAGES} or more "
        f"images): try a lower learning rate{'' if recipe.warmup else ' or a warm-up (--warmup 1)'}.",
    )


def _exploding(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    sizes = [math.hypot(*epoch.get("gradients", {}).values()) for epoch in epochs]
    if len(sizes) < 3 or sizes[-1] < EXPLODING * median(sizes[:-1]):
        return None
    times = sizes[-1] / max(median(sizes[:-1]), 1e-30)
    return Finding(
        "exploding",
        f"The gradient has grown {times:.0f}-fold: {'clip it (--clip 1) or ' if recipe.clip is None else ''}lower the "
        "learning rate.",
    )


def _vanishing(epochs: Sequence[Mapping[str, Any]]) -> Finding | None:
    ratios = list(epochs[-1].get("gradients", {}).items())
    if len(ratios) < 2 or ratios[0][1] >= VANISHING * ratios[-1][1]:
        return None
    (first, low), (last, high) = ratios[0], ratios[-1]
    return Finding(
        "vanishing",
        f"The gradient vanishes: relative to the weights it is {low:.1e} at {first} and {high:.1e} at {last}; try a "
        "network with batch norm or residual connections, or another initialization (--initial).",
    )


@torch.no_grad()
def find_constant_scores(network: nn.Module, images: torch.Tensor) -> list[int]:
    """Return the classes whose score is the same for all images, as behind a ReLU that is always 0.

    Args:
        network: The network; its mode is restored.
        images: Images (B, …); with fewer than two no class is returned.
    """
    training = network.training
    scores: torch.Tensor = network.eval()(images)
    network.train(training)
    if len(images) < 2:
        return []
    return torch.nonzero(scores.amax(0) - scores.amin(0) <= CONSTANT).flatten().tolist()


@torch.no_grad()
def measure_dead_units(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return the share of units (channels) of each activation function whose output never changes, by name.

    Activation functions that depend on no parameter with `requires_grad` are left out: training does not change them.

    Args:
        network: The network; its mode is restored.
        images: Images or features (B, …). With fewer than `DEAD_IMAGES`, nothing is measured.

    Returns:
        The shares, for the activation functions whose channels are known; {} if the network cannot be traced.
    """
    if len(images) < DEAD_IMAGES:
        return {}
    try:
        known = list_layers(network, (1, *images.shape[1:]))
    except UsageError:
        return {}
    # Where channels are neither those of maps nor the only axis, it is unknown what the units are.
    watched = [layer for layer in known if is_activation_function(layer) and (layer.maps or len(layer.shape) == 2)]
    if not watched:
        return {}
    depends: dict[str, bool] = {}

    def note(layer: Layer) -> LayerHook:
        return lambda output: depends.update({layer.name: output.requires_grad})

    with hook_layers(network, known, {layer.name: note(layer) for layer in watched}), torch.enable_grad():
        network(images[:1])
    shares: dict[str, float] = {}

    def watch(layer: Layer) -> LayerHook:
        unit_axis = layer.maps.dims[1] if layer.maps else 1
        axes = [axis for axis in range(len(layer.shape)) if axis != unit_axis]

        def hook(output: torch.Tensor) -> None:
            ranges = output.amax(axes) - output.amin(axes)
            shares[layer.name] = float((ranges <= CONSTANT).double().mean())

        return hook

    trained = {layer.name: watch(layer) for layer in watched if depends[layer.name]}
    if trained:
        with hook_layers(network, known, trained):
            network(images)
    return shares
