"""Replays equal runs of the whole network in which a hook changes the unit, whatever the network does in place."""

import gc
import random
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import SvertkaError, UsageError
from svertka.inspection.graph_dataflow import take_images
from svertka.inspection.replayed_graph import ReplayedGraph, replace_units
from svertka.inspection.unit_ablation import ablate_units

CHANNELS, SIDE, CLASSES = 4, 6, 5


class Probed(nn.Module):
    """A network whose layer `cut` is followed by ReLU and by the module `probe`, where the oracle changes a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cut, self.after, self.side = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4))
        self.probe = nn.Identity()
        self.head = nn.Linear(CHANNELS, CLASSES)
        self.flat_head = nn.Linear(CHANNELS * SIDE * SIDE, CLASSES)
        self.wide_head = nn.Linear(2 * CHANNELS * SIDE * SIDE, CLASSES)


class Residual(Probed):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        y = self.probe(F.relu(self.cut(x), inplace=True))
        y.add_(x)
        return self.head((self.after(y) + y - x).mean((2, 3)))


class Concatenation(Probed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = torch.cat([self.probe(self.cut(x).relu_()), self.side(x).relu_()], 1)
        return self.wide_head(maps.view(x.size(0), -1))


class InPlaceResultUnused(Probed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.cut(self.stem(x))
        F.relu(y, inplace=True)
        self.probe(y)
        return self.head(self.after(y).mean((2, 3)) + y.amax((2, 3)))


class ViewIsChanged(Probed):
    def forward(self, x: Tensor) -> Tensor:
        y = self.probe(self.cut(self.stem(x)).relu())
        y.view(x.size(0), -1).mul_(2)
        first, second = y.chunk(2, 1)
        second.sub_(first)
        return self.head(y.amax((2, 3)))


class SideIsChangedLater(Probed):
    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        y = self.probe(self.cut(x).relu())
        z = y + side
        side.tanh_()
        z = z + side
        z.add_(y)
        side.add_(y)
        return self.head((z * side).mean((2, 3)))


class Tokens(Probed):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        before = 1.5 * self.stem(x).flatten(2).permute(2, 0, 1)
        tokens = self.probe(self.cut(x).relu()).flatten(2).permute(2, 0, 1)
        return self.head((self.attention(tokens, before, before)[0] + before).mean(0))


class Sizes(Probed):
    def forward(self, x: Tensor) -> Tensor:
        number, channels, height, width = x.shape
        weight = self.after.weight / self.after.weight.norm()
        many = self.stem(x).reshape(number * channels, height, width)
        y = self.probe(self.cut(x).relu())
        y = F.conv2d(y, weight, padding=1) + x.new_ones((number, 1, 1, 1)) * self.side.weight.shape[0]
        y = y.view(number * channels, height, width) + many
        return self.flat_head(y.view(number, channels * height * width))


class ImageIsChanged(Probed):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        y = self.probe(self.cut(x).relu())
        x.mul_(2)
        return self.head((y * x + y).mean((2, 3)))


class Squeezed(Probed):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.probe(self.cut(self.stem(x)).relu())
        return {"scores": F.conv2d(maps.mean((2, 3), keepdim=True), self.head.weight[:, :, None, None]).squeeze()}


class RandomProgram(Probed):
    """A random sequence of operations on maps, many of which are in place or return views."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = random.Random(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.contiguous = [True, True]
        when = generator.randrange(1, 8)
        for number in range(12):
            i, j = (generator.randrange(len(self.contiguous)) for _ in range(2))
            kind = generator.choice(["side", "relu_", "kept_", "add_", "half_", "view", "swap", "mix", "flat_"])
            if number == when:
                kind, i = "cut", generator.choice([place for place, plain in enumerate(self.contiguous) if plain])
            if kind in ("view", "flat_") and not self.contiguous[i]:
                continue
            self.steps.append((kind, i, j))
            if kind in ("side", "cut", "kept_", "view", "swap", "mix"):
                fresh = kind in ("side", "cut", "mix", "view")
                # The order in memory of what is computed from a swapped map is that of the map.
                self.contiguous.append(fresh and self.contiguous[i] and (kind != "mix" or self.contiguous[j]))
                if kind == "kept_":
                    self.contiguous[-1] = self.contiguous[i]

    def forward(self, x: Tensor) -> Tensor:
        number = x.size(0)
        live = [self.stem(x), torch.tanh(x)]
        for kind, i, j in self.steps:
            one, other = live[i], live[j]
            if kind == "side":
                live.append(self.side(one))
            elif kind == "cut":
                live.append(self.probe(self.cut(one).relu()))
            elif kind == "relu_":
                one.relu_()
            elif kind == "kept_":
                live.append(one.relu_())
            elif kind == "add_":
                one.add_(other.clone(), alpha=0.3)  # a part of itself cannot be added
            elif kind == "half_":
                one[:, :2].mul_(-0.5)
            elif kind == "view":
                live.append(one.view(number, CHANNELS, SIDE, SIDE))
            elif kind == "swap":
                live.append(one.transpose(2, 3))
            elif kind == "mix":
                live.append(one - 0.4 * other)
            else:
                one.view(number, -1).mul_(0.9)
        return self.head(sum((place + 1) * maps[:, :, place % SIDE].amax(2) for place, maps in enumerate(live)))


