import numpy as np
import pytest
import torch

from svertka.data.loader import Batch
from svertka.errors import UsageError
from svertka.models.registry import MODELS
from svertka.training.builtin_recipes import RECIPES
from svertka.training.recipe import Recipe
from svertka.training.time_estimate import (
    FrozenLayersCost,
    count_epochs_within_time,
    estimate_validation_seconds,
    parse_time,
    tile_batch,
    time_training_steps,
)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "soon", "-1m", "0", "nan", "1d", "1e99h"])
def test_what_is_no_time_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time; write 90s, 10m or 1.5h"):
        parse_time(text)


def test_timing_changes_nothing_and_is_remembered() -> None:
    torch.manual_seed(0)
    network = MODELS["resnet20"].build(size=8)
    batch = Batch(torch.randn(8, 3, 8, 8), torch.arange(8), np.arange(8), 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    first = time_training_steps(network, batch, Recipe(), "resnet20 of this test")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    again = [time_training_steps(network, batch, Recipe(), "resnet20 of this test") for _ in range(3)]
    assert {timing.memory_format for timing in again} == {first.memory_format}
    assert first.step > 0


def test_a_budget_becomes_epochs() -> None:
    timing = time_training_steps(
        MODELS["mlp"].build(size=8),
        Batch(torch.randn(8, 1, 8, 8), torch.arange(8), np.arange(8), 8),
        Recipe(),
        "mlp of this test",
    )
    assert estimate_validation_seconds(timing, batch_size=8, val_images=80) == pytest.approx(4 * timing.step)
    one = 104 * timing.step
    assert count_epochs_within_time(10 * one, 0, 0, one) == 9
    assert count_epochs_within_time(10 * one + 70, 50, 20, one) == 9


@pytest.mark.parametrize(
    ("budget", "spent", "around"), [(30.0, 80.0, 0.0), (30.0, 0.0, 40.0), (0.1, 0.0, 0.0), (60, 59.9, 9)]
)
def test_a_budget_that_is_used_up_says_by_what(budget: float, spent: float, around: float) -> None:
    with pytest.raises(UsageError, match=r"time=.* is too short: the preparation took .*; allow .* or more") as caught:
        count_epochs_within_time(budget, spent, around, 10.0)
    assert "-" not in str(caught.value).replace("--model", "")
    assert count_epochs_within_time(spent + around + 12, spent, around, 10.0) >= 0.9


def test_a_batch_too_small_for_batch_norm_is_one_sentence() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    batch = Batch(torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), np.arange(1), 1)
    with pytest.raises(UsageError, match="a batch of 1 gives the batch norm of this network one value per channel"):
        time_training_steps(network, batch, Recipe(), "a network of this test")


def test_under_a_time_the_plan_names_no_number_of_passes() -> None:
    passes = FrozenLayersCost(seconds=1.0, train=10, val=2, feature_bytes=8)
    recipe = RECIPES["frozen"]
    _, said = passes.plan_cache(recipe, 0.1, None, False, 10**6)
    assert said.endswith("takes 10 s, and each of the 30 epochs would repeat it")
    _, said = passes.plan_cache(recipe, 0.1, None, False, 10**6, is_timed=True)
    assert said.endswith("takes 10 s, and each epoch would repeat it")
    _, said = passes.plan_cache(recipe.with_changes(head="logistic"), 0.1, None, False, 10**6, is_timed=True)
    assert said.endswith("takes 10 s")


def test_a_batch_is_repeated_as_one() -> None:
    batch = Batch(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]), np.array([5, 7, 9]), 3)
    twice = tile_batch(batch, 2)
    assert twice.images.tolist() == 2 * batch.images.tolist()
    assert (twice.labels.tolist(), twice.indices.tolist(), twice.count) == ([0, 1, 2] * 2, [5, 7, 9] * 2, 6)
