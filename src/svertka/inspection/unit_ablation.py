"""The causal effect of units: how the accuracy on each class changes if a unit is removed.

A unit is removed by replacing its feature map with a constant: with 0, or with its mean over all images and positions.
Most removals leave an image right or wrong, as it was. One backward pass estimates for all units how much the margin of
an image would change: the difference between the score of its class and the highest other score. Only the pairs of
image and unit whose margin is estimated to move toward 0 by more than half are computed exactly, from the layer on. A
random sample of the others is computed, too, and tells how many changes were missed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from svertka.confidence_intervals import Interval, paired_difference_interval, wilson_interval
from svertka.data.dataset import Ints
from svertka.errors import DataError, UsageError
from svertka.inspection.replayed_graph import ReplayedGraph, UnitLayer, Values, take_images

Floats = npt.NDArray[np.float64]
Mode = Literal["zero", "mean"]
MODES: tuple[Mode, ...] = ("zero", "mean")
SCREENED = 1 / 2  # share of the margin from which on a removal is computed
SAMPLE = 1000  # pairs of image and unit among the others that are computed, for each mode
REMOVALS_PER_BATCH = 64
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
        UsageError: The network makes decisions based on values; or a layer is not a convolution of the network.
        DataError: There are no images.
    """
    first = next(iter(batches()), None)
    if first is None or not len(first[0]):
        raise DataError("there are no images; give at least one")
    graph = ReplayedGraph(network, (1, *first[0].shape[1:]), layers)
    if not graph.layers:
        raise UsageError(f"{type(network).__name__} has no convolution whose units can be removed")
    size = max(1, min(REMOVALS_PER_BATCH // 2, MEMORY // graph.bytes_per_image))
    screening, labels = _screen(graph, _split(batches(), size, advance))
    means = [sums / positions for sums, positions in zip(screening.sums, screening.positions, strict=True)]
    chosen, sampled = _choose(graph, screening, means)
    counts = [np.zeros((2, len(MODES), layer.num_units, num_classes), np.int64) for layer in graph.layers]
    predictions = torch.cat(screening.predictions)
    missed = 0
    begin = 0
    for images, _ in _split(batches(), size, advance):
        here = slice(begin, begin + len(images))
        missed += _remove(graph, images, labels[here], predictions[here], means, chosen, sampled, begin, counts)
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


def _screen(graph: ReplayedGraph, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[_Screening, Tensor]:
    """Run all images forward and backward."""
    found, labels = _Screening(), []
    nodes = [layer.node for layer in graph.layers]
    found.sums = [torch.zeros(layer.num_units, dtype=torch.float64) for layer in graph.layers]
    found.positions = [0] * len(nodes)
    for images, given in batches:
        with torch.enable_grad():
            scores, values = graph.run(images, nodes, gradients=True)
            margins = _margins(scores, given.to(scores.device))
            torch.autograd.backward(margins.sum())
        found.predictions.append(scores.argmax(1).cpu())
        found.margins.append(margins.detach().cpu())
        labels.append(given.cpu())
        gradients, products = [], []
        for number, node in enumerate(nodes):
            maps = values[node].detach()
            gradient = torch.zeros_like(maps) if values[node].grad is None else values[node].grad
            gradients.append(gradient.sum((2, 3)).cpu())
            products.append((gradient * maps).sum((2, 3)).cpu())
            found.sums[number] += maps.sum((0, 2, 3), dtype=torch.float64).cpu()
            found.positions[number] += len(maps) * maps.shape[2] * maps.shape[3]
        found.gradients.append(gradients)
        found.products.append(products)
    return found, torch.cat(labels)


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


def _remove(
    graph: ReplayedGraph,
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
    needed = [layer for layer, pairs in zip(graph.layers, wanted, strict=True) if len(pairs)]
    nodes: dict[fx.Node, None] = dict.fromkeys(one for layer in needed for one in (layer.node, *layer.frontier))
    missed = 0
    with torch.inference_mode():
        _, values = graph.run(images, list(nodes))
        for number, layer in enumerate(graph.layers):
            for pairs in torch.split(wanted[number], REMOVALS_PER_BATCH):
                if not len(pairs):
                    continue
                image, mode, unit = pairs.T
                after = _predict_without(graph, layer, values, image, unit, means[number][unit] * mode)
                was, now = (one == labels[image] for one in (predictions[image], after))
                drawn = sampled[number][here][image, mode, unit]
                missed += int((drawn & (was != now)).sum())
                for which, changed in enumerate((was & ~now, ~was & now)):
                    place = (mode[changed], unit[changed], labels[image][changed])
                    np.add.at(counts[number][which], tuple(one.numpy() for one in place), 1)
    return missed


def _predict_without(
    graph: ReplayedGraph, layer: UnitLayer, values: Values, image: Tensor, unit: Tensor, constant: Tensor
) -> Tensor:
    """Return the predictions with the map of a unit replaced by a constant, (n,): one image and unit each."""
    maps = values[layer.node]
    at = image.to(maps.device)
    changed = take_images(maps, at)
    changed[torch.arange(len(unit), device=maps.device), unit.to(maps.device)] = constant.to(maps)[:, None, None]
    return graph.replay(layer, changed, values, at).argmax(1).cpu()
