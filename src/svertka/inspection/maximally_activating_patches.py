"""The image patches that activate each unit of a network most, found in one pass over a data set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.data.dataset import Ints
from svertka.data.loader import Batch, BatchLoader
from svertka.device import is_dense_with_values
from svertka.errors import DataError, UsageError
from svertka.graph.receptive_field import ReceptiveField
from svertka.graph.summary import Layer
from svertka.inspection.activations import (
    LayerHook,
    convolution_names,
    feature_map_layout,
    feature_map_size,
    follow_to_activation,
    hook_layers,
    list_layers,
    unit_count,
)
from svertka.inspection.checked_forward_pass import StopForward, call_network, prepare_input, unwrap_compiled
from svertka.inspection.unit_statistics import UnitStatistics
from svertka.type_checking import check_types

Floats = npt.NDArray[np.float32]
Data = Tensor | BatchLoader | Iterable[Tensor | Batch | tuple[Tensor, Tensor]]

BATCH_SIZE = 32  # images, for data given as one tensor
IMAGES_PER_UPDATE = 256  # images between two updates of the statistics
MAX_COUNT = 10_000  # largest number of patches per unit


@dataclass(frozen=True, eq=False)
class LayerPatches:
    """The patches that activate the units of one layer most, and statistics of the units.

    The activation of a unit in an image is the maximum of its feature map. An image activates a unit if it is above 0.
    A unit is dead if it is never above 0 and constant over the images, to 1e-5 of the layer's largest activation. After
    ReLU, this is a unit that is always 0. After SiLU, Hardswish or GELU, a unit can be negative and vary: it is not
    dead, and its patches show its largest activations.

    Attributes:
        layer: Name of the layer that was requested.
        observed_layer: The layer whose output was read: the activation function of `layer` where one follows.
        feature_map_size: (rows, columns).
        num_images: Images in the data set.
        values: (units, k) float32, the activations in the `k` strongest images, strongest first, equal ones in the
            order of the images; NaN for dead units and, unless the layer has negative outputs, where fewer images
            activate the unit.
        images: (units, k) int64, indices in the data set; −1 where there are fewer, as in the next two.
        positions: (units, k, 2) int64, row and column in the feature map.
        boxes: (units, k, 4) int64, the receptive field of the position in pixels: top, left, bottom, right, the last
            two excluded, clipped to the image. That of a token behind attention is the whole image.
        activation_rate: (units,) float32, the share of images that activate the unit.
        histogram: (units, bins) int64, images that activate the unit, by activation.
        histogram_edges: (bins + 1,) float32, four bins per octave.
        class_shares: (units, K) float32, each class's share of the unit's total activation; None without labels. If
            images have several labels, the shares of all labels may sum to more than 1.
        class_frequencies: (K,) float32, each class's share of the images; None without labels.
        similar_units: (units, 6) int64, the units with the highest correlation of activations over the images, highest
            first; −1 where there are fewer.
        correlations: (units, 6) float32, their correlations; NaN where there are fewer.
    """

    layer: str
    observed_layer: str
    feature_map_size: tuple[int, int]
    num_images: int
    values: Floats
    images: Ints
    positions: Ints
    boxes: Ints
    activation_rate: Floats
    histogram: Ints
    histogram_edges: Floats
    class_shares: Floats | None
    class_frequencies: Floats | None
    similar_units: Ints
    correlations: Floats

    @property
    def is_dead(self) -> npt.NDArray[np.bool_]:
        """Whether the unit is never above 0 and constant over the images, (units,) bool."""
        return np.less(self.images[:, 0], 0)


class _ImageBatch(NamedTuple):
    """`images` (N, C, H, W), their `labels` (N,) int64 or (N, K) bool, and `indices` (N,) in the data set."""

    images: Tensor
    labels: Tensor | None
    indices: Tensor


@torch.no_grad()  # not inference mode: state that a network keeps from a forward pass must remain usable in training
@check_types
def top_patches(
    network: nn.Module, data: Data, layers: str | Sequence[str] | None = None, count: int = 9
) -> dict[str, LayerPatches]:
    """Return the image patches that activate each unit most, in one pass over `data`.

    Memory does not depend on the number of images. The network runs in evaluation mode with channels-last inputs.

    Args:
        network: Any nn.Module.
        data: `BatchLoader`, one tensor (N, C, H, W), or an iterable of such tensors, alone or paired with labels,
            (N,) integers or (N, K) bool;
            all images of one shape.
        layers: Layer names as in `list_layers`; None for every convolution. Each is read after its activation function
            where one follows (`follow_to_activation`).
        count: Patches per unit, 1 to `MAX_COUNT`, at most one from each image.

    Returns:
        The patches of each layer, by its name.

    Raises:
        UsageError: A layer does not exist or has no feature maps; `count` is out of range; the network rejects the
            images.
        DataError: `data` is empty, or its images differ in shape.
    """
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"count={count} must be 1 to {MAX_COUNT}")
    network = unwrap_compiled(network)
    batches = _batches(data)
    first = next(batches, None)
    if first is None:
        raise DataError("data contains no images; give at least one")
    known = list_layers(network, tuple(first.images.shape))
    names = convolution_names(known) if layers is None else [layers] if isinstance(layers, str) else layers
    observed = {name: follow_to_activation(known, name) for name in names}
    statistics = {layer.name: UnitStatistics(unit_count(layer), count) for layer in observed.values()}
    if not observed:
        raise UsageError(
            f"{type(network).__name__} has no convolution with feature maps, so it has no units to inspect"
        )
    _run_pass(network, known, statistics, chain([first], batches))
    return {name: _to_layer_patches(name, layer, statistics[layer.name]) for name, layer in observed.items()}


def _batches(data: Data) -> Iterator[_ImageBatch]:
    index = 0
    if isinstance(data, Tensor):
        data = torch.split(_check_four_axes(data), BATCH_SIZE)
    for given in data.epoch(0) if isinstance(data, BatchLoader) else data:
        if isinstance(given, Batch):
            batch = _ImageBatch(given.images, given.labels.cpu(), torch.from_numpy(given.indices))
        else:
            images, labels = _split_labels(given)
            _check_four_axes(images)
            batch = _ImageBatch(images, labels, torch.arange(index, index + len(images)))
        index += len(batch.images)
        if len(batch.images):
            yield batch


def _split_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the images of `batch`, and its labels where it has them.

    Raises:
        UsageError: It is neither a tensor nor a pair of tensors.
    """
    images, labels = (batch, None) if isinstance(batch, Tensor) else batch if _is_pair(batch) else (None, None)
    if images is None:
        raise UsageError(
            f"data contains a {type(batch).__name__}; give tensors (N, C, H, W), alone or paired with labels (N,)"
        )
    if labels is None:
        return images, None
    is_whole = not (labels.is_floating_point() or labels.is_complex())
    is_several = labels.dim() == 2 and len(labels) == len(images) and labels.dtype == torch.bool
    if not is_several and (labels.shape != images.shape[:1] or not is_whole):
        raise UsageError(
            f"data has labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {len(images)} images; give "
            "one integer for each image, or (N, K) bool"
        )
    return images, labels


