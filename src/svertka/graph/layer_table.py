"""The layer table of a network: output shapes, parameters, multiply-adds and receptive fields."""

import shutil
from dataclasses import dataclass
from typing import Any

from torch import nn

from svertka.errors import UsageError
from svertka.graph.summary import Layer, NetworkSize, Trace, sum_up_network_size, trace
from svertka.pages.notebook_block import NotebookBlock
from svertka.text_table import format_table
from svertka.type_checking import check_types

HEADER = ("layer", "kind", "output", "parameters", "%", "multiply-adds", "%", "receptive field")
# How the columns are aligned, and which are shortened or left out first where a table is too wide.
COLUMNS: dict[str, Any] = {"right": (3, 4, 5, 6), "shrink": (1, 0), "drop": (6, 4, 7, 5)}
MAX_NOTEBOOK_ROWS = 400


@dataclass(frozen=True, repr=False)
class LayerTable:
    """The layers of a network in the order in which they run in inference; print it, or end a notebook cell with it.

    Attributes:
        name: The network's class.
        shape: Shape of the input, (1, C, H, W).
        trace: The layers.
        size: The number of parameters, those that are trainable, and the multiply-adds.
    """

    name: str
    shape: tuple[int, ...]
    trace: Trace
    size: NetworkSize

    def __repr__(self) -> str:
        size, shape = self.size, "×".join(map(str, self.shape[1:]))
        counts = f"parameters={size.parameters:,}, multiply_adds={size.multiply_adds:,}"
        return f"LayerTable({self.name!r}, {shape}, layers={len(self.trace.layers)}, {counts})"

    def __str__(self) -> str:
        """Return the table, fitted to the terminal, and the sums below it."""
        lines = format_table(layer_rows(self.trace), shutil.get_terminal_size((120, 24)).columns, **COLUMNS)
        return "\n".join((self._title, *lines, "", *self._sentences))

    def _repr_html_(self) -> str:
        header, *rows = layer_rows(self.trace)
        block = NotebookBlock(
            self._title,
            self._sentences,
            header=header,
            rows=rows,
            right=COLUMNS["right"],
            most_rows=MAX_NOTEBOOK_ROWS,
        )
        return block.render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: the input's shape, the sums, and the layers with their receptive fields.

        Returns:
            The keys network, input, parameters, trainable, multiply_adds and layers.
        """
        return {
            "network": self.name,
            "input": list(self.shape),
            "parameters": self.size.parameters,
            "trainable": self.size.trainable,
            "multiply_adds": self.size.multiply_adds,
            "layers": [layer.to_dict() for layer in self.trace.layers],
        }

    @property
    def _title(self) -> str:
        return f"{self.name} on {'×'.join(map(str, self.shape[1:]))} pixels"

    @property
    def _sentences(self) -> list[str]:
        size, read = self.size, self.trace.parameters
        sentences = [
            f"{size.parameters:,} parameters, {size.trainable:,} of them trainable; "
            f"{size.multiply_adds:,} multiply-adds for one image."
        ]
        if read != size.parameters:
            sentences.append(f"{size.parameters - read:,} parameters are not used in inference.")
        return sentences


@check_types
def summary(network: nn.Module, size: int | tuple[int, ...] = 224) -> LayerTable:
    """Return the layer table of a network: for each layer its output shape, parameters, multiply-adds, receptive field.

    Nothing is computed, and `network` is not changed: a copy without values runs once. Multiply-adds are those of
    convolutions and matrix products, also in functions that are not modules, without biases, as papers count them. A
    parameter that several layers share counts once.

    Args:
        network: Any nn.Module that takes a batch of images.
        size: Height and width of the image, pixels; or (H, W), (C, H, W) or (1, C, H, W). Without C, the image has as
            many channels as the network's first convolution reads, or 3.

    Returns:
        The table. `print` fits it to the terminal; notebooks show it as HTML.

    Raises:
        UsageError: The network cannot be traced with such an image.

    Example:
        >>> from svertka.models.lenet import LeNet5
        >>> table = summary(LeNet5(), 32)
        >>> table.size.parameters, table.size.multiply_adds
        (60000, 415680)
    """
    shape = (size, size) if isinstance(size, int) else size
    if len(shape) not in (2, 3, 4) or min(shape) < 1 or bool in map(type, shape) or (len(shape) == 4 and shape[0] != 1):
        raise UsageError(f"size={size} must be the side of the image in pixels, or (H, W), (C, H, W) or (1, C, H, W)")
    if len(shape) == 2:
        shape = _first_channels(network), *shape
    if len(shape) == 3:
        shape = 1, *shape
    traced = trace(network, shape)
    return LayerTable(type(network).__name__, shape, traced, sum_up_network_size(network, traced))


def layer_rows(traced: Trace) -> list[tuple[str, ...]]:
    """Return the header, a row per layer, a row per kind with parameters or multiply-adds, and a row of totals."""

    def sums(parameters: int, multiply_adds: int) -> tuple[str, str, str, str]:
        return *share(parameters, traced.parameters), *share(multiply_adds, traced.multiply_adds)

    def share(number: int, of: int) -> tuple[str, str]:
        return (f"{number:,}", f"{100 * number / of:.1f}") if number else ("", "")

    rows: list[tuple[str, ...]] = [HEADER]
    for layer in traced.layers:
        size = "×".join(map(str, _shape_of_one_image(layer)))
        rows.append((layer.name, layer.kind, size, *sums(layer.parameters, layer.multiply_adds), _format_field(layer)))
    for kind in dict.fromkeys(layer.kind for layer in traced.layers):
        alike = [layer for layer in traced.layers if layer.kind == kind]
        parameters, multiply_adds = sum(one.parameters for one in alike), sum(one.multiply_adds for one in alike)
        if parameters or multiply_adds:
            rows.append((f"all {len(alike)}", kind, "", *sums(parameters, multiply_adds), ""))
    rows.append((f"all {len(traced.layers)}", "", "", *sums(traced.parameters, traced.multiply_adds), ""))
    return rows


def _shape_of_one_image(layer: Layer) -> tuple[int, ...]:
    """Return the shape of a layer's output without the dimension of the images, of which there is one."""
    if layer.maps:
        images = layer.maps.dims[0]  # attention returns its tokens before the images
    elif 1 in layer.shape:
        images = layer.shape.index(1)  # recurrent layers return the steps before the images
    else:
        return layer.shape  # windows of the image, which the first dimension counts
    return layer.shape[:images] + layer.shape[images + 1 :]


def _format_field(layer: Layer) -> str:
    """Format the receptive field in pixels per side, or "all" if every unit sees the whole image."""
    if all(field.whole and field.grid is None for field in layer.fields):
        return "all"
    extents = [str(field.extent) for field in layer.fields]
    return extents[0] if len(set(extents)) == 1 else "×".join(extents)


def _first_channels(network: nn.Module) -> int:
    """Return the input channels of the first convolution; 3 if the network has none."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return next((one.in_channels for one in convolutions), 3)
