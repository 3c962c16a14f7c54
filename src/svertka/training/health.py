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
DEAD_SHARE = 0.5  # share of a layer's units that is reported: of a network that learns well, 40 % may be dead
DEAD_IMAGES = 32  # on fewer images, a unit that one in ten activates looks dead with a probability over 0.9³² = 3 %
EXPLODING = 30.0  # gradient norm relative to the median of earlier epochs
VANISHING = 1e-4  # gradient of the first layer relative to that of the last, each divided by its weights
AT_CHANCE = 0.97  # error relative to that of guessing from which nothing is learned
LEARNED = 0.9  # error relative to that of guessing below which something is learned
DIVERGING = 2.0  # loss relative to that of equal scores for all classes
FIRST_STEPS = 20  # in networks with normalization layers, the loss of fewer steps may rise and fall again
MOVED = 0.02  # largest relative change of the weights that is too small to learn
STRONG_DECAY = 0.1  # weight decay of sgd that may keep the weights near 0
SMALL_CLIP = 0.01  # norm of clipped gradients that may be too small to learn


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
    epochs: Sequence[Mapping[str, Any]],
    classes: int | None,
    recipe: Recipe,
    *,
    rate_was_found: bool = False,
    is_normalized: bool = False,
) -> list[Finding]:
    """Return the problems that show after the last of `epochs`; no advice repeats a setting of the recipe.

    A cause hides its consequences: a network whose units are dead is not also told that it guesses.

    Args:
        epochs: The "epoch" lines of metrics.jsonl, with train_loss, train_error, val_loss, val_error, gradients, dead
            and constant_scores.
        classes: Number of classes. None: the network does not predict one class, so that the error of guessing is
            unknown, and only scores and gradients are checked.
        recipe: The recipe.
        rate_was_found: Whether a learning rate range test chose the learning rate.
        is_normalized: Whether the network has normalization layers.
    """
    constant = describe_constant_scores(epochs[-1].get("constant_scores", ()), recipe)
    of_gradients = [_exploding(epochs, recipe), _vanishing(epochs, recipe, is_normalized)]
    if classes is None:
        return [finding for finding in (constant, *of_gradients) if finding is not None]
    if (diverging := _diverging(epochs, classes, recipe, is_normalized)) is not None:
        return [diverging]
    dead = _dead(epochs, classes, recipe)
    of_units = [one for one in (constant, dead) if one is not None]
    nothing_learned = (
        None
        if of_units
        else _too_slow(epochs, classes, recipe) or _guessing(epochs, classes, recipe, rate_was_found=rate_was_found)
    )
    by_heart = _learned_by_heart(epochs, classes)
    others = (
        [nothing_learned or by_heart]
        if nothing_learned or by_heart
        else [_overfit(epochs, recipe) or _plateau(epochs, classes, recipe)]
    )
    return [finding for finding in (*of_units, *others, *of_gradients) if finding is not None]


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
    return f"try {_join_or(tried)}"


def describe_constant_scores(names: Sequence[str], recipe: Recipe) -> Finding | None:
    """Return the finding that the scores of the classes `names` are the same for every image; None without names."""
    if not names:
        return None
    return Finding(
        "constant-scores",
        f"The score of {join_first(names, NAMED)} is the same for every image of a batch, so that it does "
        f"not learn: try {_join_or([*_against_dead_units(recipe), 'another network'])}.",
    )


def describe_same_images() -> Finding:
    """Return the finding that all images of a batch are the same to the network."""
    return Finding(
        "same-images",
        "All images of a batch are the same to the trained layers, so that nothing can be learned from them: look at "
        "the images (svertka check SOURCE --labels --output check.html).",
    )


def _against_dead_units(recipe: Recipe) -> list[str]:
    """Return what may keep units from dying, phrases."""
    advice = [*_against_weight_decay(recipe), f"a lower learning rate (--lr {recipe.lr / 10:.2g})"]
    advice += ["a warm-up (--warmup 1)"] * (not recipe.warmup)
    advice += ["another initialization (--initial he)"] * (recipe.initial != "he")
    return advice