def _check_four_axes(images: Tensor) -> Tensor:
    if not is_dense_with_values(images):
        raise UsageError("data contains a sparse, nested, quantized or meta tensor; give dense ones with values")
    if images.ndim != 4:
        raise UsageError(
            f"data contains images of shape {_format_shape(images.shape)}; four axes are required: (N, C, H, W)"
        )
    return images


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)


def _run_pass(
    network: nn.Module,
    known: Sequence[Layer],
    statistics: Mapping[str, UnitStatistics],
    batches: Iterable[_ImageBatch],
) -> None:
    """Run all images and update the statistics of each layer."""
    observed = [layer for layer in known if layer.name in statistics]
    last = observed[-1].name

    def observing(layer: Layer) -> LayerHook:
        maps, observe = feature_map_layout(layer), statistics[layer.name].observe
        return lambda output: observe(maps.to_maps(output))

    def observe_last(output: Tensor) -> None:
        hooks[last](output)
        raise StopForward

    def update() -> None:
        labels = [batch.labels for batch in waiting if batch.labels is not None]
        for layer_statistics in statistics.values():
            layer_statistics.update(
                torch.cat([batch.indices for batch in waiting]), torch.cat(labels) if labels else None
            )
        waiting.clear()

    waiting: list[_ImageBatch] = []
    shape: torch.Size | None = None
    hooks = {layer.name: observing(layer) for layer in observed}
    with hook_layers(network, known, hooks | {last: observe_last}):
        for batch in batches:
            shape = shape or batch.images.shape[1:]
            if batch.images.shape[1:] != shape:
                both = f"{_format_shape(shape)} and {_format_shape(batch.images.shape[1:])}"
                raise DataError(f"data contains images of {both}; give images of one shape")
            with suppress(StopForward):
                inputs = prepare_input(network, batch.images).contiguous(memory_format=torch.channels_last)
                call_network(network, inputs)
            waiting.append(batch)
            if sum(len(batch.indices) for batch in waiting) >= IMAGES_PER_UPDATE:
                update()
    if waiting:
        update()


def _to_layer_patches(name: str, layer: Layer, statistics: UnitStatistics) -> LayerPatches:
    rows, columns = feature_map_size(layer)
    found = statistics.has_patch()
    flat_positions = statistics.positions.where(found, -1).numpy()
    histogram, edges = statistics.histogram()
    class_shares, class_frequencies = statistics.class_shares()
    similar_units, correlations = statistics.similar_units()
    valid = found.numpy()[..., None]
    positions = np.stack([flat_positions // columns, flat_positions % columns], axis=-1)
    first_rows, last_rows = _broadcast_intervals(layer.fields[0], rows)[positions[..., 0]].transpose(2, 0, 1)
    first_columns, last_columns = _broadcast_intervals(layer.fields[1], columns)[positions[..., 1]].transpose(2, 0, 1)
    boxes = np.stack([first_rows, first_columns, last_rows + 1, last_columns + 1], axis=-1)
    return LayerPatches(
        layer=name,
        observed_layer=layer.name,
        feature_map_size=(rows, columns),
        num_images=statistics.num_images,
        values=np.where(valid[..., 0], statistics.values.numpy(), np.float32(np.nan)),
        images=np.where(valid[..., 0], statistics.images.numpy(), -1),
        positions=np.where(valid, positions, -1),
        boxes=np.where(valid, boxes, -1),
        activation_rate=(statistics.bin_counts.sum(1) / statistics.num_images).numpy(),
        histogram=histogram,
        histogram_edges=edges,
        class_shares=class_shares if len(class_frequencies) else None,
        class_frequencies=class_frequencies if len(class_frequencies) else None,
        similar_units=similar_units,
        correlations=correlations,
    )


def _broadcast_intervals(field: ReceptiveField, positions: int) -> Ints:
    """Return the first and last pixel that each of `positions` depends on, (positions, 2)."""
    return np.broadcast_to(np.array(field.intervals, np.int64), (positions, 2))


def _format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
