from collections.abc import Callable

import pytest
import torch

from svertka.data.loader import BatchLoader
from svertka.errors import TrainingError
from svertka.models.registry import MODELS
from svertka.training.lr_finder import find_learning_rate, find_stable_rate, find_steepest_fall
from svertka.training.recipe import Recipe
from svertka.training.training_loop import make_optimizer


@pytest.mark.usefixtures("quiet")
def test_the_rate_found_learns_and_everything_is_left_bit_for_bit(digit_batches: Callable[..., BatchLoader]) -> None:
    batches = digit_batches(pictures=1797)
    torch.manual_seed(0)
    network = MODELS["mlp"].build(size=8)
    optimizer = make_optimizer(network, Recipe())
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    random, groups = torch.get_rng_state(), str(optimizer.state_dict())

    found = find_learning_rate(network, batches, Recipe())

    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert str(optimizer.state_dict()) == groups
    assert all(parameter.grad is None for parameter in network.parameters())
    assert 0.003 < found.chosen < 2
    assert len(found.rates) == len(found.losses)


def test_steepest_is_in_the_middle_of_the_steepest_fall() -> None:
    losses = [2.3, 2.3, 2.3, 2.2, 1.8, 1.4, 1.2, 1.15, 1.1, 3.0, 9.0]
    rates = [10.0**power for power in range(-8, 3)]
    assert find_steepest_fall(rates, losses) == rates[4]


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]])
def test_no_fall_is_one_sentence(losses: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"does not fall at any learning rate.*choose one \(--lr 0.01\)"):
        find_steepest_fall([0.1] * len(losses), losses)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1000.0])
def test_a_head_over_features_of_any_size_learns_at_the_stable_rate(scale: float, nesterov: bool) -> None:
    """The oracle is the descent itself: the loss of the quadratic that bounds the cross-entropy must not grow."""
    torch.manual_seed(0)
    features = scale * torch.rand(64, 20, dtype=torch.float64)
    recipe = Recipe(lr=0.1, nesterov=nesterov)
    rate = find_stable_rate(features, recipe)
    assert rate <= recipe.lr
    curvature = (features.T @ features) / 64 / 2
    weights = torch.randn(20, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=rate, momentum=0.9, nesterov=nesterov)
    losses = []
    for _ in range(400):
        loss = weights @ curvature @ weights / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert max(losses[200:]) < losses[0]


def test_a_rate_that_is_stable_or_of_adamw_stays() -> None:
    assert find_stable_rate(0.1 * torch.rand(64, 20), Recipe(lr=0.1)) == 0.1
    assert find_stable_rate(1000 * torch.rand(64, 20), Recipe(lr=0.1, optimizer="adamw")) == 0.1
