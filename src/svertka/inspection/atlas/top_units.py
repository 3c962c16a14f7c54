"""Which units of a network one picture excites most, beside what an atlas remembers of them."""

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
from svertka.inspection.activations import convolution_names, find_layer, follow_to_relu, hook_layers, list_layers
from svertka.inspection.forward_pass import prepare_input, run_network, unwrap_compiled

UNITS_PER_LAYER = 6  # units told for a layer
MAX_FILE_SIZE = 1 << 26  # bytes of a file of an atlas that is read

LargestActivations = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class UnitActivation:
    """A `unit` of `layer`: its largest `value` in a picture, and the `box` that it sees there.

    `share`: of the largest value that the atlas knows of it; None without an atlas. `box`: top, left, bottom, right,
    pixels of the picture as the network sees it, the last two excluded.
    """

    layer: str
    unit: int
    value: float
    share: float | None
    box: tuple[int, int, int, int]


@torch.inference_mode()
def find_top_units(network: nn.Module, image: Tensor, best: LargestActivations) -> list[UnitActivation]:
    """For each convolution the units that `image` (C, H, W) excites most, in the order of the layers.

    `best`: of layers' units the largest values known, as `remembered` gives them; there only these layers are told, and
    the units nearest to their own best. Elsewhere it is the largest values of the layer.

    Raises:
        UsageError: the network cannot be traced.
    """
    network = unwrap_compiled(network)
    known = list_layers(network, (1, *image.shape))
    names = [name for name in convolution_names(known) if not best or name in best]
    seen: dict[str, Tensor] = {}
    see = {follow_to_relu(known, name).name: _hook(seen, follow_to_relu(known, name).name) for name in names}
    with hook_layers(network, known, see):
        run_network(network, prepare_input(network, image).clone())
    return [
        one
        for name in names
        for one in _strongest(find_layer(known, name), seen[follow_to_relu(known, name).name], best)
    ]


def _hook(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda output: seen.update({name: output[0].double().cpu().clone()})


def _strongest(layer: Layer, maps: Tensor, best: LargestActivations) -> list[UnitActivation]:
    values, places = (part.numpy() for part in maps.flatten(1).max(1))
    known = best.get(layer.name)
    count = len(values) if known is None else min(len(values), len(known))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = None if known is None else np.nan_to_num(values[:count] / known[:count], posinf=0.0)
    order = np.argsort(-(values if shares is None else shares), kind="stable")[:UNITS_PER_LAYER]
    return [
        UnitActivation(
            layer=layer.name,
            unit=int(unit),
            value=float(values[unit]),
            share=None if shares is None else float(shares[unit]),
            box=_box(layer, *divmod(int(places[unit]), maps.shape[2])),
        )
        for unit in order
        if values[unit] > 0
    ]


def _box(layer: Layer, row: int, column: int) -> tuple[int, int, int, int]:
    spans = []
    for axis, place in zip(layer.fields, (row, column), strict=True):
        first, last = axis.of(min(place, len(axis.intervals) - 1))
        spans.append((max(0, first), min(axis.size, last + 1)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right


def read_largest_activations(atlas: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The largest value of each unit of each layer, (units,), that an atlas on disk tells; empty where it is none.

    A value of 0 is that of a dead unit.
    """
    try:
        facts = loads(_between(atlas / "index.html", '<script type="application/json" id="facts">', "</script>"))
        found = {}
        for number, layer in enumerate(facts["layers"]):
            values = loads(_between(atlas / "data" / f"layer-{number}.js", f'["layer-{number}"]=', ";\n"))["values"]
            found[str(layer["name"])] = np.array([row[0] or 0.0 for row in values], dtype=np.float64)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found


def _between(path: Path, before: str, behind: str) -> str:
    if path.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(f"{path} is too large")
    found = re.search(f"{re.escape(before)}(.*?){re.escape(behind)}", path.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{path} is not of an atlas")
    return found[1]
