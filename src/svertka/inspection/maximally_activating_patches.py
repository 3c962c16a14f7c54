"""The places in a data set that excite each unit of a network most, found in one pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.conv_geometry import ReceptiveField
from svertka.data.dataset import Ints
from svertka.data.loader import Batch, Batches
from svertka.device import has_values
from svertka.errors import DataError, UsageError
from svertka.graph.summary import Layer
from svertka.inspection.activations import convolution_names, feature_map_size, follow_to_relu, hook_layers, list_layers
from svertka.inspection.forward_pass import StopForward, prepare_input, run_network, unwrap_compiled
from svertka.inspection.unit_statistics import UnitStatistics
from svertka.type_checking import check_types

Floats = npt.NDArray[np.float32]
Data = Tensor | Batches | Iterable[Tensor | Batch | tuple[Tensor, Tensor]]

BATCH = 32  # pictures that run at once, where they come in one tensor
IMAGES_PER_UPDATE = 256  # pictures whose values are kept before they are counted, all at once
MOST_PLACES = 10_000  # kept of each unit


@dataclass(frozen=True, eq=False)
class LayerPatches:
    """What excites the units of one layer.

    Of each picture a unit has one value, the largest of its map; what is not above 0 does not excite it.

    `layer`: as asked for. `seen_in`: the layer whose output was looked at, behind the ReLU of `layer` where it has one.
    `shape`: of a map, (rows, columns). `count`: pictures looked at.

    The `k` strongest pictures of each unit, strongest first (of equals the one that came first):
    `values`: (units, k) float32, NaN where fewer pictures excite it.
    `pictures`: (units, k) int64, which of the data; −1 where there are fewer, and so in the next two.
    `places`: (units, k, 2) int64, row and column in the map.
    `boxes`: (units, k, 4) int64, top, left, bottom, right of the pixels that this place sees: `picture[top:bottom,
    left:right]`, exactly, and so smaller at the border.

    `active`: (units,) float32, the share of pictures that excite it. `dead`: (units,) bool, those that none does.
    `histogram`: (units, bins) int64, the pictures that excite it, by value. `edges`: (bins + 1,) float32, four bins an
    octave (a doubling).
    `classes`: (units, K) float32, which share of the sum of its values each class has; None where data has no labels.
    `base`: (K,) float32, the share of the pictures that each class has; None too.
    `similar`: (units, 6) int64, the units whose values correlate most with its own over the pictures, nearest first;
    −1 where there are fewer. `correlations`: (units, 6) float32, NaN there.
    """

    layer: str
    seen_in: str
    shape: tuple[int, int]
    count: int
    values: Floats
    pictures: Ints
    places: Ints
    boxes: Ints
    active: Floats
    histogram: Ints
    edges: Floats
    classes: Floats | None
    base: Floats | None
    similar: Ints
    correlations: Floats

    @property
    def dead(self) -> npt.NDArray[np.bool_]:
        """(units,): those that no picture excites."""
        return np.equal(self.active, 0)


class _ImageBatch(NamedTuple):
    """Pictures that run together: `images` (N, C, H, W), their `labels` (N,) int64, and `numbers` (N,) in the data."""

    images: Tensor
    labels: Tensor | None
    numbers: Tensor


@torch.no_grad()  # not inference mode: what a network keeps of a run must serve training as well
@check_types
def top_patches(
    network: nn.Module, data: Data, layers: str | Sequence[str] | None = None, count: int = 9
) -> dict[str, LayerPatches]:
    """What excites the units of `layers` most, in one pass over `data`; memory does not depend on how many pictures.

    `data`: `Batches`, or pictures as `network` takes them, (N, C, H, W): all in one tensor, or batch by batch, alone or
    with labels (N,). They run in evaluation mode and with channels last, which is quicker. `layers`: a name or several,
    as `activations.layers` tells them; None: every convolution. Each is looked at behind its ReLU where it has one
    (`activations.rectified`). `count`: places told for each unit, at most one a picture.

    Raises:
        UsageError: no such layer, or it has no maps; `count` below 1 or above `MOST_PLACES`; the network does not take
            such pictures.
        DataError: there are no pictures, or they are not all of one shape.
    """
    if not 1 <= count <= MOST_PLACES:
        raise UsageError(f"count={count} must be 1 to {MOST_PLACES}")
    network = unwrap_compiled(network)
    batches = _batches(data)
    first = next(batches, None)
    if first is None:
        raise DataError("there are no pictures to look at; give at least one")
    known = list_layers(network, tuple(first.images.shape))
    names = convolution_names(known) if layers is None else [layers] if isinstance(layers, str) else layers
    seen = {name: follow_to_relu(known, name) for name in names}
    for layer in seen.values():
        feature_map_size(layer)  # or there is nothing to look for
    tallies = {layer.name: UnitStatistics(layer.shape[1], count) for layer in seen.values()}
    if not seen:
        raise UsageError(f"{type(network).__name__} has no convolution with maps, so there are no units to look at")
    _run_pass(network, known, tallies, chain([first], batches))
    return {name: _to_layer_patches(name, layer, tallies[layer.name]) for name, layer in seen.items()}


def _batches(data: Data) -> Iterator[_ImageBatch]:
    number = 0
    if isinstance(data, Tensor):
        data = torch.split(_check_four_axes(data), BATCH)
    for batch in data.epoch(0) if isinstance(data, Batches) else data:
        if isinstance(batch, Batch):
            some = _ImageBatch(batch.images, batch.labels.cpu(), torch.from_numpy(batch.indices))
        else:
            images, labels = _split_labels(batch)
            _check_four_axes(images)
            some = _ImageBatch(images, labels, torch.arange(number, number + len(images)))
        number += len(some.images)
        if len(some.images):
            yield some


def _split_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and, where `batch` has them, labels.

    Raises:
        UsageError: it is neither a tensor nor a pair of tensors.
    """
    images, labels = (batch, None) if isinstance(batch, Tensor) else batch if _is_pair(batch) else (None, None)
    if images is None:
        raise UsageError(f"data gives {type(batch).__name__}; give tensors (N, C, H, W), alone or with labels (N,)")
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex()):
        raise UsageError(f"data has labels {tuple(labels.shape)} for {len(images)} pictures; give an integer for each")
    return images, labels