NETWORKS: list[Callable[[], Probed]] = [
    Residual, Concatenation, InPlaceResultUnused, ViewIsChanged, SideIsChangedLater, Tokens, Sizes, ImageIsChanged,
    Squeezed,
]  # fmt: skip


def make(kind: Callable[[], Probed]) -> tuple[Probed, Tensor]:
    torch.manual_seed(0)
    return kind().double().eval(), torch.randn(4, CHANNELS, SIDE, SIDE, dtype=torch.float64)


def score_without(network: Probed, images: Tensor, unit: int, constant: float) -> Tensor:
    """The oracle: the whole network, with a unit's map changed by a hook."""

    def change(module: nn.Module, inputs: tuple[Tensor], maps: Tensor) -> Tensor:
        assert maps.is_contiguous()
        maps[:, unit] = constant  # in place, so that other names of the same tensor see it, too
        return maps

    with network.probe.register_forward_hook(change), torch.no_grad():
        output = network(images.clone(memory_format=torch.contiguous_format))
    scores: Tensor = output["scores"] if isinstance(output, dict) else output
    return scores


def assert_replay_equals_oracle(network: Probed, images: Tensor) -> None:
    graph = ReplayedGraph(network, (1, *images.shape[1:]), ["cut"])
    (layer,) = graph.layers
    chosen = torch.tensor([3, 0, 3, 1, 2])
    with torch.inference_mode():
        values = graph.run(images, [layer])[1]
        for unit, constant in ((0, 0.0), (CHANNELS - 1, 0.7)):
            units, constants = torch.full((5,), unit), torch.full((5,), constant, dtype=torch.float64)
            for _ in range(2):  # a replay leaves the values as they are
                changed = take_images(values[layer.cut, layer.cut], chosen)
                replace_units(changed, units + layer.first_channel, constants)
                found = graph.replay(layer, changed, values, chosen)
                expected = score_without(network, images, unit, constant)[chosen]
                assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9), (found - expected).abs().max()
            whole = graph.run_changed(layer, images[chosen], units, constants)
            assert torch.allclose(whole, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NETWORKS)
def test_replays_equal_the_whole_network(kind: Callable[[], Probed]) -> None:
    network, images = make(kind)
    before = images.clone()
    assert_replay_equals_oracle(network, images)
    assert torch.equal(images, before)


def test_replays_of_random_programs_are_right_or_refused(large_count: Callable[[int, int], int]) -> None:
    count, refused = large_count(6, 100), 0
    for seed in range(count):
        network, images = make(lambda seed=seed: RandomProgram(seed))
        try:
            ReplayedGraph(network, (1, *images.shape[1:]), ["cut"])
        except UsageError:
            refused += 1
        else:
            assert_replay_equals_oracle(network, images)
    assert refused <= count / 5


class Coupled(Probed):
    """Images influence each other."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.probe(self.cut(x).relu())
        return self.head((y - y.mean(0)).mean((2, 3)))


class Stateful(nn.Module):
    """A layer that returns its input of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last.append(x)
        return x + len(self.last)


