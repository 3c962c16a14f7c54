"""The loop against a plain PyTorch one, and its edges."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.data.loader import BatchLoader
from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.errors import TrainingError
from svertka.models.registry import MODELS
from svertka.training import checkpoint
from svertka.training.lr_schedule import Constant
from svertka.training.recipe import Recipe
from svertka.training.training_loop import (
    LOG_EVERY,
    Callback,
    Loss,
    StepMetrics,
    TrainingProgress,
    count_total_and_warmup_steps,
    fit,
    gradient_to_weight_ratios,
    make_optimizer,
    set_learning_rate,
    take_step,
    update_lookahead,
)


class Watcher(Callback):
    def __init__(self) -> None:
        self.looks: list[StepMetrics] = []
        self.epochs: list[tuple[int, float, float]] = []

    def on_metrics(self, metrics: StepMetrics) -> None:
        self.looks.append(metrics)

    def on_epoch_end(self, epoch: int, loss: float, error: float) -> bool:
        self.epochs.append((epoch, loss, error))
        return False


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["mlp"].build(size=8)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("recipe", [
    Recipe(epochs=1.5, lr=0.1, schedule=Constant(), weight_decay=1e-3, label_smoothing=0.1),
    Recipe(epochs=1.5, lr=0.1, schedule=Constant(), nesterov=True, clip=0.5),
    Recipe(epochs=1.5, lr=0.001, schedule=Constant(), optimizer="adamw", weight_decay=0.1),
])  # fmt: skip
def test_it_computes_what_the_textbook_loop_computes(digit_batches: Callable[..., BatchLoader], recipe: Recipe) -> None:
    batches, network, watcher = digit_batches(), mlp(), Watcher()
    fit(network, make_optimizer(network, recipe), batches, recipe, TrainingProgress(), watcher)

    theirs = mlp()
    if recipe.optimizer == "sgd":
        options = {"momentum": 0.9, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
        optimizer: torch.optim.Optimizer = torch.optim.SGD(theirs.parameters(), recipe.lr, **options)
    else:
        optimizer = torch.optim.AdamW(theirs.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    batch_list = [*batches.epoch(0), *batches.epoch(1)][: round(1.5 * batches.steps)]
    for batch in batch_list:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(batch.images), batch.labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip)
        optimizer.step()
    # The mean of a batch is a sum times 1/64 here: float32 rounding, over 24 steps.
    for mine, yours in zip(network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)
    assert [epoch for epoch, _, _ in watcher.epochs] == [1, 2]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_images_are_trained_on_with_soft_targets(
    digit_batches: Callable[..., BatchLoader], weighted: bool, accumulate: int
) -> None:
    recipe = Recipe(epochs=1, lr=0.1, schedule=Constant(), label_smoothing=0.1, accumulate=accumulate)
    class_weights = torch.linspace(0.5, 1.5, 10)
    labels = digit_batches().labels
    weights = class_weights[torch.from_numpy(labels)] if weighted else None
    batches = digit_batches(mixing=MixupAndCutmix(mixup=0.4, cutmix=1.0), weights=weights)
    network, watcher = mlp(), Watcher()
    fit(network, make_optimizer(network, recipe), batches, recipe, TrainingProgress(), watcher)

    theirs, shown, wrong = mlp(), 0.0, 0
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for batch in batches.epoch(0):
        assert batch.mixed is not None
        shares = batch.mixed.shares[:, None]
        one, other = (nn.functional.one_hot(some, 10) for some in (batch.labels, batch.mixed.labels))
        targets = shares * one + (1 - shares) * other
        optimizer.zero_grad()
        logits = theirs(batch.images)
        # PyTorch smooths soft targets itself, and weights their classes one by one.
        smooth = 0.9 * targets + 0.01
        if weighted:  # a row counts as its label does, also the smoothed part of it
            both = ((share, label) for share, label in ((shares, batch.labels), (1 - shares, batch.mixed.labels)))
            smooth = sum(
                share * class_weights[label][:, None] * (0.9 * nn.functional.one_hot(label, 10) + 0.01)
                for share, label in both
            )
        loss = -(smooth * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        shown += float(nn.functional.cross_entropy(logits.detach(), targets, reduction="sum"))
        wrong += int((logits.argmax(1) != targets.argmax(1)).sum())
    for mine, yours in zip(network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)
    assert watcher.epochs == [(1, pytest.approx(shown / 1000, rel=1e-4), pytest.approx(wrong / 1000, abs=0.002))]


def test_every_picture_is_counted_once_and_looks_come_when_promised(digit_batches: Callable[..., BatchLoader]) -> None:
    batches, network, watcher = digit_batches(pictures=1600), mlp(), Watcher()
    recipe, state = Recipe(epochs=2, lr=0.0001), TrainingProgress()
    fit(network, make_optimizer(network, recipe), batches, recipe, state, watcher)
    assert [look.step for look in watcher.looks] == [20, 25, 40, 50]
    assert [look.steps for look in watcher.looks] == [20, 5, 15, 10]
    assert sum(look.images for look in watcher.looks) == state.pictures == 3200
    assert LOG_EVERY == 20


def test_the_epochs_means_are_those_of_its_batches(digit_batches: Callable[..., BatchLoader]) -> None:
    batches, network, watcher = digit_batches(), mlp(), Watcher()
    recipe = Recipe(epochs=1, lr=1e-30, schedule=Constant())
    fit(network, make_optimizer(network, recipe), batches, recipe, TrainingProgress(), watcher)
    logits = torch.cat([network(batch.images) for batch in batches.epoch(0)])
    labels = torch.cat([batch.labels for batch in batches.epoch(0)])
    (_, loss, error) = watcher.epochs[0]
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert error == pytest.approx((logits.argmax(1) != labels).float().mean().item())


def test_what_is_shown_is_plain_cross_entropy_whatever_is_minimized(digit_batches: Callable[..., BatchLoader]) -> None:
    shown = []
    for recipe in (Recipe(lr=1e-30), Recipe(lr=1e-30, label_smoothing=0.2, rubbish=3.0)):
        watcher, network = Watcher(), mlp()
        fit(
            network,
            make_optimizer(network, recipe),
            digit_batches(),
            recipe.with_changes(epochs=1),
            TrainingProgress(),
            watcher,
        )
        shown.append(watcher.epochs[0][1])
    assert shown[0] == pytest.approx(shown[1], rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_count_in_the_loss_as_they_are_weighted(
    accumulate: int, digit_batches: Callable[..., BatchLoader]
) -> None:
    batches, network = digit_batches(batch_size=1000), mlp()
    batches.weights = torch.from_numpy(batches.labels == 0).float()  # zeros only
    recipe = Recipe(epochs=1, lr=0.1, schedule=Constant(), momentum=0, accumulate=accumulate)
    before = network.output.bias.detach().clone()
    fit(network, make_optimizer(network, recipe), batches, recipe, TrainingProgress(), Callback())
    change = network.output.bias.detach() - before
    assert change[0] > 0
    assert (change[1:] < 0).all()


def test_the_loss_with_a_rubbish_class_is_equation_9_of_the_paper() -> None:
    torch.manual_seed(0)
    distances, labels, j = 20 * torch.rand(6, 10), torch.arange(6), 5.0
    loss = Loss(Recipe(rubbish=j))(-distances, labels)
    right = distances[torch.arange(6), labels]
    expected = right + torch.log(torch.exp(torch.tensor(-j)) + torch.exp(-distances).sum(1))
    assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    weights = torch.arange(1.0, 7.0)
    weighed = Loss(Recipe(rubbish=j))(-distances, labels, weights)
    assert weighed.item() == pytest.approx((expected * weights).sum().item(), rel=1e-5)


def test_divergence_names_the_steps(digit_batches: Callable[..., BatchLoader]) -> None:
    network = mlp()
    recipe = Recipe(epochs=9, lr=0.05, schedule=Constant())
    state, batches = TrainingProgress(), digit_batches(pictures=1600)

    class Saboteur(Callback):
        def on_metrics(self, metrics: StepMetrics) -> None:
            if metrics.step == 40:
                next(network.parameters()).data.fill_(float("nan"))

    with pytest.raises(
        TrainingError, match="the loss became infinite or NaN between steps 40 and 50, at learning rate"
    ):
        fit(network, make_optimizer(network, recipe), batches, recipe, state, Saboteur())


def test_steps_round_but_are_never_none() -> None:
    assert count_total_and_warmup_steps(Recipe(epochs=8, warmup=1), 20) == (160, 20)
    assert count_total_and_warmup_steps(Recipe(epochs=1.5, warmup=1), 20) == (
        30,
        8,
    )  # a quarter of a short training at most
    assert count_total_and_warmup_steps(Recipe(epochs=0.29, warmup=2), 100) == (29, 7)
    assert count_total_and_warmup_steps(Recipe(epochs=0.001), 20) == (1, 0)


def test_gradient_ratios_are_root_mean_squares() -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    expected = (layer.weight.grad**2).mean().sqrt() / (layer.weight.detach() ** 2).mean().sqrt()
    assert gradient_to_weight_ratios(layer) == {"weight": pytest.approx(expected.item())}


class WithAuxiliary(nn.Module):
    """Two classifiers on the same pictures; the second is seen in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = mlp(), mlp()

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return (self.main(images), self.aux(images)) if self.training else self.main(images)


