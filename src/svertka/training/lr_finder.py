"""The learning rate range test, and the highest stable learning rate of a head on frozen features."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from svertka.data.loader import Batch, BatchLoader
from svertka.errors import TrainingError
from svertka.graph.network_copy import copy_network
from svertka.tasks import SINGLE_LABEL, AnyTask
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Loss, make_optimizer, set_learning_rate, take_step

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 120
SMOOTHING = 0.9  # decay of the exponential moving average of the loss
STOP = 4.0  # smoothed loss, relative to its minimum, at which the test ends


@dataclass(frozen=True)
class RangeTest:
    """Result of a learning rate range test.

    Attributes:
        rates: The learning rates tried.
        losses: The smoothed loss at each, nats.
        chosen: The chosen learning rate.
    """

    rates: list[float]
    losses: list[float]
    chosen: float


def find_learning_rate(
    network: nn.Module, batches: BatchLoader, recipe: Recipe, task: AnyTask = SINGLE_LABEL
) -> RangeTest:
    """Choose the learning rate at which the smoothed loss falls most steeply against the logarithm of the rate.

    A copy of the network is trained while the learning rate rises. The network and the random state stay as they are.

    Args:
        network: The network.
        batches: The training set.
        recipe: The recipe.
        task: What the network predicts.

    Returns:
        The curve and the chosen learning rate.

    Raises:
        TrainingError: The loss falls at no learning rate.

    Source: Smith 2017, "Cyclical learning rates", §3.3 (the test); choosing the steepest fall is common practice.
    """
    rates, losses = [], []
    with _random_state_preserved(batches.device):
        scout = copy_network(network).train()
        optimizer = make_optimizer(scout, recipe)
        loss_of = Loss(recipe, task)
        average, lowest = 0.0, math.inf
        for step, batch in zip(range(STEPS), _repeat_epochs(batches), strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            set_learning_rate(optimizer, rate)
            loss, _, count = take_step(scout, optimizer, batch, loss_of, recipe).tolist()
            average = SMOOTHING * average + (1 - SMOOTHING) * loss / max(count, 1)
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            lowest = min(lowest, smoothed)
            if not math.isfinite(smoothed) or smoothed > STOP * lowest:
                break
            rates.append(rate)
            losses.append(smoothed)
    return RangeTest(rates, losses, find_steepest_fall(rates, losses))


def find_steepest_fall(rates: list[float], losses: list[float]) -> float:
    """Return the rate in the middle of the five neighbors over which the losses fall most, before their minimum.

    Raises:
        TrainingError: The losses do not fall.
    """
    end = losses.index(min(losses)) + 1 if losses else 0
    falls = {start + 2: losses[start] - losses[start + 4] for start in range(end - 4)}
    best = max(falls, key=falls.__getitem__, default=None)
    if best is None or falls[best] <= 0:
        raise TrainingError(
            f"the loss does not fall at any learning rate from {LOWEST:g} to {HIGHEST:g}; choose one (--lr 0.01) and "
            "check the labels (svertka check)"
        )
    return float(f"{rates[best]:.2g}")


def find_stable_rate(features: torch.Tensor, recipe: Recipe, task: AnyTask = SINGLE_LABEL) -> float:
    """Return `recipe.lr`, or a lower learning rate at which a dense layer on frozen features does not diverge.

    Gradient descent with momentum β is stable up to a learning rate of 2 (1 + β) / λ, with Nesterov momentum up to that
    divided by 1 + 2β, where λ is the largest curvature. For a dense layer λ is at most the largest eigenvalue of the
    features' second moment, times the curvature of the task's loss: 0.5 for the cross-entropy of one class. If the
    recipe exceeds the limit, half of the limit is used.

    Args:
        features: Inputs of the layer, (B, D).
        recipe: The recipe.
        task: What the network predicts.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum", §2 and appendix A.1 (momentum);
    Böhning 1992, "Multinomial logistic regression algorithm", §2 (the bound).
    """
    if recipe.optimizer != "sgd" or not len(features):
        return recipe.lr
    curvature = float(torch.linalg.matrix_norm(features.float().cpu(), 2)) ** 2 / len(features) * task.curvature
    limit = 2 * (1 + recipe.momentum) / max(curvature, 1e-30)
    if recipe.nesterov:
        limit /= 1 + 2 * recipe.momentum
    return recipe.lr if recipe.lr <= limit else float(f"{limit / 2:.2g}")


def _repeat_epochs(batches: BatchLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


@contextmanager
def _random_state_preserved(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
