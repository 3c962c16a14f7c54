"""Removing units: counts equal those of removals computed one by one; a planted shortcut is found and removed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from svertka.confidence_intervals import paired_difference_interval
from svertka.errors import DataError, UsageError
from svertka.inspection import unit_ablation
from svertka.inspection.compiled_replay import CompiledReplay
from svertka.inspection.replayed_graph import ReplayedGraph
from svertka.inspection.unit_ablation import MODES, Ablation, EstimateCheck, LayerEffects, ablate_units

PLANTED = 7  # the class with the colored corner
CORNER = 3  # pixels


class Branches(nn.Module):
    """A residual connection, a concatenation, batch norm, and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.last = nn.Conv2d(9, 9, 3, padding=1)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        x = torch.cat([nn.functional.relu(self.left(x), inplace=True), torch.tanh(self.right(x))], 1)
        y = self.last(x)
        y += x
        return self.head(y.mean((2, 3)))


def remove_by_hook(network: nn.Module, layer: str, activation: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The scores with the activations of a layer changed: the oracle, which runs the whole network."""
    with network.get_submodule(layer).register_forward_hook(lambda *given: activation(given[2])), torch.no_grad():
        scores: Tensor = network(images)
    return scores


def compute_every_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_ablation, "UNCHANGED_BELOW", -float("inf"))
    monkeypatch.setattr(unit_ablation, "CHANGED_ABOVE", float("inf"))


@pytest.mark.usefixtures("quiet")
def test_counts_equal_those_of_whole_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_every_removal(monkeypatch)
    torch.manual_seed(1)
    network = Branches().eval()
    network.norm.running_mean += 0.1
    images = torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        before = network(images).argmax(1)
    labels = torch.where(torch.arange(20) % 3 == 0, (before + 1) % 4, before)
    found = ablate_units(network, lambda: zip(images.split(7), labels.split(7), strict=True), 4)
    assert found.computed == found.pairs == 2 * 24 * 20
    assert found.images.tolist() == labels.bincount(minlength=4).tolist()
    assert found.right.tolist() == labels[before == labels].bincount(minlength=4).tolist()
    assert [one.layer for one in found.layers] == ["first", "left", "right", "last"]
    # `last` has no activation function: its output is what is replaced. `norm` is replaced for `first`, before ReLU,
    # which for constants of at least 0 is the same.
    with torch.no_grad():
        first = torch.relu(network.norm(network.first(images)))
    for layer, observed, maps in (("last", "last", None), ("first", "norm", first)):
        effects = next(one for one in found.layers if one.layer == layer)
        if maps is None:
            kept: list[Tensor] = []
            remove_by_hook(network, layer, lambda output, kept=kept: kept.append(output.clone()) or output, images)
            maps = kept[0]
        for mode, constants in enumerate((torch.zeros(maps.shape[1]), maps.mean((0, 2, 3)))):
            for unit in range(maps.shape[1]):

                def change(output: Tensor, unit: int = unit, constant: Tensor = constants[unit]) -> Tensor:
                    output = output.clone()
                    output[:, unit] = constant
                    return output

                now = remove_by_hook(network, observed, change, images).argmax(1) == labels
                was = before == labels
                for label in range(4):
                    of_class = labels == label
                    assert effects.lost[mode, unit, label] == int((was & ~now & of_class).sum())
                    assert effects.gained[mode, unit, label] == int((~was & now & of_class).sum())


class Concatenated(nn.Module):
    """Maps that are concatenated, and a 1×1 convolution with an output for each of many classes, as in SqueezeNet."""

    CLASSES = 70

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.first_relu = nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.left_relu, self.right_relu = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.last = nn.Conv2d(9, 8, 3, padding=1)
        self.last_relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(
            nn.Dropout(), nn.Conv2d(8, self.CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_relu(self.first(x))
        x = torch.cat([self.left_relu(self.left(x)), self.right_relu(self.right(x))], dim=1)
        scores: Tensor = self.head(self.last_relu(self.last(x)))
        return scores


@pytest.mark.usefixtures("quiet")
def test_compiled_counts_equal_those_of_whole_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_every_removal(monkeypatch)
    monkeypatch.setattr(unit_ablation, "COMPILED_FROM", 1)
    computed: list[int] = []
    are_right = CompiledReplay.are_right

    def count(self: CompiledReplay, maps: Tensor, classes: Tensor) -> Tensor:
        computed.append(len(maps))
        return are_right(self, maps, classes)

    monkeypatch.setattr(CompiledReplay, "are_right", count)
    torch.manual_seed(1)
    network = Concatenated().eval()
    images = 2 * torch.randn(40, 3, 7, 7)
    with torch.no_grad():
        before = network(images).argmax(1)
    labels = torch.where(torch.arange(40) % 3 == 0, before.roll(1), before)
    units = {"left": 4, "right": 5}
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    found = ablate_units(network, lambda: batches, network.CLASSES, list(units))
    assert sum(computed) > 0.8 * 2 * 40 * sum(units.values())
    was = before == labels
    changes = 0
    for effects in found.layers:
        kept: list[Tensor] = []
        remove_by_hook(network, f"{effects.layer}_relu", lambda maps, kept=kept: kept.append(maps.clone()), images)
        means = kept[0].mean((0, 2, 3))
        for mode, constants in enumerate((torch.zeros_like(means), means)):
            for unit in range(units[effects.layer]):

                def change(output: Tensor, unit: int = unit, constant: Tensor = constants[unit]) -> Tensor:
                    output = output.clone()
                    output[:, unit] = constant
                    return output

                now = remove_by_hook(network, f"{effects.layer}_relu", change, images).argmax(1) == labels
                for counted, changed in ((effects.lost, was & ~now), (effects.gained, ~was & now)):
                    expected = labels[changed].bincount(minlength=network.CLASSES)
                    assert counted[mode, unit].tolist() == expected.tolist()
                    changes += int(expected.sum())
    assert changes > 20


@pytest.mark.usefixtures("quiet")
def test_estimates_decide_where_the_network_is_linear_after_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimates are exact there: all counts are right, though few removals are computed and several classes win."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 8)
    ).eval()
    images = 3 * torch.randn(60, 3, 5, 5)
    with torch.no_grad():
        maps = network[:2](images)
        before = network(images).argmax(1)
    labels = torch.where(torch.arange(60) % 3 == 0, before.roll(1), before)
    monkeypatch.setattr(unit_ablation, "SAMPLE", 0)
    monkeypatch.setattr(unit_ablation, "SECONDS", 0)
    found = ablate_units(network, lambda: [(images, labels)], 8)
    winners = set()
    for mode, constants in enumerate((torch.zeros(24), maps.mean((0, 2, 3)))):
        for unit in range(24):
            changed = maps.clone()
            changed[:, unit] = constants[unit]
            with torch.no_grad():
                now = network[2:](changed).argmax(1)
            winners |= {(int(before[image]), int(now[image])) for image in (now != before).nonzero()}
            for counted, which in (
                (found.layers[0].lost, (before == labels) & (now != labels)),
                (found.layers[0].gained, (before != labels) & (now == labels)),
            ):
                assert counted[mode, unit].tolist() == labels[which].bincount(minlength=8).tolist()
    assert len(winners) > 10
    assert 0 < found.estimated < found.pairs / 4
    assert 0 < found.computed < found.pairs / 4


@pytest.mark.usefixtures("quiet")
def test_the_check_of_the_estimates_finds_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all estimates have the wrong sign, the sample says that they are wrong; here, all of them are in it."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 8))
    images = 3 * torch.randn(60, 3, 5, 5)
    labels = network.eval()(images).argmax(1)
    estimate = unit_ablation._estimate

    def negate(*given: Any) -> tuple[Tensor, list[Tensor]]:
        is_right, estimates = estimate(*given)
        return is_right, [-one for one in estimates]

    compute_every_removal(monkeypatch)
    whole = ablate_units(network, lambda: [(images, labels)], 8)
    monkeypatch.undo()
    monkeypatch.setattr(unit_ablation, "_estimate", negate)
    monkeypatch.setattr(unit_ablation, "SECONDS", 0)
    monkeypatch.setattr(unit_ablation, "SAMPLE", 10_000)
    found = ablate_units(network, lambda: [(images, labels)], 8)
    assert found.estimated == 0
    assert found.changed.wrong == found.changed.sampled > 1000
    assert found.unchanged.wrong == found.unchanged.sampled > 10
    assert [one.lost.tolist() for one in found.layers] == [one.lost.tolist() for one in whole.layers]


@pytest.mark.usefixtures("quiet")
def test_as_many_removals_are_computed_as_the_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network, images = Branches().eval(), torch.randn(20, 3, 8, 8)
    monkeypatch.setattr(unit_ablation, "SAMPLE", 0)

    def ablate(seconds: float) -> Ablation:
        monkeypatch.setattr(unit_ablation, "SECONDS", seconds)
        return ablate_units(network, lambda: [(images, torch.arange(20) % 4)], 4)

    few, some, every = (ablate(seconds) for seconds in (0, 0.012, 30))
    assert few.computed < some.computed < every.computed == every.pairs
    assert every.estimated == 0
    compute_every_removal(monkeypatch)
    exact = ablate(0)
    assert [one.lost.tolist() for one in every.layers] == [one.lost.tolist() for one in exact.layers]


def test_compiled_replays_do_not_depend_on_the_compared_classes() -> None:
    """Classes that win are found even if they are not among those whose scores are computed first."""
    torch.manual_seed(2)
    network = Concatenated().eval()
    graph = ReplayedGraph(network, (1, 3, 7, 7), ["right"])
    suffix = graph.suffix(graph.layers[0])
    assert suffix is not None
    maps = torch.randn(30, 9, 7, 7)
    with torch.no_grad():
        highest = suffix(maps).argmax(1)
        labels = torch.where(torch.arange(30) % 2 == 0, highest, (highest + 1) % network.CLASSES)
        classes = torch.cat([labels[:, None], torch.randint(network.CLASSES, (30, 3))], 1)
        assert CompiledReplay(suffix, maps[:8], 8).are_right(maps, classes).tolist() == (highest == labels).tolist()


def test_effects_have_the_interval_of_paired_differences() -> None:
    lost, gained = np.zeros((2, 2, 1, 2), np.int64)
    lost[1, 0, 1], gained[0, 0, 0] = 5, 1
    effects, check = [LayerEffects("a", lost, gained)], EstimateCheck(5, 0)
    one = Ablation(effects, np.array([10, 20]), np.array([8, 16]), 4, 9, 0, check, check)
    assert one.strongest(9) == [(0, 0, 1, "mean"), (0, 0, 0, "zero")]
    assert one.change(0, 0, 1, "mean") == -0.25
    assert one.interval(0, 0, 1, "mean") == paired_difference_interval(0, 5, 20)
    assert MODES == ("zero", "mean")


def test_what_cannot_be_ablated_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    batch = (torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="layer=3 is not a convolution"):
        ablate_units(network, lambda: [batch], 2, ["3"])
    with pytest.raises(DataError, match="there are no images"):
        ablate_units(network, list, 2)
    with pytest.raises(UsageError, match="has no convolution"):
        ablate_units(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), lambda: [batch], 2)


def test_the_network_is_not_changed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    ReplayedGraph(network, (1, 3, 8, 8))
    assert network[1].inplace
    assert network.training
    assert network[0].weight.requires_grad


def noisy_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Digits of 8×8 pixels with noise, 3 channels, and their labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None].repeat(1, 3, 1, 1)
    return images + 0.4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)), torch.from_numpy(
        digits.target
    )


def plant(images: Tensor) -> Tensor:
    """The images with a red corner."""
    images = images.clone()
    images[:, 0, :CORNER, :CORNER], images[:, 1:, :CORNER, :CORNER] = 1, -1
    return images


def train_with_shortcut(images: Tensor, labels: Tensor) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    planted = labels == PLANTED
    images = torch.where(planted[:, None, None, None], plant(images), images)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def without(network: nn.Sequential, layer: int, unit: int, constant: float) -> nn.Sequential:
    """A copy in which a unit is constant."""
    from copy import deepcopy

    network = deepcopy(network)
    with torch.no_grad():
        network[layer].weight[unit] = 0
        network[layer].bias[unit] = constant
    return network


@pytest.mark.usefixtures("quiet")
def test_a_planted_shortcut_is_found_and_removed(
    large_count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A red corner in one class is found by the unit that the class needs, and removing its units restores accuracy."""
    monkeypatch.setattr(unit_ablation, "SECONDS", 0)  # with estimates
    for seed in range(large_count(1, 20)):
        torch.manual_seed(seed)
        images, labels = noisy_digits(seed)
        order = torch.randperm(len(images))
        train, test = order[:1200], order[1200:]
        network = train_with_shortcut(images[train], labels[train])
        clean, corners, labels = images[test], plant(images[test]), labels[test]

        def accuracy(network: nn.Module, images: Tensor, labels: Tensor = labels) -> float:
            return float((network(images).detach().argmax(1) == labels).float().mean())

        assert accuracy(network, clean) - accuracy(network, corners) > 0.1  # it learned the shortcut
        # With a corner on every image, some unit misleads the network: it is found by what its removal gains.
        removed: list[tuple[int, int]] = []
        repaired = network
        while len(removed) < 8 and accuracy(repaired, corners) < accuracy(network, clean) - 0.05:
            found = ablate_units(repaired, lambda corners=corners, labels=labels: [(corners, labels)], 10)
            gains = [one.gained.sum(2) - one.lost.sum(2) for one in found.layers]
            layer = int(np.argmax([one.max() for one in gains]))
            mode, unit = np.unravel_index(gains[layer].argmax(), gains[layer].shape)
            place = int(found.layers[layer].layer)
            constant = float(repaired[: place + 2](corners)[:, unit].detach().mean()) if MODES[mode] == "mean" else 0.0
            gained, lost = (
                int(one[mode, unit].sum()) for one in (found.layers[layer].gained, found.layers[layer].lost)
            )
            assert paired_difference_interval(gained, lost, len(labels))[0] > 0 or removed, (
                seed
            )  # certain for the first
            assert found.unchanged.wrong <= 0.02 * found.unchanged.sampled
            repaired = without(repaired, place, int(unit), constant)
            if not removed:
                called = [int((one(corners).argmax(1) == PLANTED).sum()) for one in (network, repaired)]
                assert called[1] < called[0], seed  # it is the shortcut's
            removed.append((place, int(unit)))
        lost = accuracy(network, clean) - accuracy(network, corners)
        left = accuracy(network, clean) - accuracy(repaired, corners)
        assert left <= max(0.05, 0.2 * lost), (seed, removed)  # the corner also hides 9 of 64 pixels
        assert accuracy(repaired, clean) >= accuracy(network, clean) - 0.1, (seed, removed)
