"""Real trainings that go wrong in known ways, and what is said of them; and histories made by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import svertka
from svertka.graph.summary import Layer
from svertka.inspection.activations import list_layers
from svertka.training import health
from svertka.training.builtin_recipes import find_recipe_by_name
from svertka.training.health import (
    are_all_the_same,
    divergence_advice,
    find_constant_scores,
    find_problems,
    measure_dead_units,
)
from svertka.training.lr_schedule import Constant, Cosine
from svertka.training.recipe import Recipe


def epochs(val_errors: list[float], **changes: Any) -> list[dict[str, Any]]:
    """A history with these val errors; `changes`: lists, or one value for all epochs."""
    lines = []
    for number, error in enumerate(val_errors):
        line = {
            "train_loss": 0.5,
            "train_error": 0.2,
            "val_loss": 0.5,
            "val_error": error,
            "learning_rate": 0.1,
            "gradients": {"first": 0.1, "last": 0.1},
            "dead": {},
        }
        lines.append(line | {k: v[number] if isinstance(v, list) else v for k, v in changes.items()})
    return lines


def kinds(history: list[dict[str, Any]], planned: float = 20) -> list[str]:
    found = find_problems(history, classes=10, recipe=Recipe(epochs=planned))
    assert all(finding.sentence.endswith(".") and "\n" not in finding.sentence for finding in found)
    return [finding.kind for finding in found]


def test_a_training_that_goes_well_is_left_in_peace() -> None:
    falling = [0.5 * 0.8**epoch for epoch in range(20)]
    assert kinds(epochs(falling, train_loss=falling, train_error=falling, val_loss=falling)) == []


def test_guessing() -> None:
    assert kinds(epochs([0.9, 0.9, 0.9], train_error=0.9)) == ["guessing"]
    assert kinds(epochs([0.9, 0.9], train_error=0.9)) == []


def test_plateau() -> None:
    assert kinds(epochs([0.3] + [0.31] * 6)) == ["plateau"]
    assert kinds(epochs([0.3] + [0.31] * 5)) == []
    assert kinds(epochs([0.3] + [0.31] * 6), planned=100) == []
    falling_rate = [0.1 * 0.5**epoch for epoch in range(7)]
    assert kinds(epochs([0.3] + [0.31] * 6, learning_rate=falling_rate)) == []


def test_overfit() -> None:
    losses = [0.5, 0.4, 0.5, 0.55, 0.6]
    assert kinds(epochs([0.2] * 5, val_loss=losses, train_loss=0.01)) == ["overfit"]
    assert kinds(epochs([0.2] * 5, val_loss=losses, train_loss=0.5)) == []


def test_dead() -> None:
    assert kinds(epochs([0.2], dead={"relu1": 0.1, "relu2": 0.6})) == ["dead"]
    assert kinds(epochs([0.2], dead={"relu1": 0.1, "relu2": 0.4})) == []
    assert kinds(epochs([0.2], dead={"relu2": 0.6}, train_error=0.01)) == []  # it learns nevertheless


def test_exploding_and_vanishing() -> None:
    sizes = [{"first": 0.1, "last": 0.1}] * 3 + [{"first": 9.0, "last": 0.1}]
    assert kinds(epochs([0.2] * 4, gradients=sizes)) == ["exploding"]
    assert kinds(epochs([0.2], gradients={"first": 1e-7, "last": 0.1})) == ["vanishing"]


def test_without_val_nothing_is_said_of_it() -> None:
    assert kinds(epochs([0.3] * 9, val_error=None, val_loss=None)) == []


def test_a_deep_sigmoid_network_is_seen_to_vanish() -> None:
    from svertka.training.training_loop import gradient_to_weight_ratios

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(16, 16), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Linear(16, 10))
    nn.functional.cross_entropy(network(torch.randn(8, 16)), torch.arange(8)).backward()
    assert kinds(epochs([0.5], gradients=gradient_to_weight_ratios(network))) == ["vanishing"]


def test_dead_units_counts_channels_and_leaves_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.ReLU()
    )
    with torch.no_grad():
        network[1].bias[:2] = -100
        network[4].bias[:] = torch.tensor([-1000.0, 10, 10, 10])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    assert measure_dead_units(network, torch.randn(32, 1, 8, 8)) == {"2": 0.25, "5": 0.25}
    assert network.training
    assert network[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("error", [0.0, math.nan])
def test_extreme_values_say_nothing_false(error: float) -> None:
    assert kinds(epochs([error] * 8, train_error=0.0, learning_rate=0.0)) in ([], ["plateau"])


def test_a_class_whose_score_never_changes_is_named() -> None:
    assert kinds(epochs([0.5], constant_scores=[["cat"]])) == ["constant-scores"]
    (finding,) = find_problems(epochs([0.5], constant_scores=[["cat", "dog"]]), 10, Recipe())
    assert "The score of cat, dog is the same for every image" in finding.sentence


# Real trainings with planted faults (bench/trust.py faults), and what is said in the course of each, and nothing else.
HISTORIES = json.loads(Path(__file__).with_name("faulty_histories.json").read_text())
DEAD, CONSTANT = r"\d+% of the units after {} are dead .*", r"The score of .* is the same for every image .*"
FAULTS: dict[str, dict[str, str]] = {
    "healthy": {},
    "healthy_bn": {},
    "dark": {},
    "rate_x10": {
        "dead": DEAD.format(4) + r"try a lower learning rate \(--lr 0.05\) or another initialization",
        "constant-scores": CONSTANT + r"try a lower learning rate \(--lr 0.05\)",
    },
    "rate_x100": {
        "constant-scores": CONSTANT + r"try a lower learning rate \(--lr 0.5\)",
        "dead": DEAD.format(4) + r"try a lower learning rate \(--lr 0.5\)",
        "diverging": r"The training diverges: the loss is 5.89, .*lower learning rate \(--lr 0.5\)",
    },
    "rate_x100_bn": {
        "constant-scores": CONSTANT + r"try a lower learning rate \(--lr 0.5\)",
        "dead": DEAD.format(10) + r"try a lower learning rate \(--lr 0.5\)",
    },
    "rate_1000th": {"slow": r"After 3 epochs the weights have changed by less than 2%, .*raise the .*\(--lr 0.0005\)"},
    "rate_1000th_bn": {"slow": r"After 3 epochs .*the training error is 90.4%: raise the learning rate"},
    "shuffled": {
        "dead": DEAD.format(8),
        "guessing": r"After 4 epochs the training error is at chance level .*check the labels",
    },
    "shuffled_few_bn": {
        "unrelated": r"The training error has fallen to 77.8%, and the validation error is near .*Check the labels"
    },
    "dead_all": {"constant-scores": CONSTANT, "dead": DEAD.format(1) + r".*another initialization \(--initial he\)"},
    "dead_half": {"dead": DEAD.format(1) + r".*another initialization \(--initial he\)"},
    "relu_out": {"constant-scores": r"The score of 0, 1, 2, 3, 5 is the same", "dead": DEAD.format("relu")},
    "overfit": {"overfit": r"The network overfits: .*more images, augmentation, more weight decay or fewer epochs"},
    "weight_decay": dict.fromkeys(("constant-scores", "dead", "guessing"), r".*try a lower weight decay \(now 1\)"),
    "weight_decay_bn": dict.fromkeys(("constant-scores", "dead"), r".*try a lower weight decay \(now 1\)"),
    "clip": {"slow": r"After 3 epochs .*: raise --clip \(now 1e-05\) or the learning rate"},
    "constant_high": {
        "overfit": "The network overfits",
        "dead": DEAD.format(4),
        "plateau": r"The validation error has not improved for 7 epochs .*\(--schedule plateau or cosine\)",
    },
    "vanish_sigmoid": {
        "constant-scores": CONSTANT,
        "dead": DEAD.format(17),
        "vanishing": r"The gradient vanishes: .*try a network with batch norm or residual connections",
    },
    "unnormalized": {
        "diverging": "The training diverges: the loss is 13.2",
        "constant-scores": CONSTANT,
        "dead": DEAD.format("net.4"),
    },
    "adamw_high": {"constant-scores": CONSTANT + r"\(--lr 0.03\)", "dead": DEAD.format(4)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_the_advice_is_right(fault: str) -> None:
    history = HISTORIES[fault]["epochs"]
    recipe = find_recipe_by_name("plain").with_changes(**HISTORIES[fault]["settings"])
    said: dict[str, str] = {}
    for count in range(1, len(history) + 1):
        for finding in find_problems(history[:count], 10, recipe, is_normalized=fault.endswith("_bn")):
            said.setdefault(finding.kind, finding.sentence)
    assert set(said) == set(FAULTS[fault])
    assert all(re.match(FAULTS[fault][kind], sentence) for kind, sentence in said.items()), said
    assert not any("--warmup" in sentence for sentence in said.values())  # is in use


def test_a_vanishing_gradient_needs_what_the_network_lacks() -> None:
    gradients = {"first": 1e-7, "last": 0.1}
    for recipe, is_normalized, advice in (
        (Recipe(), False, "try a network with batch norm or residual connections, or another initialization"),
        (Recipe(initial="he"), True, "try a network with residual connections."),
    ):
        (found,) = find_problems(epochs([0.2], gradients=gradients), 10, recipe, is_normalized=is_normalized)
        assert advice in found.sentence


def test_a_gradient_of_zero_has_not_grown() -> None:
    assert kinds(epochs([0.2] * 5, gradients={"first": 0.0, "last": 0.0})) == []


def test_a_cause_hides_its_consequences() -> None:
    dead = {"train_error": 0.9, "dead": {"relu": 1.0}, "gradients": {"first": 0.0, "last": 0.1}}
    assert kinds(epochs([0.9] * 9, **dead)) == ["dead"]
    assert kinds(epochs([0.9] * 9, train_loss=50.0, **dead)) == ["diverging"]


def test_images_that_are_all_the_same_are_seen() -> None:
    images = torch.randn(1, 3, 4, 4).repeat(8, 1, 1, 1)
    assert are_all_the_same(images)
    assert not are_all_the_same(images[:1])
    images[3, 0, 0, 0] += 0.1
    assert not are_all_the_same(images)


@pytest.mark.parametrize("rectified", [False, True])
def test_scores_that_are_dead_are_found_in_any_network(rectified: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU() if rectified else nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with torch.no_grad():
        network[0].bias[2] = -1000
    assert find_constant_scores(network.train(), torch.randn(8, 3, 9, 9)) == ([2] if rectified else [])
    assert network.training
    assert find_constant_scores(network, torch.randn(1, 3, 9, 9)) == []


USED = Recipe(schedule=Cosine(), warmup=1, clip=1, weight_decay=1e-4, initial="he", augmentations=({"kind": "flip"},))  # type: ignore[arg-type]
BARE = Recipe(schedule=Constant(), warmup=0, clip=None)
SIGNS = {
    "plateau": epochs([0.3] + [0.31] * 8),
    "dead": epochs([0.2], dead={"relu": 0.9}),
    "unrelated": epochs([0.9] * 5, train_error=0.3),
    "diverging": epochs([0.9] * 3, train_error=0.9, train_loss=9.0),
    "exploding": epochs([0.2] * 4, gradients=[{"a": 0.1, "b": 0.1}] * 3 + [{"a": 90.0, "b": 0.1}]),
    "overfit": epochs([0.2] * 5, val_loss=[0.5, 0.4, 0.5, 0.55, 0.6], train_loss=0.01),
    "constant-scores": epochs([0.5], constant_scores=[["cat"]]),
    "guessing": epochs([0.9] * 3, train_error=0.9),
}


@pytest.mark.parametrize("kind", SIGNS)
def test_nothing_is_advised_that_is_in_use(kind: str) -> None:
    (used,) = [one for one in find_problems(SIGNS[kind], 10, USED, rate_was_found=True) if one.kind == kind]
    assert not any(option in used.sentence for option in ("--schedule", "--warmup", "--clip", "--initial", "--lr find"))
    assert "images, augmentation" not in used.sentence
    assert [one.kind for one in find_problems(SIGNS[kind], 10, BARE)] == [kind]


@pytest.mark.parametrize(("step", "is_normalized", "found"), [(4, True, 0), (20, True, 1), (4, False, 1)])
def test_with_batch_norm_the_first_steps_do_not_diverge_yet(step: int, is_normalized: bool, found: int) -> None:
    """The loss of a ResNet-18 on 108 images rose to 8.6 in steps 3 and 4, and fell to 0.6 in the next two."""
    history = epochs([0.9], train_error=0.9, train_loss=8.6, step=step)
    said = find_problems(history, 10, Recipe(), is_normalized=is_normalized)
    assert [finding.kind for finding in said] == ["diverging"] * found


def test_against_divergence_all_that_is_not_in_use_is_advised() -> None:
    everything = "try a lower learning rate (--lr 0.01), --warmup 1 or --clip 1"
    assert divergence_advice(BARE.with_changes(lr=0.1)) == everything
    assert divergence_advice(USED.with_changes(lr=0.1)) == "try a lower learning rate (--lr 0.01)"


class Tokens(nn.Module):
    """Patches as tokens, with activation functions as modules and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.rows, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 10), nn.Linear(10, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.hardswish(self.patches(images))
        tokens = nn.functional.gelu(self.rows(maps.flatten(2).transpose(1, 2)))
        return torch.nn.functional.relu(self.head(tokens.mean(1)))


def test_dead_units_of_any_activation_function_are_found() -> None:
    torch.manual_seed(0)
    network = Tokens()
    with torch.no_grad():
        network.patches.bias[:2] = -100  # Hardswish is 0 below −3
        network.rows.bias[:5] = -100  # GELU is 0 there in float32
        network.head.bias[:] = 10
        network.head.bias[0] = -100
    shares = measure_dead_units(network, torch.randn(32, 1, 16, 16))
    assert list(shares.values()) == pytest.approx([0.25, 0.5, 0.2])
    assert list(shares) == ["hardswish", "gelu", "relu"]
    assert measure_dead_units(network, torch.randn(31, 1, 16, 16)) == {}  # too few to tell


def test_dead_units_that_training_does_not_change_are_left_out() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU())
    with torch.no_grad():
        network[0].bias[0] = network[2].bias[0] = -1000
    images = torch.randn(64, 6)
    assert measure_dead_units(network, images)["1"] == 0.25
    network[0].requires_grad_(False)
    assert set(measure_dead_units(network, images)) == {"3"}
    network.requires_grad_(False)
    assert measure_dead_units(network, images) == {}


def test_layers_are_listed_once_for_the_time_estimate_and_once_for_all_epochs(
    digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[tuple[int, ...]] = []

    def list_counted(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
        listed.append(shape)
        return list_layers(network, shape)

    monkeypatch.setattr(health, "list_layers", list_counted)
    options: dict[str, Any] = {"model": "lenet5", "size": 32, "epochs": 3, "val": 0.2, "lr": 1e-3, "threads": 1}
    run = svertka.train(digit_folder, output=tmp_path / "run", **options)
    assert listed == [(1, 1, 32, 32)] * 2
    assert [len(entry["dead"]) for entry in run.history() if entry["kind"] == "epoch"] == [6, 6, 6]