def _check_four_axes(images: Tensor) -> Tensor:
    if not has_values(images):
        raise UsageError("data gives a sparse, nested, quantized or meta tensor; give dense ones with values")
    if images.ndim != 4:
        raise UsageError(
            f"data contains images of shape {_format_shape(images.shape)}; four axes are required: (N, C, H, W)"
        )
    return images


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)


def _run_pass(
    network: nn.Module, known: Sequence[Layer], tallies: Mapping[str, UnitStatistics], batches: Iterable[_ImageBatch]
) -> None:
    """Run all pictures, and let each tally see its layer."""
    last = [layer.name for layer in known if layer.name in tallies][-1]

    def see_last(output: Tensor) -> None:
        tallies[last].see(output)
        raise StopForward

    def take() -> None:
        labels = [some.labels for some in waiting if some.labels is not None]
        for tally in tallies.values():
            tally.take(torch.cat([some.numbers for some in waiting]), torch.cat(labels) if labels else None)
        waiting.clear()

    waiting: list[_ImageBatch] = []
    shape: torch.Size | None = None
    with hook_layers(network, known, {name: tally.see for name, tally in tallies.items()} | {last: see_last}):
        for some in batches:
            shape = shape or some.images.shape[1:]
            if some.images.shape[1:] != shape:
                both = f"{_format_shape(shape)} and {_format_shape(some.images.shape[1:])}"
                raise DataError(f"data has pictures of {both}; give pictures of one shape")
            with suppress(StopForward):
                run_network(network, prepare_input(network, some.images).contiguous(memory_format=torch.channels_last))
            waiting.append(some)
            if sum(len(some.numbers) for some in waiting) >= IMAGES_PER_UPDATE:
                take()
    if waiting:
        take()


def _to_layer_patches(name: str, layer: Layer, tally: UnitStatistics) -> LayerPatches:
    rows, columns = feature_map_size(layer)
    found = tally.values > 0
    places = tally.places.where(found, -1).numpy()
    histogram, edges = tally.histogram()
    classes, base = tally.classes()
    similar, correlations = tally.similar()
    there = found.numpy()[..., None]
    spots = np.stack([places // columns, places % columns], axis=-1)
    first_rows, last_rows = _broadcast_intervals(layer.fields[0], rows)[spots[..., 0]].transpose(2, 0, 1)
    first_columns, last_columns = _broadcast_intervals(layer.fields[1], columns)[spots[..., 1]].transpose(2, 0, 1)
    boxes = np.stack([first_rows, first_columns, last_rows + 1, last_columns + 1], axis=-1)
    return LayerPatches(
        layer=name,
        seen_in=layer.name,
        shape=(rows, columns),
        count=tally.pictures,
        values=np.where(there[..., 0], tally.values.numpy(), np.float32(np.nan)),
        pictures=np.where(there[..., 0], tally.where.numpy(), -1),
        places=np.where(there, spots, -1),
        boxes=np.where(there, boxes, -1),
        active=(tally.counts.sum(1) / tally.pictures).numpy(),
        histogram=histogram,
        edges=edges,
        classes=classes if len(base) else None,
        base=base if len(base) else None,
        similar=similar,
        correlations=correlations,
    )


def _broadcast_intervals(field: ReceptiveField, positions: int) -> Ints:
    """First and last pixel that each of `positions` sees, (positions, 2)."""
    return np.broadcast_to(np.array(field.intervals, np.int64), (positions, 2))


def _format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
