"""The causal effect of units: how the accuracy on each class changes if a unit is removed.

A unit is removed by replacing its feature map with a constant: with 0, or with its mean over all images and positions.
Most removals leave an image right or wrong, as it was. Backward passes estimate for all units how the differences
between the score of an image's class and the highest other scores would change. The image is right without the unit if
all differences are positive then. The estimate is uncertain if the least of them is close to 0, compared with the size
of the changes: these pairs of image and unit are computed exactly, from the layer on, and as many others as about half
a minute allows, which are all of a small network. For the rest, the estimate decides. A random sample of it is
computed, too, and tells how often the estimate was wrong. If a layer has many pairs to compute, the part of the network
after it is compiled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from svertka.confidence_intervals import Interval, paired_difference_interval, wilson_interval
from svertka.data.dataset import Ints
from svertka.errors import DataError, UsageError
from svertka.inspection.compiled_replay import CompiledReplay, choose_competitors
from svertka.inspection.graph_dataflow import take_images
from svertka.inspection.replayed_graph import ReplayedGraph, UnitLayer, Values, replace_units

Floats = npt.NDArray[np.float64]
Mode = Literal["zero", "mean"]
MODES: tuple[Mode, ...] = ("zero", "mean")
ESTIMATED_CLASSES = 8  # whose differences from the score of the image's class are estimated
# The least difference without the unit, with the sign that a change gives it, as a multiple of the root mean square
# change of all differences: between these bounds, the removal is computed.
UNCHANGED_BELOW, CHANGED_ABOVE = -0.4, 0.7
SECONDS = 30.0  # in which as many other removals are computed, the least certain first
SECONDS_PER_REMOVAL, BYTES_PER_SECOND = 2e-5, 1.5e9  # what a replay takes, roughly; a measured time would vary
SAMPLE = 2000  # removals that are estimated to change nothing and computed to check the estimate
CHANGES_SAMPLED = 20  # how many times as large a share of those estimated to change an image is computed
REMOVALS_PER_BATCH = 64
BATCH_BYTES = 32_000_000  # of the largest map of a batch of removals; larger ones do not fit in the CPU's caches
COMPILED_FROM = 1500  # removals, from which on compiling saves more time than it takes
CHECKED = 2  # images on which the graph, and the replay from each layer, are compared with the network
BESIDE = 6  # other removals in the same batch in this comparison
TOLERANCE = 1e-3  # share of the largest score
MEMORY = 400_000_000  # bytes of the values of a batch of images


@dataclass(frozen=True)
class EstimateCheck:
    """How often an estimate was wrong.

    Attributes:
        sampled: Estimates that were drawn at random, and computed.
        wrong: How many of these were wrong.
    """

    sampled: int
    wrong: int

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the share of estimates that are wrong."""
        return wilson_interval(self.wrong, self.sampled)


@dataclass(frozen=True, eq=False)
class LayerEffects:
    """The effect of each unit of a layer.

    Attributes:
        layer: Name of the convolution.
        lost: (modes, units, classes) int64, images of a class that are right, and wrong without the unit.
        gained: (modes, units, classes) int64, images that are wrong, and right without the unit.
    """

    layer: str
    lost: Ints
    gained: Ints