class Hidden(Probed):
    """A layer whose output depends on the number of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Stateful()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.count(self.probe(self.cut(x).relu())).mean((2, 3)))


class SecondName(Probed):
    """torch.fx records `y += x` as y + x, although `same` is changed, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.probe(self.cut(x).relu())
        same = y
        y += x
        return self.head(same.mean((2, 3)))


class NotNumbers(Probed):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cut(x).mean((2, 3)).sub(99).log())


class Maps(Probed):
    def forward(self, x: Tensor) -> Tensor:
        return self.cut(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Coupled, "images influence each other"),
        (Hidden, "keeps values between its layers"),
        (SecondName, "changes values under several names"),
        (NotNumbers, "scores that are NaN"),
        (Maps, r"returns 2×4×6×6 for 2 images; it has to return scores \(N, classes\)"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(kind: Callable[[], Probed], reason: str) -> None:
    network, images = make(kind)
    with pytest.raises(UsageError, match=reason):
        ablate_units(network, lambda: [(images, torch.arange(4))], CLASSES)


def test_labels_and_scores_have_to_fit_to_the_classes() -> None:
    network, images = make(Residual)
    with pytest.raises(SvertkaError, match="returns 5 scores for each image; there are 6 classes"):
        ablate_units(network, lambda: [(images, torch.arange(4))], 6)
    with pytest.raises(SvertkaError, match="label 5 is not a class; there are 5 classes, from 0"):
        ablate_units(network, lambda: [(images, torch.arange(2, 6))], CLASSES)


@pytest.mark.parametrize("kind", [Residual, Concatenation, SideIsChangedLater, Squeezed])
def test_gradients_are_those_at_the_layer(kind: Callable[[], Probed]) -> None:
    """Operations in place after the layer change neither the activations nor the gradients."""
    network, images = make(kind)
    graph = ReplayedGraph(network, (1, *images.shape[1:]), ["cut"])
    (layer,) = graph.layers
    passed = graph.differentiate(images, [layer], lambda scores: scores[:, 1:3])
    step = 1e-6
    with torch.inference_mode():
        maps = graph.run(images, [layer])[1][layer.cut, layer.cut]
        values = graph.run(images, [layer])[1]
        for unit in range(CHANNELS):
            changed = maps.clone()
            changed[:, unit + layer.first_channel] += step
            moved = graph.replay(layer, changed, values, torch.arange(4)) - passed.scores
            for objective in range(2):
                found = passed.gradients[layer.node][objective][:, unit]
                assert torch.allclose(found, moved[:, 1 + objective] / step, atol=1e-4)
    sums = maps.sum((0, 2, 3))[layer.first_channel :][:CHANNELS]
    assert torch.allclose(passed.sums[layer.node], sums)


class Detached(Probed):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cut(x).relu().detach().amax((2, 3)))


@pytest.mark.parametrize("kind", [Detached, ViewIsChanged])
def test_layers_without_gradients_are_computed_exactly(kind: Callable[[], Probed]) -> None:
    network, images = make(kind)
    with torch.no_grad():
        labels = network(images).argmax(1)
    found = ablate_units(network, lambda: [(images, labels)], CLASSES, ["cut"])
    assert found.computed == found.pairs == 2 * CHANNELS * 4
    assert found.right.sum() == 4


def test_a_pass_with_gradients_keeps_no_memory() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten())
    graph = ReplayedGraph(network, (1, 3, 8, 8))
    gc.disable()  # else a cycle might be collected in time, or much later
    try:
        passed = graph.differentiate(torch.rand(2, 3, 8, 8), graph.layers, lambda scores: scores[:, :2])
        assert passed.gradients.keys() == {layer.node for layer in graph.layers}
        left = weakref.ref(passed)
        del passed
        assert left() is None
    finally:
        gc.enable()


def test_a_layer_that_the_scores_do_not_read_has_no_effect() -> None:
    class Unread(Probed):
        def forward(self, x: Tensor) -> Tensor:
            self.cut(x)
            return self.head(self.side(x).mean((2, 3)))

    network, images = make(Unread)
    found = ablate_units(network, lambda: [(images, torch.arange(4))], CLASSES, ["cut"])
    assert found.layers[0].lost.sum() == found.layers[0].gained.sum() == 0
