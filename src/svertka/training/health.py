"""Is it learning? What the history of a training says, one plain sentence a finding."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from svertka.escaping import join_first
from svertka.training.recipe import Recipe

STALE_EPOCHS = 6  # without a better val error before it is called a plateau, and a fifth of all epochs
NAMED = 5  # classes that a sentence names
CONSTANT = 1e-6  # difference between the highest and the lowest score of a class, below which it is the same for all
DEAD_SHARE = 0.25  # of a layer's units
EXPLODING = 30.0  # times the median of the epochs before
VANISHING = 1e-4  # of the last layer's, in the first; both relative to their weights


@dataclass(frozen=True)
class Finding:
    """`kind` is one word; `sentence` says what was seen and what to try."""

    kind: str
    sentence: str


def findings(
    epochs: Sequence[Mapping[str, Any]], classes: int, recipe: Recipe, *, rate_was_found: bool = False
) -> list[Finding]:
    """What can be said after the last of `epochs` of a training by `recipe`; it advises nothing that is in use.

    `epochs`: the "epoch" lines of metrics.jsonl. Looks at train_loss, train_error, val_loss, val_error, gradients,
    dead and constant_scores of each. `rate_was_found`: the learning-rate finder chose the rate.
    """
    return [
        finding
        for finding in (
            constant(epochs[-1].get("constant_scores", ()), recipe),
            _guessing(epochs, classes, rate_was_found=rate_was_found),
            _plateau(epochs, recipe),
            _overfit(epochs, recipe),
            _dead(epochs, recipe),
            _exploding(epochs, recipe),
            _vanishing(epochs),
        )
        if finding is not None
    ]


def is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether an "epoch" line of metrics.jsonl holds all that `findings` looks at, as training writes it."""
    needed, judged = ("train_loss", "train_error", "learning_rate"), ("val_loss", "val_error")
    numbers = [entry.get(name) for name in needed] + [entry[name] for name in judged if entry.get(name) is not None]
    for name in ("gradients", "dead"):
        shares = entry.get(name, {})
        numbers += shares.values() if isinstance(shares, dict) else [None]
    return all(isinstance(number, int | float) for number in numbers) and all(name in entry for name in judged)


def against_divergence(recipe: Recipe) -> str:
    """What to try where the loss diverged, a phrase."""
    tried = [f"a lower learning rate (--lr {recipe.lr / 10:.2g})"]
    tried += ["--warmup 1"] * (not recipe.warmup) + ["--clip 1"] * (recipe.clip is None)
    return "try " + " or ".join(filter(None, (", ".join(tried[:-1]), tried[-1])))


def constant(names: Sequence[str], recipe: Recipe) -> Finding | None:
    """The finding on the classes `names`, whose score is the same for every image; None if there are none."""
    if not names:
        return None
    initial = "" if recipe.initial == "he" else ", other first weights (--initial he)"
    return Finding(
        "constant-scores",
        f"The score of {join_first(names, NAMED)} is the same for every picture of a batch, so that nothing is "
        "learned of it: "
        f"try a lower learning rate (--lr {recipe.lr / 10:.2g}){initial} or another network.",
    )


def _guessing(epochs: Sequence[Mapping[str, Any]], classes: int, *, rate_was_found: bool) -> Finding | None:
    chance = 1 - 1 / classes
    error = epochs[-1]["train_error"]
    if len(epochs) < 3 or error < 0.97 * chance:
        return None
    return Finding(
        "guessing",
        f"After {len(epochs)} epochs it is right as often as a guess (train error {error:.1%}, chance {chance:.1%}): "
        f"try another learning rate{'' if rate_was_found else ' (--lr find)'} and look at the labels (svertka check).",
    )


