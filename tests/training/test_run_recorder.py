from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.loader import BatchLoader
from svertka.progress import progress
from svertka.run import Run
from svertka.training.metrics_log import MetricsLog
from svertka.training.recipe import Recipe
from svertka.training.run_recorder import Recorder, explain_kept_epoch, is_epoch_as_good
from svertka.training.trained_part_and_batches import TrainingInputs
from svertka.training.training_loop import LOG_EVERY, TrainingProgress, fit, make_optimizer


def kept(val_errors: list[float], pictures: int, val_losses: list[float] | None = None) -> int:
    """The epoch that is kept in the end, from 1."""
    losses, chosen = val_losses or [1.0] * len(val_errors), 0
    for epoch in range(1, len(val_errors) + 1):
        if is_epoch_as_good(val_errors[:epoch], losses[:epoch], pictures, chosen):
            chosen = epoch
    return chosen


def test_of_epochs_that_cannot_be_told_apart_the_later_is_kept() -> None:
    assert kept([0.1], 100) == 1
    assert kept([0.1, 0.05], 100) == 2
    assert kept([0.16, 0.04, 0.06], 100) == 3  # 4 wrong, and √4 more
    assert kept([0.16, 0.04, 0.07], 100) == 2
    assert kept([0.0, 0.01], 100) == 2  # one picture
    assert kept([0.0, 0.02], 100) == 1
    assert kept([0.1, 0.104], 1_000_000) == 1  # with many pictures small differences count


def test_an_epoch_that_overfits_is_not_kept() -> None:
    assert kept([0.10, 0.09, 0.09, 0.10], 200, [0.30, 0.27, 0.33, 0.39]) == 2
    assert kept([0.10, 0.09, 0.09, 0.10], 200, [0.30, 0.27, 0.275, 0.28]) == 4  # the loss is as good
    assert kept([0.30, 0.05], 200, [0.5, 0.9]) == 2  # an error that is surely lower counts more than the loss


@pytest.mark.parametrize(
    ("val_errors", "val_losses", "reason"),
    [
        ([2 / 3, 2 / 3], [1.2, 0.9], ", whose error is the same, after more training"),
        (
            [0.16, 0.04, 0.06],
            [0.5, 0.3, 0.3],
            ", whose error of 6.00% is within one standard error, after more training",
        ),
        ([0.06, 0.04], [0.3, 0.5], ", whose error of 6.00% is within one standard error, and whose loss is lower"),
    ],
)
def test_the_reason_for_another_epoch_than_that_of_the_lowest_error(
    val_errors: list[float], val_losses: list[float], reason: str
) -> None:
    chosen = kept(val_errors, 100, val_losses)
    best = val_errors.index(min(val_errors))
    assert chosen != best + 1
    assert explain_kept_epoch(val_errors, val_losses, best, chosen - 1) == reason


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.01, 5)), min_size=1, max_size=30))
def test_what_is_kept_is_as_good_as_the_best_and_its_loss_is_no_higher(epochs: list[tuple[int, float]]) -> None:
    errors, losses = [wrong / 500 for wrong, _ in epochs], [loss for _, loss in epochs]
    chosen = kept(errors, 500, losses)
    assert chosen >= 1
    alike = [
        k
        for k, (wrong, _) in enumerate(epochs)
        if wrong <= min(w for w, _ in epochs) + max(min(w for w, _ in epochs), 1) ** 0.5
    ]
    last = len(epochs) - 1
    if last in alike and losses[last] <= min(losses[k] for k in alike):
        assert chosen == last + 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dead", [(), (2, 7)])
def test_scores_that_die_behind_a_relu_are_said_after_the_first_batches(
    digit_batches: Callable[..., BatchLoader], dead: tuple[int, ...], tmp_path: Path
) -> None:
    batches, recipe = digit_batches(batch_size=16), Recipe(epochs=1, lr=0.01)
    assert batches.steps > LOG_EVERY
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())
    with torch.no_grad():
        network[1].bias[:] = 10
        network[1].bias[list(dead)] = -1000
    names = tuple(f"digit {number}" for number in range(10))
    classifier = Classifier(network, Config(model="mlp", names=names, preprocess=batches.preprocess))
    optimizer, state, run = make_optimizer(network, recipe), TrainingProgress(), Run(tmp_path)
    log = MetricsLog(run.metrics)
    with progress("training", batches.steps) as shown:
        inputs = TrainingInputs(network, batches, None)
        fit(
            network,
            optimizer,
            batches,
            recipe,
            state,
            Recorder(run, classifier, inputs, optimizer, recipe, state, log, shown),
        )
    log.close()
    found = [entry for entry in run.history() if entry["kind"] == "health" and entry["finding"] == "constant-scores"]
    assert [(entry["step"], entry["epoch"]) for entry in found] == [(LOG_EVERY, None)] * bool(dead)
    assert all("The score of digit 2, digit 7 is the same" in entry["sentence"] for entry in found)
    assert [entry["kind"] for entry in run.findings()] == ["constant-scores"] * bool(dead)
