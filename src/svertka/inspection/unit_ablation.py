"""The causal effect of units: how the accuracy on each class changes if a unit is removed.

A unit is removed by replacing its feature map with a constant: with 0, or with its mean over all images and positions.
Most removals leave an image right or wrong, as it was. One backward pass estimates for all units how much the margin of
an image would change: the difference between the score of its class and the highest other score. Only the pairs of
image and unit whose margin is estimated to move toward 0 by more than half are computed exactly, from the layer on. A
random sample of the others is computed, too, and tells how many changes were missed. If a layer has many such pairs,
the part of the network after it is compiled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
SCREENED = 1 / 2  # share of the margin from which on a removal is computed
SAMPLE = 1000  # pairs of image and unit among the others that are computed, for each mode
REMOVALS_PER_BATCH = 64
BATCH_BYTES = 32_000_000  # of the largest map of a batch of removals; larger ones do not fit in the CPU's caches
COMPILED_FROM = 1500  # removals, from which on compiling saves more time than it takes
CHECKED = 2  # images on which the graph, and the replay from each layer, are compared with the network
TOLERANCE = 1e-3  # share of the largest score
MEMORY = 400_000_000  # bytes of the values of a batch of images


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
        sampled: Pairs among those not computed that were drawn at random.
        missed: How many of these change whether the image is right.
    """

    layers: Sequence[LayerEffects]
    images: Ints
    right: Ints
    computed: int
    pairs: int
    sampled: int
    missed: int

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

    @property
    def missed_interval(self) -> Interval:
        """The 95 % interval of the share of changes among the pairs that were not computed."""
        return wilson_interval(self.missed, self.sampled)

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


@dataclass(eq=False)
class _Screening:
    """What the backward passes tell: the margin of each image, and sums over the positions of each unit's map."""

    predictions: list[Tensor] = field(default_factory=list)  # (n,)
    margins: list[Tensor] = field(default_factory=list)  # (n,)
    gradients: list[list[Tensor]] = field(default_factory=list)  # a batch, then a layer: (n, units)
    products: list[list[Tensor]] = field(default_factory=list)  # the same, of gradients times activations
    sums: list[Tensor] = field(default_factory=list)  # a layer: (units,), activations
    positions: list[int] = field(default_factory=list)  # a layer: images times positions


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
    screening, labels = _screen(graph, _split(batches(), size, advance), num_classes)
    means = [sums / positions for sums, positions in zip(screening.sums, screening.positions, strict=True)]
    chosen, sampled = _choose(graph, screening, means)
    counts = [np.zeros((2, len(MODES), layer.num_units, num_classes), np.int64) for layer in graph.layers]
    predictions = torch.cat(screening.predictions)
    missed = begin = 0
    replays = _Replays(graph, [int((one | other).sum()) for one, other in zip(chosen, sampled, strict=True)])
    for images, _ in _split(batches(), size, advance):
        here = slice(begin, begin + len(images))
        missed += _remove(replays, images, labels[here], predictions[here], means, chosen, sampled, begin, counts)
        begin += len(images)
    right = labels[predictions == labels].bincount(minlength=num_classes)
    effects = [LayerEffects(one.name, lost, gained) for one, (lost, gained) in zip(graph.layers, counts, strict=True)]
    units = sum(layer.num_units for layer in graph.layers)
    return Ablation(
        layers=effects,
        images=labels.bincount(minlength=num_classes).numpy(),
        right=right.numpy(),
        computed=sum(int(one.sum()) for one in chosen),
        pairs=len(MODES) * units * len(labels),
        sampled=sum(int(one.sum()) for one in sampled),
        missed=missed,
    )


def _split(
    batches: Iterable[tuple[Tensor, Tensor]], size: int, advance: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)
        advance(len(images))


