"""Which units two networks share: correlations of their activations on the same images, and CKA of their layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.data.dataset import Ints
from svertka.errors import UsageError
from svertka.graph.summary import Layer
from svertka.inspection.activations import (
    convolution_names,
    feature_map_layout,
    follow_to_activation,
    hook_layers,
    list_layers,
)
from svertka.inspection.checked_forward_pass import call_network, prepare_input

Floats = npt.NDArray[np.float64]
SHARED = 0.7  # correlation from which on a unit has a counterpart: half of its variance is explained
NEW = 0.4  # correlation below which a unit has none
SHUFFLES = 20  # of the images, whose mean says how many units are shared by chance


@dataclass(frozen=True, eq=False)
class MatchedLayer:
    """The units of a layer of the second network, and their counterparts in the first.

    Attributes:
        layer: Name of the layer.
        counterpart: Name of the layer of the first network whose units are compared: the same name, or else the one
            with the highest CKA.
        cka: Linear centered kernel alignment of both layers, 0 to 1.
        units: (K,) int64, the unit of `counterpart` whose activations correlate most; −1 for a constant unit.
        correlations: (K,) float64, the correlation; NaN for a constant unit.
    """

    layer: str
    counterpart: str
    cka: float
    units: Ints
    correlations: Floats

    @property
    def num_shared(self) -> int:
        """Number of units with a counterpart: a correlation of at least `SHARED`."""
        return int((self.correlations >= SHARED).sum())

    @property
    def num_constant(self) -> int:
        """Number of units with the same activation in every image, which correlate with none."""
        return int((self.units < 0).sum())

    @property
    def new(self) -> Ints:
        """The units without a counterpart, a correlation below `NEW`, the lowest first."""
        order = np.argsort(self.correlations, kind="stable")
        found: Ints = order[self.correlations[order] < NEW]
        return found


def collect_activations(
    network: nn.Module,
    shape: tuple[int, ...],
    batches: Iterable[Tensor],
    layers: Sequence[str] | None = None,
    also: Sequence[str] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Floats]:
    """Return the activation of each unit in each image: the maximum of its feature map, (images, units) by layer.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).
        batches: Images (N, C, H, W).
        layers: Names of layers. None: every convolution. Each is read after its activation function, if one follows.
        also: Names of layers that are read, too, if the network has layers with feature maps of these names.
        advance: Called with the number of images after each batch.

    Raises:
        UsageError: A layer does not exist or has no feature maps; the network has no convolution and no layer is named;
            or the network rejects the images.
    """
    known = list_layers(network, shape)
    names = convolution_names(known) if layers is None else list(layers)
    with_maps = {layer.name for layer in known if layer.maps is not None}
    names = list(dict.fromkeys([*names, *(name for name in also if name in with_maps)]))
    if not names:
        raise UsageError(
            f"{type(network).__name__} has no convolution whose units can be compared; give other networks"
        )
    observed = {name: follow_to_activation(known, name) for name in names}
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in observed.values()}

    def keep(layer: Layer) -> Callable[[Tensor], None]:
        maps = feature_map_layout(layer)
        return lambda output: found[layer.name].append(maps.to_maps(output).amax((2, 3)).double().cpu())

    hooks = {layer.name: keep(layer) for layer in observed.values()}
    with torch.no_grad(), hook_layers(network, known, hooks):
        for images in batches:
            call_network(network, prepare_input(network, images))
            advance(len(images))
    return {name: torch.cat(found[layer.name]).numpy() for name, layer in observed.items()}


def match_layers(first: dict[str, Floats], second: dict[str, Floats]) -> list[MatchedLayer]:
    """Return for each layer of the second network its units' counterparts in the first.

    Args:
        first: Activations of the first network, (images, units) by layer.
        second: Activations of the second network on the same images.
    """
    matched = []
    for name, activations in second.items():
        counterpart = name if name in first else max(first, key=lambda other: linear_cka(first[other], activations))
        correlation = _correlate(activations, first[counterpart])
        best = correlation.argmax(1)
        values = np.take_along_axis(correlation, best[:, None], 1)[:, 0]
        constant = ~np.isfinite(values)
        matched.append(
            MatchedLayer(
                layer=name,
                counterpart=counterpart,
                cka=linear_cka(first[counterpart], activations),
                units=np.where(constant, -1, best),
                correlations=np.where(constant, np.nan, values),
            )
        )
    return matched


def count_shared_by_chance(first: dict[str, Floats], second: dict[str, Floats], matched: list[MatchedLayer]) -> int:
    """Return how many units of the second network are shared if the images of the first are shuffled, on average.

    Shuffled images make the networks independent of each other. The units of each keep their values, and keep
    their correlations among each other.

    Args:
        first: As for `match_layers`.
        second: As for `match_layers`.
        matched: What `match_layers` returned for them; the layers are compared with the same counterparts.
    """
    rng = np.random.default_rng(0)
    shared = 0
    for _ in range(SHUFFLES):
        order = rng.permutation(len(next(iter(second.values()))))
        shuffled = {one.layer: first[one.counterpart][order] for one in matched}
        shared += sum(layer.num_shared for layer in match_layers(shuffled, second))
    return round(shared / SHUFFLES)


def linear_cka(first: Floats, second: Floats) -> float:
    """Return the linear centered kernel alignment of activations on the same images, 0 to 1; 0 if one is constant.

    Args:
        first: (images, units).
        second: (images, other units).

    Source:
        Kornblith et al. 2019, Similarity of neural network representations revisited, eq. 3 and section 3.
    """
    a, b = first - first.mean(0), second - second.mean(0)
    if len(a) < a.shape[1] or len(b) < b.shape[1]:  # with fewer images than units, their products are smaller
        left, right = a @ a.T, b @ b.T
        shared, norms = (left * right).sum(), np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared, norms = np.linalg.norm(b.T @ a) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(shared / norms) if norms else 0.0


def _correlate(first: Floats, second: Floats) -> Floats:
    """Return the correlation of each pair of units, (units, other units); −inf for constant ones."""
    a, b = (_standardize(one) for one in (first, second))
    correlation = np.clip(a.T @ b, -1, 1)
    correlation[~a.any(0)] = -np.inf
    correlation[:, ~b.any(0)] = -np.inf
    return correlation


def _standardize(values: Floats) -> Floats:
    """Return the columns with mean 0 and length 1; constant ones are 0."""
    centered = values - values.mean(0)
    length = np.linalg.norm(centered, axis=0)
    constant = length <= 1e-6 * np.sqrt(len(values)) * np.abs(values).max(0, initial=0)
    scaled: Floats = np.where(constant, 0, centered / np.where(constant, 1, length))
    return scaled
