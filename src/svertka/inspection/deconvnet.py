"""What a unit responds to, back in the pixels of a picture.

The picture runs through the network to the layer. Then one activation alone goes back, layer by layer: at a max-pooling
to where the maximum was (its switches), at a ReLU what is above 0, at a convolution through the transposed filters. So
the way back is a network too, with the filters and the switches of the way there.

The paper has these three kinds of layers. Any other is taken as what it is for this picture, a linear map, and
transposed, which is its derivative:

- *batch norm*, in evaluation mode: the scale of each channel once more. Its sign stays, and a ReLU on the way back
  keeps what it should.
- *average pooling*: evenly over the window, as all pixels in it had the same weight.
- *sums* of residual networks: to both branches, whose projections meet again as a sum; *concatenations*: each branch
  gets its own channels.
- *local response norm*: the scale of each value, and a little of the opposite sign for its neighbours, which divided
  what it was. The paper leaves it open; its authors' network has it.
- *other squashing functions*, such as SiLU or tanh: times the slope where the unit was.

Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks", §2.1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.data.dataset import Ints
from svertka.device import has_values
from svertka.errors import UsageError
from svertka.files import shortened
from svertka.graph.summary import Layer, without_values
from svertka.inspection import forward_pass
from svertka.inspection.activations import feature_map_size, follow_to_relu, hook_layers, list_layers
from svertka.inspection.backward_rules import ReLURule, backward
from svertka.inspection.forward_pass import StopForward, make_differentiable, prepare_input, unwrap_compiled
from svertka.inspection.receptive_crops import CropJobs, crops_for_positions, feature_map_size_in_crop
from svertka.type_checking import check_types

Indices = int | Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer] | Tensor
ForwardFunction = Callable[[Tensor], Tensor]

PIXELS_PER_BATCH = (
    200_000  # in a batch, all windows together; twice as many leave the caches and the heap and take longer
)
FULL_CONTRAST_RMS = 4  # a projection's values are as strong as bytes allow from as many times their spread on
CROP_TOLERANCE = (
    1e-3  # of the largest: the values of a place in a window and in the picture differ by rounding, far less
)


class Projection(NamedTuple):
    """`pixels` (C, h, w) of a picture whose first row is `top` and first column `left`; all others are 0."""

    pixels: Tensor
    top: int
    left: int


class Deconvnet:
    """The way back through `network`, for pictures of `shape`, (N, C, H, W); N does not matter.

    Raises:
        UsageError: the network cannot be traced with such pictures.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self._network = unwrap_compiled(network)
        self._known, self._shape = list_layers(self._network, shape), tuple(shape[1:])
        self._with_windows: dict[str, bool] = {}

    def project(
        self,
        images: Tensor,
        layer: str,
        units: Indices,
        places: Indices | None = None,
        pictures: Indices | None = None,
    ) -> list[Projection]:
        """The projections of N units, each of its own place in its own picture; see the function of this name.

        Only the pixels that a unit can see are computed, and some around them.
        """
        seen = follow_to_relu(self._known, layer)
        size = feature_map_size(seen)
        which, numbers = _pair(len(images), units, pictures)
        _check_range(f"a unit of layer {layer}", numbers, seen.shape[1])
        _check_range("a picture", which, len(images))
        if tuple(images.shape[1:]) != self._shape:
            both = " and ".join("×".join(map(str, shape)) for shape in (tuple(images.shape[1:]), self._shape))
            raise UsageError(f"pictures of {both} do not go together; give pictures of one shape")
        # Of what is made in inference mode, nothing can be derived.
        with torch.inference_mode(False), hook_layers(self._network, [], {}):
            images = make_differentiable(self._network, prepare_input(self._network, images).detach())
        with torch.inference_mode(False), torch.enable_grad(), self._up_to(seen) as run:
            if places is None:
                there = _strongest_positions(run, images, which, numbers)
            else:
                there = np.broadcast_to(_to_integers(places), (len(numbers), 2))
                for axis, positions, name in zip(there.T, size, ("row", "column"), strict=True):
                    _check_range(f"a {name} of layer {layer}", axis, positions)
            jobs = self._jobs(run, seen, images, CropJobs(which, numbers, *crops_for_positions(seen, there)), there)
            found: dict[int, Projection] = {}
            for batch in jobs.batches(PIXELS_PER_BATCH):
                found |= _project_batch(self._network, run, images, jobs, batch)
        return [found[number] for number in range(len(numbers))]

    @contextmanager
    def _up_to(self, layer: Layer) -> Iterator[ForwardFunction]:
        """What runs pictures through the network to `layer`, no further, and gives its output."""
        found: list[Tensor] = []

        def see(output: Tensor) -> None:
            found.append(output)
            raise _LayerReached

        def run(images: Tensor) -> Tensor:
            with suppress(_LayerReached):
                forward_pass.run_network(
                    self._network, images.clone(memory_format=torch.channels_last)
                )  # a layer may write into it
            return found.pop()

        with hook_layers(self._network, self._known, {layer.name: see}):
            yield run

    def _jobs(self, run: ForwardFunction, layer: Layer, images: Tensor, jobs: CropJobs, places: Ints) -> CropJobs:
        """`jobs`, or those for whole pictures where windows do not do."""
        sizes = jobs.windows[:, 2:].prod(1)
        if len(sizes) and layer.name not in self._with_windows and sizes.min() < images.shape[2] * images.shape[3]:
            self._with_windows[layer.name] = _crops_match_image(run, layer, images, jobs, places, int(sizes.argmin()))
        if self._with_windows.get(layer.name, True):
            return jobs
        whole = np.broadcast_to([0, 0, *images.shape[2:]], (len(places), 4))
        return jobs._replace(windows=whole, places=places)