def _plateau(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    errors, losses = ([epoch[key] for epoch in epochs] for key in ("val_error", "val_loss"))
    if None in errors or None in losses:
        return None
    best = min(range(len(errors)), key=errors.__getitem__)
    # The loss moves first: while it still falls, the error is only waiting for pictures near the border.
    stale = len(errors) - 1 - max(best, min(range(len(losses)), key=losses.__getitem__))
    rates = [epoch["learning_rate"] for epoch in epochs[best:]]
    if stale < max(STALE_EPOCHS, recipe.epochs / 5) or errors[best] == 0 or min(rates) < 0.5 * max(rates):
        return None
    falls = "" if recipe.schedule.kind != "constant" else ", or let it fall by itself (--schedule plateau or cosine)"
    return Finding(
        "plateau",
        f"The val error has not improved for {stale} epochs at nearly the same learning rate (best {errors[best]:.1%} "
        f"in epoch {best + 1}): lower the rate (--lr {recipe.lr / 10:.2g}){falls}.",
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
        f"It learns the training pictures by heart: the val loss has risen from {min(losses):.3g} to {losses[-1]:.3g} "
        f"while the train loss is {last['train_loss']:.3g} (errors {last['val_error']:.1%} and "
        f"{last['train_error']:.1%}): more pictures, {'' if recipe.augmentations else 'augmentation, '}"
        f"{'more ' if recipe.weight_decay else ''}weight decay or fewer epochs would help.",
    )


def _dead(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    worst = max(epochs[-1].get("dead", {}).items(), key=lambda layer: layer[1], default=("", 0.0))
    if worst[1] < DEAD_SHARE:
        return None
    return Finding(
        "dead",
        f"{worst[1]:.0%} of the units after {worst[0]} are dead (zero on every picture of a val batch): a lower "
        f"learning rate{'' if recipe.warmup else ' or a warm-up (--warmup 1)'} keeps them alive.",
    )


def _exploding(epochs: Sequence[Mapping[str, Any]], recipe: Recipe) -> Finding | None:
    sizes = [math.hypot(*epoch.get("gradients", {}).values()) for epoch in epochs]
    if len(sizes) < 3 or sizes[-1] < EXPLODING * median(sizes[:-1]):
        return None
    times = sizes[-1] / max(median(sizes[:-1]), 1e-30)
    return Finding(
        "exploding",
        f"The gradient is {times:.0f} times what it was: {'clip it (--clip 1) or ' if recipe.clip is None else ''}"
        "lower the learning rate.",
    )


def _vanishing(epochs: Sequence[Mapping[str, Any]]) -> Finding | None:
    ratios = list(epochs[-1].get("gradients", {}).items())
    if len(ratios) < 2 or ratios[0][1] >= VANISHING * ratios[-1][1]:
        return None
    (first, low), (last, high) = ratios[0], ratios[-1]
    return Finding(
        "vanishing",
        f"The gradient vanishes on its way down: relative to the weights it is {low:.1e} at {first} and {high:.1e} at "
        f"{last}; a network with batch norm or shortcuts, or another initialisation, lets it through.",
    )


@torch.no_grad()
def constant_scores(network: nn.Module, images: torch.Tensor) -> list[int]:
    """The classes whose score is the same for all of `images`, (B, …), of which there are two or more.

    Such a unit has died: behind a ReLU that gives 0 for everything, say. The network is left as it was.
    """
    training = network.training
    scores: torch.Tensor = network.eval()(images)
    network.train(training)
    if len(images) < 2:
        return []
    return torch.nonzero(scores.amax(0) - scores.amin(0) <= CONSTANT).flatten().tolist()


@torch.no_grad()
def dead_units(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Share of units (channels) of each ReLU module that are zero on all of `images`; the network is left as it was."""
    shares: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            others = [axis for axis in range(output.dim()) if axis != 1]
            shares[name] = float((output.amax(others) <= 0).double().mean())

        return hook

    relus: Iterable[tuple[str, nn.Module]] = (
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.ReLU)
    )
    hooks = [module.register_forward_hook(watch(name)) for name, module in relus]
    training = network.training
    try:
        if hooks:
            network.eval()(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return shares