@dataclass(frozen=True, eq=False)
class Ablation:
    """The effects of all units, and how they were found.

    Attributes:
        layers: The effects, layer by layer.
        images: (classes,) int64, images of each class.
        right: (classes,) int64, images of each class that the whole network classifies right.
        computed: Pairs of image and unit that were computed, both modes together.
        pairs: All pairs of image and unit, both modes together.
        estimated: Pairs that were not computed, because the estimate says that they change whether the image is right.
        unchanged: What the sample says about the pairs that were estimated to change nothing.
        changed: What the sample says about the pairs that were estimated to change whether the image is right.
    """

    layers: Sequence[LayerEffects]
    images: Ints
    right: Ints
    computed: int
    pairs: int
    estimated: int
    unchanged: EstimateCheck
    changed: EstimateCheck

    def change(self, layer: int, unit: int, label: int, mode: Mode) -> float:
        """Return how the accuracy on class `label` changes without the unit, −1 to 1."""
        effects, which = self.layers[layer], MODES.index(mode)
        difference = effects.gained[which, unit, label] - effects.lost[which, unit, label]
        return float(difference / max(1, self.images[label]))

    def interval(self, layer: int, unit: int, label: int, mode: Mode) -> Interval:
        """Return the 95 % interval of `change`."""
        effects, which = self.layers[layer], MODES.index(mode)
        gained, lost = int(effects.gained[which, unit, label]), int(effects.lost[which, unit, label])
        return paired_difference_interval(gained, lost, int(self.images[label]))

    def strongest(self, count: int) -> list[tuple[int, int, int, Mode]]:
        """Return the largest changes: layer, unit, class and mode; of each unit and class, the larger one."""
        found = []
        for number, effects in enumerate(self.layers):
            changes = (effects.gained - effects.lost) / np.maximum(1, self.images)
            which = np.abs(changes).argmax(0)
            units, labels = np.nonzero(np.take_along_axis(changes, which[None], 0)[0])
            found += [
                (abs(changes[which[unit, label], unit, label]), number, int(unit), int(label), int(which[unit, label]))
                for unit, label in zip(units.tolist(), labels.tolist(), strict=True)
            ]
        found.sort(key=lambda one: (-one[0], *one[1:]))
        return [(layer, unit, label, MODES[mode]) for _, layer, unit, label, mode in found[:count]]