@check_types
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    units: Indices,
    places: Indices | None = None,
    pictures: Indices | None = None,
) -> Tensor:
    """What N units of `layer` respond to in pictures, (N, C, H, W) in units of the network's input.

    It is that of an activation of 1, behind the ReLU of `layer` where it has one (`activations.rectified`); the paper's
    is as many times as large as the activation. Any network; it runs in evaluation mode and is left as it was. Where it
    has no ReLU or no max-pooling, see `needs`.

    `images`: (B, C, H, W) or (C, H, W). `units`: one, or N. `places`: (N, 2), or one for all: row and column in the
    maps; None: where the unit is strongest. `pictures`: (N,), which of `images`; None: unit n and picture n, or all of
    the one with one of the other.

    Raises:
        UsageError: no such layer, unit, place or picture; the layer has no maps; the network does not take such
            pictures.

    Of 1 3 2 0, pooling keeps 3 and 2, the second and the third; the filter makes 2·3 − 1·2 of them. On the way back it
    makes 2 and −1 of 1, which go where 3 and 2 were, and the first ReLU lets the 2 through. (The gradient is 2 and −1.)

    >>> network = nn.Sequential(nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU())
    >>> _ = network[2].weight.data.copy_(torch.tensor([2.0, -1.0]))
    >>> project(network, torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]), "2", 0)
    tensor([[[[0., 2., 0., 0.]]]])
    """
    images = prepare_input(unwrap_compiled(network), images)
    found = Deconvnet(network, tuple(images.shape)).project(images, layer, units, places, pictures)
    dtype = found[0].pixels.dtype if found else images.dtype
    result = images.new_zeros((len(found), *images.shape[1:]), dtype=dtype)
    for picture, (pixels, top, left) in zip(result, found, strict=True):
        picture[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return result


@check_types
def to_images(projections: Tensor) -> npt.NDArray[np.uint8]:
    """Projections (N, C, H, W) to look at, (N, H, W, 3) uint8: 0 is grey, and each has the contrast that shows it best.

    The few values beyond four times the root of the mean square of those that are not 0, about one in a hundred, are
    cut: in deep layers the largest is ten times as large, and all else would be grey. One channel becomes grey; of
    more than three the mean does.

    Raises:
        UsageError: they have other axes, or are not real floating-point numbers in memory.
    """
    if not has_values(projections):
        raise UsageError("projections are a sparse, nested, quantized or meta tensor; to_images() needs a dense one")
    if projections.ndim != 4 or not projections.shape[1] or not projections.is_floating_point():
        raise UsageError(
            f"projections are {tuple(projections.shape)} {projections.dtype}; to_images() needs (N, C, H, W) in "
            "floating point"
        )
    if projections.shape[1] != 3:
        projections = projections.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    sizes = projections.abs().flatten(1)
    shares = sizes / sizes.amax(1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)  # their squares are numbers
    spread = (shares.square().sum(1) / shares.ne(0).sum(1).clamp_min(1)).sqrt()
    full = (sizes.amax(1) * (FULL_CONTRAST_RMS * spread).clamp_max(1)).clamp_min(torch.finfo(sizes.dtype).tiny)
    bytes_ = (projections / full[:, None, None, None]).clamp_(-1, 1).mul_(127).add_(128).round_().to(torch.uint8)
    return bytes_.permute(0, 2, 3, 1).cpu().numpy()


def describe_missing_layers(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """A sentence on what projections are in a network without ReLU or max-pooling; None if it has both.

    `shape`: of its input, (N, C, H, W). Nothing is computed.
    """
    twin = without_values(network).eval()
    floating = next((one.dtype for one in twin.parameters() if one.is_floating_point()), None)
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        output = twin(torch.empty(shape, dtype=floating, requires_grad=True))
    kinds = _autograd_node_names(output[0] if isinstance(output, tuple) else output)
    rectifies = any(kind.startswith(("Relu", "Threshold", "Hardtanh")) for kind in kinds)
    pools = any("MaxPool" in kind for kind in kinds)
    name = type(network).__name__
    if rectifies and pools:
        return None
    if rectifies:
        return (
            f"{name} has no max-pooling, whose switches say where in a window a maximum was: a projection is the "
            "gradient, rectified at each ReLU, and every pixel that a stride or an average has read gets its share."
        )
    if pools:
        return (
            f"{name} has no ReLU, so that nothing is rectified on the way back: a projection is the gradient, and both "
            "of its signs come to the pixels."
        )
    return (
        f"{name} has neither ReLU nor max-pooling, so that there is nothing to rectify on the way back and no switch "
        "to follow: a projection is the gradient."
    )


class _LayerReached(StopForward):
    """The layer has run; the rest of the network need not."""


def _project_batch(
    network: nn.Module, run: ForwardFunction, images: Tensor, jobs: CropJobs, turns: list[Ints]
) -> dict[int, Projection]:
    """The projections of one batch, by number of the job."""

    def recorded() -> tuple[Tensor, Tensor]:
        inputs = torch.stack([jobs.window(images, number) for number in turns[0]]).requires_grad_()
        return run(inputs), inputs

    outputs, inputs = forward_pass.run_with_gradients(network, recorded)
    found = {}
    for turn, numbers in enumerate(turns):
        slots = np.flatnonzero(numbers >= 0)
        here = numbers[slots]
        seed = torch.zeros_like(outputs)
        seed[tuple(torch.from_numpy(one) for one in (slots, jobs.units[here], *jobs.places[here].T))] = 1
        pixels = backward(outputs, inputs, seed, ReLURule.DECONVNET, again=turn + 1 < len(turns))
        for slot, number in zip(slots, here, strict=True):
            top, left, _, _ = jobs.windows[number].tolist()
            found[int(number)] = Projection(pixels[slot], top, left)
    return found


@torch.no_grad()
def _crops_match_image(
    run: ForwardFunction, layer: Layer, images: Tensor, jobs: CropJobs, places: Ints, number: int
) -> bool:
    """Whether one job's place has the same values in its window as in the picture, and all other places are there."""
    whole = run(images[jobs.pictures[number], None])[0, :, *places[number]]
    try:
        part = run(jobs.window(images, number)[None])
    except Exception:  # whatever a network does that takes pictures of one size only
        return False
    if tuple(part.shape[2:]) != feature_map_size_in_crop(layer, *jobs.windows[number, 2:].tolist()):
        return False
    return bool((part[0, :, *jobs.places[number]] - whole).abs().max() <= CROP_TOLERANCE * whole.abs().max())


@torch.no_grad()
def _strongest_positions(run: ForwardFunction, images: Tensor, pictures: Ints, units: Ints) -> Ints:
    """Where each unit is strongest in its picture, (N, 2)."""
    found = np.zeros((len(units), 2), np.int64)
    at_once = max(1, PIXELS_PER_BATCH // (images.shape[2] * images.shape[3]))
    used = np.unique(pictures)
    for start in range(0, len(used), at_once):
        some = used[start : start + at_once]
        outputs = run(images[torch.from_numpy(some)])
        for number in np.flatnonzero(np.isin(pictures, some)):
            values = outputs[np.searchsorted(some, pictures[number]), units[number]]
            found[number] = np.unravel_index(int(values.argmax()), values.shape)
    return found


def _pair(images: int, units: Indices, pictures: Indices | None) -> tuple[Ints, Ints]:
    """Which picture and which unit, for each of N."""
    numbers = np.atleast_1d(_to_integers(units))
    which = np.arange(images) if pictures is None else np.atleast_1d(_to_integers(pictures))
    if numbers.ndim > 1 or which.ndim > 1:
        raise UsageError("units and pictures are one number each, or a sequence of numbers")
    if len(numbers) != len(which) and 1 not in (len(numbers), len(which)):
        raise UsageError(
            f"{len(numbers)} units and {len(which)} pictures cannot be paired; give as many of both, one of either, or "
            "the pictures' numbers"
        )
    which, numbers = np.broadcast_arrays(which, numbers)
    return which, numbers


def _to_integers(numbers: Indices) -> Ints:
    try:
        found = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
        whole = found.astype(np.int64)
    except (ValueError, TypeError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{shortened(str(numbers))} are not units, places or pictures; give whole numbers") from error
    if whole.size and not np.array_equal(whole, found):
        raise UsageError(f"{shortened(str(numbers))} are not units, places or pictures; give whole numbers")
    return whole


def _check_range(what: str, numbers: Ints, count: int) -> None:
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise UsageError(f"{wrong[0]} is not {what}; use 0 to {count - 1}")


def _autograd_node_names(output: Tensor) -> set[str]:
    """The operations that `output` was made with, as autograd calls their derivatives."""
    found, waiting, seen = set(), [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    return found
