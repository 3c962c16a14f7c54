"""The units that one image activates most, relative to the largest activations recorded in an atlas."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import loads
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.graph.summary import Layer
from svertka.inspection.activations import convolution_names, find_layer, follow_to_activation, hook_layers, list_layers
from svertka.inspection.checked_forward_pass import call_network, prepare_input, unwrap_compiled

UNITS_PER_LAYER = 6
MAX_FILE_SIZE = 1 << 26  # bytes; larger files are not read

LargestActivations = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class UnitActivation:
    """The activation of a unit in one image.

    Attributes:
        layer: Name of the layer.
        unit: Index of its channel.
        value: The maximum of its feature map.
        share: Share of the largest activation recorded in the atlas; None without an atlas.
        box: The receptive field of the maximum in the network's input, pixels: top, left, bottom, right, the last two
            excluded.
    """

    layer: str
    unit: int
    value: float
    share: float | None
    box: tuple[int, int, int, int]


@torch.inference_mode()
def find_top_units(network: nn.Module, image: Tensor, largest: LargestActivations) -> list[UnitActivation]:
    """Return the units of each convolution that an image activates most, layer by layer.

    Args:
        network: Any nn.Module.
        image: (C, H, W), as the network takes it.
        largest: Activations recorded in an atlas, from `read_largest_activations_of_atlas`. Units are ranked by their
            activation relative to their largest one, and only recorded layers are included. Empty: units are ranked
            by activation.

    Raises:
        UsageError: The network cannot be traced.
    """
    network = unwrap_compiled(network)
    known = list_layers(network, (1, *image.shape))
    names = [name for name in convolution_names(known) if not largest or name in largest]
    observed = {name: follow_to_activation(known, name).name for name in names}
    outputs: dict[str, Tensor] = {}
    with hook_layers(network, known, {name: _hook(outputs, name) for name in observed.values()}):
        call_network(network, prepare_input(network, image).clone())
    return [
        one for name in names for one in _strongest_units(find_layer(known, name), outputs[observed[name]], largest)
    ]


def _hook(outputs: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda output: outputs.update({name: output[0].double().cpu().clone()})


def _strongest_units(layer: Layer, maps: Tensor, largest: LargestActivations) -> list[UnitActivation]:
    values, positions = (part.numpy() for part in maps.flatten(1).max(1))
    recorded = largest.get(layer.name)
    count = len(values) if recorded is None else min(len(values), len(recorded))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = None if recorded is None else np.nan_to_num(values[:count] / recorded[:count], posinf=0.0)
    order = np.argsort(-(values if shares is None else shares), kind="stable")[:UNITS_PER_LAYER]
    return [
        UnitActivation(
            layer=layer.name,
            unit=int(unit),
            value=float(values[unit]),
            share=None if shares is None else float(shares[unit]),
            box=_box(layer, *divmod(int(positions[unit]), maps.shape[2])),
        )
        for unit in order
        if values[unit] > 0
    ]


def _box(layer: Layer, row: int, column: int) -> tuple[int, int, int, int]:
    spans = []
    for axis, position in zip(layer.fields, (row, column), strict=True):
        first, last = axis.of(min(position, len(axis.intervals) - 1))
        spans.append((max(0, first), min(axis.size, last + 1)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right


def read_largest_activations_of_atlas(atlas: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Read the largest activation of each unit, (units,) by layer, from an atlas; empty if `atlas` is not one.

    Units that are never above 0 have 0.
    """
    try:
        facts = loads(_text_between(atlas / "index.html", '<script type="application/json" id="facts">', "</script>"))
        found = {}
        for index, layer in enumerate(facts["layers"]):
            path = atlas / "data" / f"layer-{index}.js"
            values = loads(_text_between(path, f'["layer-{index}"]=', ";\n"))["values"]
            found[str(layer["name"])] = np.array([max(0.0, row[0] or 0.0) for row in values], dtype=np.float64)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found


def _text_between(path: Path, start: str, end: str) -> str:
    if path.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(f"{path} is too large")
    found = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", path.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{path} does not belong to an atlas")
    return found[1]