def test_auxiliary_losses_count_three_tenths_and_are_not_shown(digit_batches: Callable[..., BatchLoader]) -> None:
    batch, recipe = next(digit_batches().epoch(0)), Recipe(lr=1e-30)
    network, alone = WithAuxiliary().train(), mlp()
    optimizer = make_optimizer(network, recipe)
    seen = take_step(network, optimizer, batch, Loss(recipe), recipe)
    loss = nn.functional.cross_entropy(alone(batch.images), batch.labels)
    loss.backward()
    assert float(seen[0] / seen[2]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for main, aux, own in zip(network.main.parameters(), network.aux.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(main.grad, own.grad)
        torch.testing.assert_close(aux.grad, 0.3 * own.grad)


def test_biases_of_batch_norm_learn_faster_but_decay_alike() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.ones_(network[1].bias)
    recipe = Recipe(lr=0.1, momentum=0.0, weight_decay=0.01, bias_rate=64)
    optimizer = make_optimizer(network, recipe)
    set_learning_rate(optimizer, 0.05)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 64 if name == "1.bias" else 1
        expected = before[name] * (1 - 0.05 * 0.01) - 0.05 * factor * 0.5
        torch.testing.assert_close(parameter.detach(), expected)


def test_lookahead_ends_on_the_slow_weights() -> None:
    weights = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    slow = 1.0
    for step, value in enumerate([1.0, 2.0, 3.0], start=1):
        with torch.no_grad():
            weights.fill_(value)
        update_lookahead(optimizer, progress=step / 3, steps=5)
        share = 0.95**5 * (step / 3) ** 3
        slow = share * slow + (1 - share) * value
        assert float(weights.detach()) == pytest.approx(slow)


@pytest.mark.usefixtures("quiet")
def test_a_training_that_looks_ahead_resumes_exactly(digit_batches: Callable[..., BatchLoader], tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, lr=0.1, lookahead=3, bias_rate=4)
    batches = digit_batches()

    def network() -> nn.Module:
        torch.manual_seed(0)
        return MODELS["resnet20"].build(size=8, channels=1)

    class Saver(Callback):
        def wants_stop(self) -> bool:
            return state.step == 7

        def save_or_stop(self, *, stop: bool) -> None:
            if stop and state.step == 7:
                checkpoint.save(tmp_path / "checkpoint" / "at", whole, optimizer, state)

    state, whole = TrainingProgress(), network()
    optimizer = make_optimizer(whole, recipe)
    fit(whole, optimizer, batches, recipe, state, Saver())
    resumed = network()
    optimizer = make_optimizer(resumed, recipe)
    state, _ = checkpoint.load(tmp_path / "checkpoint" / "at", resumed, optimizer)
    assert state.step == 7
    fit(resumed, optimizer, batches, recipe, state, Callback())
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
