import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.training.builtin_recipes import RECIPES
from svertka.training.lr_schedule import Constant, Cosine, Plateau, Polynomial, Step, count_plateaus, learning_rate
from svertka.training.training_loop import count_total_and_warmup_steps


@given(step=st.integers(0, 999), warmup=st.integers(0, 300), schedule=st.sampled_from([Constant(), Cosine(), Step()]))
def test_the_rate_stays_between_zero_and_the_base(step: int, warmup: int, schedule: Constant | Cosine | Step) -> None:
    assert 0 < learning_rate(schedule, 0.1, step=step, total=1000, warmup=warmup) <= 0.1 + 1e-12


def test_warm_up_rises_linearly_to_the_base() -> None:
    rates = [learning_rate(Cosine(), 1.0, step=step, total=100, warmup=4) for step in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_is_that_of_pytorch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        ours = learning_rate(Cosine(), 0.3, step=step, total=50, warmup=0)
        assert math.isclose(ours, optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_steps_of_the_resnet_paper() -> None:
    rate = {step: learning_rate(Step(), 0.1, step=step, total=64_000, warmup=0) for step in (31_999, 32_000, 48_000)}
    assert rate == {31_999: 0.1, 32_000: pytest.approx(0.01), 48_000: pytest.approx(0.001)}


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 6))
def test_drops_are_those_of_pytorchs_plateau(errors: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # PyTorch drops after the epoch that exceeds its patience, so that ours is one more than its.
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0, eps=0
    )
    for error in errors:
        theirs.step(error)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** count_plateaus(errors, patience)


def test_plateau_uses_the_drops() -> None:
    rate = learning_rate(Plateau(patience=2), 0.1, step=9, total=10, warmup=0, val_errors=[0.5, 0.6, 0.7])
    assert rate == pytest.approx(0.01)


def test_polynomials_are_those_of_pytorch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.5)
    for step in range(50):
        ours = learning_rate(Polynomial(power=0.5), 0.3, step=step, total=50, warmup=0)
        assert math.isclose(ours, optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_a_straight_line_from_the_end_of_the_warm_up_to_its_end() -> None:
    rates = [learning_rate(Polynomial(end=0.2), 1.0, step=step, total=8, warmup=4) for step in (3, 4, 6, 8)]
    assert rates == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_a_warm_up_at_one_rate() -> None:
    rates = [learning_rate(Step(), 0.1, step=step, total=1000, warmup=4, warmup_rate=0.01) for step in (0, 3, 4)]
    assert rates == [0.01, 0.01, 0.1]


@given(
    st.sampled_from(["plain", "photos", "photos-no-batch-norm", "plain-no-batch-norm", "frozen", "fine-tuning"]),
    st.floats(0.01, 40),
    st.integers(1, 300),
)
def test_a_training_of_any_length_ends_at_its_lowest_rate(name: str, epochs: float, steps_per_epoch: int) -> None:
    recipe = RECIPES[name].with_changes(epochs=epochs)
    total, warmup = count_total_and_warmup_steps(recipe, steps_per_epoch)
    assert warmup <= total / 4 + 0.5
    rates = [learning_rate(recipe.schedule, recipe.lr, step=step, total=total, warmup=warmup) for step in range(total)]
    assert min(rates) == rates[-1]
    assert max(rates) <= recipe.lr