def ablate_units(
    network: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    num_classes: int,
    layers: Sequence[str] | None = None,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Ablation:
    """Return the effect of removing each unit on the accuracy of each class.

    Args:
        network: Any nn.Module that returns scores (N, K).
        batches: Called twice; returns images (N, C, H, W) and labels (N,), always in the same order.
        num_classes: Number of classes, K.
        layers: Names of convolutions. None: all.
        advance: Called with the number of images after each batch, twice for each image.

    Raises:
        UsageError: The network makes decisions based on values; a layer is not a convolution of the network; the
            network does not return `num_classes` scores; or its scores cannot be computed again from a layer.
        DataError: There are no images, or a label is not a class.
    """
    first = next(iter(batches()), None)
    if first is None or not len(first[0]):
        raise DataError("there are no images; give at least one")
    graph = ReplayedGraph(network, (1, *first[0].shape[1:]), layers)
    if not graph.layers:
        raise UsageError(f"{type(network).__name__} has no convolution whose units can be removed")
    size = max(1, min(REMOVALS_PER_BATCH // 2, MEMORY // graph.bytes_per_image))
    means, predictions, labels = _measure(graph, _split(batches(), size, advance), num_classes)
    units = sum(layer.num_units for layer in graph.layers)
    removal = _Removal(graph, means, num_classes, len(labels), SAMPLE / (len(MODES) * units * len(labels)))
    for images, given in _split(batches(), size, advance):
        removal.add(images, given.cpu())
    effects = [LayerEffects(one.name, *counts) for one, counts in zip(graph.layers, removal.counts, strict=True)]
    unchanged, changed = (EstimateCheck(*check) for check in removal.checks.tolist())
    return Ablation(
        layers=effects,
        images=labels.bincount(minlength=num_classes).numpy(),
        right=labels[predictions == labels].bincount(minlength=num_classes).numpy(),
        computed=removal.computed,
        pairs=len(MODES) * units * len(labels),
        estimated=removal.estimated,
        unchanged=unchanged,
        changed=changed,
    )


def _split(
    batches: Iterable[tuple[Tensor, Tensor]], size: int, advance: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)
        advance(len(images))


def _measure(
    graph: ReplayedGraph, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the mean activation of each layer's units, (units,) float64, and the predictions and labels, (N,)."""
    sums = [torch.zeros(layer.num_units, dtype=torch.float64) for layer in graph.layers]
    positions = [0] * len(graph.layers)
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    for images, given in batches:
        if wrong := given[(given < 0) | (given >= num_classes)].tolist():
            raise DataError(f"label {wrong[0]} is not a class; there are {num_classes} classes, from 0")
        if not labels:
            _check_graph(graph, images[:CHECKED], num_classes)
        passed = graph.sum_activations(images, graph.layers)
        predictions.append(passed.scores.argmax(1).cpu())
        labels.append(given.cpu())
        for number, layer in enumerate(graph.layers):
            sums[number] += passed.sums[layer.node]
            positions[number] += passed.num_positions[layer.node]
    return [one / count for one, count in zip(sums, positions, strict=True)], torch.cat(predictions), torch.cat(labels)


def _check_graph(graph: ReplayedGraph, images: Tensor, num_classes: int) -> None:
    """Raise UsageError unless the graph computes what the network computes."""
    with torch.inference_mode():
        expected, found = graph.run_network(images), graph.run(images)[0]
    if expected.shape[1] != num_classes:
        raise UsageError(
            f"{graph.name} returns {expected.shape[1]} scores for each image; there are {num_classes} classes"
        )
    if not _are_equal(found, expected):
        raise UsageError(
            f"{graph.name} computes other scores than its graph, because it keeps values between its layers or calls, "
            "uses random numbers, or changes values under several names; its units cannot be removed"
        )


def _are_equal(found: Tensor, expected: Tensor) -> bool:
    """Return whether scores are equal up to rounding."""
    tolerance = max(TOLERANCE, torch.finfo(expected.dtype).eps ** 0.5) if expected.is_floating_point() else 0
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _differences(scores: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the score of each image's class exceeds the highest other scores, (N, M)."""
    classes = choose_competitors(scores.detach(), labels.to(scores.device), ESTIMATED_CLASSES)
    chosen = scores.gather(1, classes)
    return chosen[:, :1] - chosen[:, 1:]


def _estimate(
    graph: ReplayedGraph, images: Tensor, labels: Tensor, means: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return which images are right, and how clearly each removal changes this.

    Args:
        graph: The graph.
        images: (N, C, H, W).
        labels: (N,) int64, on the CPU.
        means: Mean activation of each layer's units, (units,).

    Returns:
        (N,) bool; and for each layer (N, modes, units), positive if the removal is estimated to change whether the
        image is right: the least difference without the unit, relative to the root mean square change. NaN if there is
        no gradient.
    """
    passed = graph.differentiate(images, graph.layers, lambda scores: _differences(scores, labels))
    scores = passed.scores.detach().cpu()
    is_right = scores.argmax(1) == labels
    differences = _differences(scores, labels)[:, None, None]
    found = []
    for layer, mean in zip(graph.layers, means, strict=True):
        if not differences.shape[-1]:  # a single class
            found.append(torch.full((len(images), len(MODES), layer.num_units), -torch.inf))
        elif len(passed.gradients.get(layer.node, ())) < differences.shape[-1]:
            found.append(torch.full((len(images), len(MODES), layer.num_units), torch.nan))
        else:
            gradient, product = (torch.stack(one[layer.node], -1) for one in (passed.gradients, passed.products))
            changes = torch.stack([-product, mean.float()[:, None] * gradient - product], 1)
            least = (differences + changes).amin(-1)
            size = changes.square().mean(-1).sqrt()
            found.append(torch.where(is_right[:, None, None], -least, least) / size)
    return is_right, found


class _Replays:
    """Scores without units, from each cut of the graph on.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: ReplayedGraph) -> None:
        self.graph = graph
        self.groups: dict[fx.Node, list[int]] = {}  # the layers of each cut
        for number, layer in enumerate(graph.layers):
            self.groups.setdefault(layer.cut, []).append(number)
        self._compiled: dict[fx.Node, CompiledReplay | None] = {}
        self._checked: set[int] = set()

    def batch_size(self, cut: fx.Node) -> int:
        """Return how many units are removed at a time."""
        size = BATCH_BYTES // self.graph.bytes_per_replay(self.graph.layers[self.groups[cut][0]])
        return max(REMOVALS_PER_BATCH // 8, min(REMOVALS_PER_BATCH, size // 8 * 8))

    def are_right_without(
        self,
        number: Tensor,
        images: Tensor,
        values: Values,
        pairs: Tensor,
        constants: Tensor,
        classes: Tensor,
        expected: float,
    ) -> Tensor:
        """Return whether an image is right if the map of a unit is replaced by a constant, (n,) bool.

        Args:
            number: (n,) int64, layers with the same cut.
            images: (N, C, H, W).
            values: The values of these images, from `ReplayedGraph.run`.
            pairs: (n, 2) int64, image and unit.
            constants: (n,).
            classes: (N, 1 + M) int64, from `choose_competitors`.
            expected: How many units will be removed at this cut, on all images together.

        Raises:
            UsageError: The scores are not those of a run of the whole network.
        """
        image, unit = pairs.T
        layers = self.graph.layers
        layer = layers[int(number[0])]
        maps = values[layer.cut, layer.cut]
        at = image.to(maps.device)
        changed = take_images(maps, at)
        first = torch.tensor([one.first_channel for one in layers])
        replace_units(changed, unit + first[number], constants)
        for one in set(number.tolist()) - self._checked:
            few = (number == one).nonzero()[:CHECKED, 0]
            # With other removals in the same batch, since images must not influence each other.
            rows = torch.cat([few, torch.arange(min(len(at), BESIDE))])
            scores = self.graph.replay(layers[one], changed[rows], values, at[rows])[: len(few)]
            self._check(layers[one], scores, images[at[few]], unit[few], constants[few])
            self._checked.add(one)
        if layer.cut not in self._compiled and expected >= COMPILED_FROM:
            self._compiled[layer.cut] = self._compile(layer, changed)
        if (compiled := self._compiled.get(layer.cut)) is not None:
            return compiled.are_right(changed, classes[image])
        return self.graph.replay(layer, changed, values, at).argmax(1).cpu() == classes[image, 0]

    def _check(self, layer: UnitLayer, scores: Tensor, images: Tensor, units: Tensor, constants: Tensor) -> None:
        """Raise UsageError unless a run of the whole network gives the same scores."""
        if not _are_equal(scores, self.graph.run_changed(layer, images, units, constants)):
            raise UsageError(
                f"{self.graph.name} computes other scores than those computed again from layer={layer.name}, "
                "because images influence each other, or layers keep values; its units cannot be removed"
            )

    def _compile(self, layer: UnitLayer, maps: Tensor) -> CompiledReplay | None:
        """Return the compiled network after a cut; None if it cannot be compiled."""
        if maps.device.type != "cpu" or maps.dtype != torch.float32:
            return None
        suffix = self.graph.suffix(layer)
        if suffix is None:
            return None
        try:
            return CompiledReplay(suffix, maps, self.batch_size(layer.cut))
        except UsageError:
            return None


class _Removal:
    """The removal of all units, batch by batch.

    Args:
        graph: The graph.
        means: Mean activation of each layer's units, (units,).
        num_classes: Number of classes.
        num_images: Number of all images.
        share: The share of removals estimated to change nothing that is computed.

    Attributes:
        counts: For each layer, the images that are lost and gained, (modes, units, classes) each.
        computed: Pairs that were computed because their estimate was uncertain.
        estimated: Pairs that were counted as changes without being computed.
        checks: Estimates in the sample, and wrong ones among them: that nothing changes, and that it changes.
    """

    def __init__(
        self, graph: ReplayedGraph, means: Sequence[Tensor], num_classes: int, num_images: int, share: float
    ) -> None:
        self._graph, self._means, self._num_images, self._share = graph, means, num_images, share
        self._replays = _Replays(graph)
        self._generator = torch.Generator().manual_seed(0)
        self.counts = [np.zeros((2, len(MODES), layer.num_units, num_classes), np.int64) for layer in graph.layers]
        self.computed = self.estimated = 0
        self.checks = np.zeros((2, 2), np.int64)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Remove all units from a batch of images.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64, on the CPU.
        """
        was, estimates = _estimate(self._graph, images, labels, self._means)
        uncertain = self._find_uncertain(estimates, SECONDS * len(images) / self._num_images)
        wanted = []
        for number, (estimate, chosen) in enumerate(zip(estimates, uncertain, strict=True)):
            change = ~chosen & (estimate > 0)
            self.computed += int(chosen.sum())
            share = torch.where(change, CHANGES_SAMPLED * self._share, self._share)
            drawn = ~chosen & (torch.rand(estimate.shape, generator=self._generator) < share)
            wanted.append((chosen | drawn).nonzero())
            counted = (change & ~drawn).nonzero()
            self.estimated += len(counted)
            self._count(number, was, labels, counted)
        needed = [layer for layer, pairs in zip(self._graph.layers, wanted, strict=True) if len(pairs)]
        with torch.inference_mode():
            scores, values = self._graph.run(images, needed)
            classes = choose_competitors(scores.cpu(), labels)
            for cut, group in self._replays.groups.items():
                together = torch.cat([F.pad(wanted[number], (1, 0), value=number) for number in group])
                expected = len(together) / len(images) * self._num_images
                for pairs in torch.split(together, self._replays.batch_size(cut)) if len(together) else ():
                    number, image = pairs.T[:2]
                    constants = torch.stack([self._means[one][k] * m for one, m, k in pairs[:, [0, 2, 3]].tolist()])
                    now = self._replays.are_right_without(
                        number, images, values, pairs[:, [1, 3]], constants, classes, expected
                    )
                    changed = now != was[image]
                    for one in group:
                        of_layer = number == one
                        places = pairs[of_layer, 1:]
                        at = tuple(places.T)
                        drawn = ~uncertain[one][at]
                        self._check(estimates[one][at][drawn], changed[of_layer][drawn])
                        self._count(one, was, labels, places[changed[of_layer]])

    def _count(self, number: int, was: Tensor, labels: Tensor, places: Tensor) -> None:
        """Count changes of a layer: (n, 3) int64, image, mode and unit."""
        image, mode, unit = places.T
        which = (~was[image]).long()
        np.add.at(self.counts[number], tuple(one.numpy() for one in (which, mode, unit, labels[image])), 1)

    def _find_uncertain(self, estimates: Sequence[Tensor], seconds: float) -> list[Tensor]:
        """Return which removals are computed: those between the bounds, and the least certain others.

        Args:
            estimates: For each layer, (N, modes, units).
            seconds: Time for all that are computed, if those between the bounds do not take longer.
        """
        distances = [
            torch.where(one < 0, one / UNCHANGED_BELOW, one / CHANGED_ABOVE).nan_to_num(0.0, torch.inf)
            for one in estimates
        ]
        costs = [
            torch.full(one.shape, SECONDS_PER_REMOVAL + self._graph.bytes_of_replay(layer) / BYTES_PER_SECOND).flatten()
            for layer, one in zip(self._graph.layers, estimates, strict=True)
        ]
        together = torch.cat([one.flatten() for one in distances])
        order = together.argsort(stable=True)
        is_chosen = together <= 1
        is_chosen[order[torch.cat(costs)[order].cumsum(0) <= seconds]] = True
        parts = is_chosen.split([one.numel() for one in distances])  # type: ignore[no-untyped-call]
        return [part.view(one.shape) for part, one in zip(parts, distances, strict=True)]

    def _check(self, estimates: Tensor, changed: Tensor) -> None:
        """Compare estimates that decided with what was computed."""
        for check, decided, wrong in (
            (self.checks[0], estimates <= 0, changed),
            (self.checks[1], estimates > 0, ~changed),
        ):
            check += [int(decided.sum()), int((decided & wrong).sum())]