def _against_weight_decay(recipe: Recipe) -> list[str]:
    """Return the phrase that advises a lower weight decay; nothing if it is low."""
    strong = recipe.optimizer == "sgd" and recipe.weight_decay >= STRONG_DECAY
    return [f"a lower weight decay (now {recipe.weight_decay:g})"] * strong


def _join_or(phrases: Sequence[str]) -> str:
    """Return the phrases as a list in words."""
    return " or ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _chance(classes: int) -> float:
    """Return the error of guessing."""
    return 1 - 1 / classes


def _lowest_error(epoch: Mapping[str, Any], recipe: Recipe) -> float:
    """Return the training error; of mixed images, which err more, the validation error if it is lower."""
    error, val_error = float(epoch["train_error"]), epoch.get("val_error")
    return min(error, float(val_error)) if recipe.mixing and val_error is not None else error


def _diverging(
    epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe, is_normalized: bool
) -> Finding | None:
    loss, equal = epochs[-1]["train_loss"], math.log(classes)
    if is_normalized and epochs[-1].get("step", math.inf) < FIRST_STEPS:
        return None
    if loss < DIVERGING * equal or _lowest_error(epochs[-1], recipe) < LEARNED * _chance(classes):
        return None
    return Finding(
        "diverging",
        f"The training diverges: the loss is {loss:.3g}, and that of equal scores for all classes is {equal:.3g}; "
        f"{divergence_advice(recipe)}.",
    )


def _too_slow(epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe) -> Finding | None:
    """Return the finding that the weights hardly change, by an upper bound of the sum of all steps."""
    steps = epochs[-1].get("step")
    if len(epochs) < 3 or recipe.optimizer != "sgd" or steps is None:
        return None
    error = _lowest_error(epochs[-1], recipe)
    per_epoch = steps / len(epochs) / (1 - recipe.momentum)
    moved = sum(epoch["learning_rate"] * max(epoch.get("gradients", {}).values(), default=1.0) for epoch in epochs)
    if error < 0.5 * _chance(classes) or not 0 < moved * per_epoch < MOVED:
        return None
    raised = f"the learning rate (--lr {recipe.lr * 10:.2g})"
    if recipe.clip is not None and recipe.clip < SMALL_CLIP:
        raised = f"--clip (now {recipe.clip:g}) or {raised}"
    return Finding(
        "slow",
        f"After {len(epochs)} epochs the weights have changed by less than {MOVED:.0%}, and the training error is "
        f"{error:.1%}: raise {raised}.",
    )


def _guessing(
    epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe, *, rate_was_found: bool
) -> Finding | None:
    chance, error = _chance(classes), epochs[-1]["train_error"]
    if len(epochs) < 3 or _lowest_error(epochs[-1], recipe) < AT_CHANCE * chance:
        return None
    advice = _against_weight_decay(recipe) + ["another learning rate (--lr find)"] * (not rate_was_found)
    if recipe.clip is not None and recipe.clip < SMALL_CLIP:
        advice.insert(0, f"a larger --clip (now {recipe.clip:g})")
    tried = f"try {_join_or(advice)} and check" if advice else "check"
    return Finding(
        "guessing",
        f"After {len(epochs)} epochs the training error is at chance level ({error:.1%}; chance is {chance:.1%}): "
        f"{tried} the labels (svertka check --labels).",
    )


def _learned_by_heart(epochs: Sequence[Mapping[str, Any]], classes: int) -> Finding | None:
    """Return the finding that training images are learned, and nothing that holds for those of validation."""
    chance, last = _chance(classes), epochs[-1]
    errors = [epoch["val_error"] for epoch in epochs[-3:] if epoch.get("val_error") is not None]
    if len(epochs) < 5 or len(errors) < 3 or last["train_error"] >= LEARNED * chance:
        return None
    # A tenth for the noise of few images; NaN is no chance level.
    if not min(errors) >= max(LEARNED * chance, last["train_error"] / LEARNED):
        return None
    return Finding(
        "unrelated",
        f"The training error has fallen to {last['train_error']:.1%}, and the validation error is near chance level "
        f"({last['val_error']:.1%}; chance is {chance:.1%}): what is learned does not hold for other images. Check the "
        "labels of both parts (svertka check --labels).",
    )