def _screen(
    graph: ReplayedGraph, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> tuple[_Screening, Tensor]:
    """Run all images forward and backward."""
    found = _Screening()
    labels: list[Tensor] = []
    nodes = [layer.node for layer in graph.layers]
    found.sums = [torch.zeros(layer.num_units, dtype=torch.float64) for layer in graph.layers]
    found.positions = [0] * len(nodes)
    for images, given in batches:
        if wrong := given[(given < 0) | (given >= num_classes)].tolist():
            raise DataError(f"label {wrong[0]} is not a class; there are {num_classes} classes, from 0")
        if not labels:
            _check_graph(graph, images[:CHECKED], num_classes)
        passed = graph.differentiate(images, graph.layers, partial(_sum_margins, labels=given))
        found.predictions.append(passed.scores.argmax(1).cpu())
        found.margins.append(_margins(passed.scores.detach().cpu(), given.cpu()))
        labels.append(given.cpu())
        # Without a gradient, nothing is known about the effect, and all removals are computed.
        unknown = [torch.full((len(images), layer.num_units), torch.inf) for layer in graph.layers]
        found.gradients.append(
            [passed.gradients.get(node, torch.zeros_like(one)) for node, one in zip(nodes, unknown, strict=True)]
        )
        found.products.append([passed.products.get(node, one) for node, one in zip(nodes, unknown, strict=True)])
        found.sums = [sums + passed.sums[node] for sums, node in zip(found.sums, nodes, strict=True)]
        found.positions = [
            count + passed.num_positions[node] for count, node in zip(found.positions, nodes, strict=True)
        ]
    return found, torch.cat(labels)


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


def _sum_margins(scores: Tensor, labels: Tensor) -> Tensor:
    return _margins(scores, labels.to(scores.device)).sum()


def _margins(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how far the scores of each image are from becoming wrong, or right if they are wrong, (N,)."""
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
    return (own - others)[:, 0].abs() if scores.shape[1] > 1 else scores[:, 0]


def _choose(graph: ReplayedGraph, screening: _Screening, means: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return which removals are computed, and which of the others are drawn, for each layer: (images, modes, units)."""
    margins = torch.cat(screening.margins)[:, None]
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for number in range(len(graph.layers)):
        gradient = torch.cat([one[number] for one in screening.gradients])
        product = torch.cat([one[number] for one in screening.products])
        changes = torch.stack([-product, means[number].float() * gradient - product], 1)
        chosen.append(-changes > SCREENED * margins[:, None])
    others = sum(int((~one).sum()) for one in chosen)
    share = min(1.0, len(MODES) * SAMPLE / max(1, others))
    sampled = [~one & (torch.rand(one.shape, generator=generator) < share) for one in chosen]
    return chosen, sampled


class _Replays:
    """Scores without units, from each cut of the graph on.

    Args:
        graph: The graph.
        removals: How many units are removed in each layer, on all images together.
    """

    def __init__(self, graph: ReplayedGraph, removals: Sequence[int]) -> None:
        self.graph = graph
        self.groups: dict[fx.Node, list[int]] = {}  # the layers of each cut
        for number, layer in enumerate(graph.layers):
            self.groups.setdefault(layer.cut, []).append(number)
        self._removals = {cut: sum(removals[number] for number in group) for cut, group in self.groups.items()}
        self._compiled: dict[fx.Node, CompiledReplay | None] = {}
        self._checked: set[int] = set()

    def batch_size(self, cut: fx.Node) -> int:
        """Return how many units are removed at a time."""
        size = BATCH_BYTES // self.graph.bytes_per_replay(self.graph.layers[self.groups[cut][0]])
        return max(REMOVALS_PER_BATCH // 8, min(REMOVALS_PER_BATCH, size // 8 * 8))

    def are_right_without(
        self, number: Tensor, images: Tensor, values: Values, pairs: Tensor, constants: Tensor, classes: Tensor
    ) -> Tensor:
        """Return whether an image is right if the map of a unit is replaced by a constant, (n,) bool.

        Args:
            number: (n,) int64, layers with the same cut.
            images: (N, C, H, W).
            values: The values of these images, from `ReplayedGraph.run`.
            pairs: (n, 2) int64, image and unit.
            constants: (n,).
            classes: (N, 1 + M) int64, from `choose_competitors`.

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
        unchecked = set(number.tolist()) - self._checked
        if not unchecked:
            if layer.cut not in self._compiled:
                self._compiled[layer.cut] = self._compile(layer, changed)
            if (compiled := self._compiled[layer.cut]) is not None:
                return compiled.are_right(changed, classes[image])
        scores = self.graph.replay(layer, changed, values, at)
        for one in unchecked:
            few = (number == one).nonzero()[:CHECKED, 0]
            self._check(layers[one], scores[few], images[at[few]], unit[few], constants[few])
        self._checked |= unchecked
        return scores.argmax(1).cpu() == classes[image, 0]

    def _check(self, layer: UnitLayer, scores: Tensor, images: Tensor, units: Tensor, constants: Tensor) -> None:
        """Raise UsageError unless a run of the whole network gives the same scores."""
        if not _are_equal(scores, self.graph.run_changed(layer, images, units, constants)):
            raise UsageError(
                f"{self.graph.name} computes other scores than those computed again from layer={layer.name}, "
                "because images influence each other, or layers keep values; its units cannot be removed"
            )

    def _compile(self, layer: UnitLayer, maps: Tensor) -> CompiledReplay | None:
        """Return the compiled network after a cut; None if there are few removals, or it cannot be compiled."""
        if self._removals[layer.cut] < COMPILED_FROM or maps.device.type != "cpu" or maps.dtype != torch.float32:
            return None
        suffix = self.graph.suffix(layer)
        if suffix is None:
            return None
        try:
            return CompiledReplay(suffix, maps, self.batch_size(layer.cut))
        except UsageError:
            return None


def _remove(
    replays: _Replays,
    images: Tensor,
    labels: Tensor,
    predictions: Tensor,
    means: Sequence[Tensor],
    chosen: Sequence[Tensor],
    sampled: Sequence[Tensor],
    begin: int,
    counts: Sequence[Ints],
) -> int:
    """Compute the removals of a batch of images and add them to `counts`. Return the changes in the sample."""
    here = slice(begin, begin + len(images))
    wanted = [(one[here] | other[here]).nonzero() for one, other in zip(chosen, sampled, strict=True)]
    needed = [layer for layer, pairs in zip(replays.graph.layers, wanted, strict=True) if len(pairs)]
    missed = 0
    with torch.inference_mode():
        scores, values = replays.graph.run(images, needed)
        classes = choose_competitors(scores.cpu(), labels)
        for cut, group in replays.groups.items():
            found = [F.pad(wanted[number], (1, 0), value=number) for number in group]
            together = torch.cat(found)
            for pairs in torch.split(together, replays.batch_size(cut)) if len(together) else ():
                number, image, mode, unit = pairs.T
                constants = torch.stack([means[one][k] * m for one, m, k in pairs[:, [0, 2, 3]].tolist()])
                was = predictions[image] == labels[image]
                now = replays.are_right_without(number, images, values, pairs[:, [1, 3]], constants, classes)
                for one in group:
                    of_layer = number == one
                    drawn = sampled[one][here][image[of_layer], mode[of_layer], unit[of_layer]]
                    missed += int((drawn & (was != now)[of_layer]).sum())
                    for which, changed in enumerate((was & ~now, ~was & now)):
                        counted = changed & of_layer
                        place = (mode[counted], unit[counted], labels[image][counted])
                        np.add.at(counts[one][which], tuple(axis.numpy() for axis in place), 1)
    return missed
