"""The learning-rate finder: train a copy for a moment while the rate rises, and see where the loss falls best."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from svertka.data.loader import Batch, BatchLoader
from svertka.errors import TrainingError
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Loss, make_optimizer, set_rate, take_step

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 120
SMOOTHING = 0.9  # of the exponential average of the loss
STOP = 4.0  # times the lowest smoothed loss


@dataclass(frozen=True)
class RangeTest:
    """The rates tried, the smoothed loss (nats) at each, and the one chosen."""

    rates: list[float]
    losses: list[float]
    chosen: float


def find_learning_rate(network: nn.Module, batches: BatchLoader, recipe: Recipe) -> RangeTest:
    """The rate at which the smoothed loss falls most steeply against the logarithm of the rate.

    Works on a copy; `network`, and the random state, are bit for bit as before.

    Raises:
        TrainingError: the loss falls nowhere.

    Source: Smith 2017, "Cyclical learning rates", §3.3 (the test); the steepest fall as the choice is common practice.
    """
    rates, losses = [], []
    with _random_state_kept(batches.device):
        scout = copy.deepcopy(network).train()
        optimizer = make_optimizer(scout, recipe)
        loss_of = Loss(recipe)
        average, lowest = 0.0, math.inf
        for step, batch in zip(range(STEPS), _endless(batches), strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            set_rate(optimizer, rate)
            loss, _, count = take_step(scout, optimizer, batch, loss_of, recipe).tolist()
            average = SMOOTHING * average + (1 - SMOOTHING) * loss / max(count, 1)
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            lowest = min(lowest, smoothed)
            if not math.isfinite(smoothed) or smoothed > STOP * lowest:
                break
            rates.append(rate)
            losses.append(smoothed)
    return RangeTest(rates, losses, steepest(rates, losses))


def steepest(rates: list[float], losses: list[float]) -> float:
    """The rate in the middle of the steepest fall of `losses` over five neighbours, before their lowest point.

    Raises:
        TrainingError: there is no fall.
    """
    end = losses.index(min(losses)) + 1 if losses else 0
    falls = {start + 2: losses[start] - losses[start + 4] for start in range(end - 4)}
    best = max(falls, key=falls.__getitem__, default=None)
    if best is None or falls[best] <= 0:
        raise TrainingError(
            "the learning-rate finder saw the loss fall at no rate between "
            f"{LOWEST:g} and {HIGHEST:g}; give one (--lr 0.01) and look at the labels (svertka check)"
        )
    return float(f"{rates[best]:.2g}")


def stable_rate(features: torch.Tensor, recipe: Recipe) -> float:
    """`recipe.lr`, or a lower rate, at which a dense layer over `features`, (B, D), learns without diverging.

    Gradient descent with momentum β is stable up to 2 (1 + β) / λ, with Nesterov's up to that over 1 + 2β, for a
    largest curvature λ. That of the cross-entropy of a dense layer is at most half the largest eigenvalue of the
    features' second moment. Half of the limit is taken where the recipe's rate is beyond it.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum", §2 and appendix A.1 (momentum);
    Böhning 1992, "Multinomial logistic regression algorithm", §2 (the bound).
    """
    if recipe.optimizer != "sgd" or not len(features):
        return recipe.lr
    curvature = float(torch.linalg.matrix_norm(features.float().cpu(), 2)) ** 2 / len(features) / 2
    limit = 2 * (1 + recipe.momentum) / max(curvature, 1e-30)
    if recipe.nesterov:
        limit /= 1 + 2 * recipe.momentum
    return recipe.lr if recipe.lr <= limit else float(f"{limit / 2:.2g}")


def _endless(batches: BatchLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