def _plateau(epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe) -> Finding | None:
    errors, losses = ([epoch[key] for epoch in epochs] for key in ("val_error", "val_loss"))
    if None in errors or None in losses:
        return None
    best = min(range(len(errors)), key=errors.__getitem__)
    # While the loss still falls, the error may follow: images near the boundary change their class last.
    stale = len(errors) - 1 - max(best, min(range(len(losses)), key=losses.__getitem__))
    rates = [epoch["learning_rate"] for epoch in epochs[best:]]
    is_stale = stale >= max(STALE_EPOCHS, recipe.epochs / 5) and min(rates) >= 0.5 * max(rates)
    if not is_stale or not 0 < errors[best] < LEARNED * _chance(classes):
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


def _dead(epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe) -> Finding | None:
    worst = max(epochs[-1].get("dead", {}).items(), key=lambda layer: layer[1], default=("", 0.0))
    if worst[1] < DEAD_SHARE or _lowest_error(epochs[-1], recipe) < 0.1 * _chance(classes):
        return None
    return Finding(
        "dead",
        f"{worst[1]:.0%} of the units after {worst[0]} are dead (constant over a sample of {DEAD_IMAGES} or more "
        f"images): try {_join_or(_against_dead_units(recipe))}.",
    )


def _exploding(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    sizes = [math.hypot(*epoch.get("gradients", {}).values()) for epoch in epochs]
    before = median(sizes[:-1]) if len(sizes) >= 3 else 0.0
    if not before or sizes[-1] < EXPLODING * before:
        return None
    return Finding(
        "exploding",
        f"The gradient has grown {sizes[-1] / before:.0f}-fold: {'clip it (--clip 1) or ' * (recipe.clip is None)}"
        f"lower the learning rate (--lr {recipe.lr / 10:.2g}).",
    )


def _vanishing(epochs: Sequence[Mapping[str, Any]], recipe: Recipe, is_normalized: bool) -> Finding | None:
    ratios = list(epochs[-1].get("gradients", {}).items())
    # A gradient of exactly 0 has not vanished on its way: units are dead.
    if len(ratios) < 2 or not 0 < ratios[0][1] < VANISHING * ratios[-1][1]:
        return None
    (first, low), (last, high) = ratios[0], ratios[-1]
    network = (
        "a network with residual connections" if is_normalized else "a network with batch norm or residual connections"
    )
    initial = ", or another initialization (--initial he)" if recipe.initial != "he" else ""
    return Finding(
        "vanishing",
        f"The gradient vanishes: relative to the weights it is {low:.1e} at {first} and {high:.1e} at {last}; try "
        f"{network}{initial}.",
    )


def are_all_the_same(images: torch.Tensor) -> bool:
    """Return whether two or more images (B, …), or features, are the same in all values."""
    return len(images) > 1 and float((images - images[:1]).abs().amax()) <= CONSTANT


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


def list_measured_layers(network: nn.Module, images: torch.Tensor) -> list[Layer]:
    """Return the layers of `network` for `images` (B, …); [] if it cannot be traced, or dead units are not measured."""
    if len(images) < DEAD_IMAGES:
        return []
    try:
        return list_layers(network, (1, *images.shape[1:]))
    except UsageError:
        return []


@torch.no_grad()
def measure_dead_units(
    network: nn.Module, images: torch.Tensor, known: Sequence[Layer] | None = None
) -> dict[str, float]:
    """Return the share of units (channels) of each activation function whose output never changes, by name.

    Activation functions that depend on no parameter with `requires_grad` are left out: training does not change them.

    Args:
        network: The network; its mode is restored.
        images: Images or features (B, …). With fewer than `DEAD_IMAGES`, nothing is measured.
        known: Its layers, from `list_measured_layers` for such images. None: they are listed here.

    Returns:
        The shares, for the activation functions whose channels are known; {} if the network cannot be traced.
    """
    if len(images) < DEAD_IMAGES:
        return {}
    if known is None:
        known = list_measured_layers(network, images)
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
