"""Deconvolution (Zeiler & Fergus 2014): the pixels of an image that activate a unit.

The image runs forward to the layer. Then a single activation is propagated back: through max-pooling to the position of
the maximum (the switches), through a ReLU where it is positive, through a convolution by its transposed filters.

The paper has only these three kinds of layers. Every other layer is treated as the linear map that it is for this
image, and transposed, which is its derivative:

- *batch norm*, in evaluation mode: multiplied by the scale of each channel, sign included.
- *average pooling*: spread evenly over the window.
- *residual sums*: to both branches, whose projections add up again; *concatenations*: to each branch its own channels.
- *local response normalization*: the scale of each value, and a small negative share to its neighbors. The paper does
  not mention it, although the authors' network contains it.
- *other activation functions*, such as SiLU or tanh: multiplied by the slope at the input.

Many projections in float32 on the CPU are computed by a compiled backward pass (`compiled_deconvnet`), others by
autograd on crops of the images.

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
from svertka.device import is_dense_with_values
from svertka.errors import UsageError
from svertka.graph.layer_calls import first_tensor
from svertka.graph.network_copy import copy_with_meta_tensors
from svertka.graph.summary import Layer
from svertka.inspection import checked_forward_pass
from svertka.inspection.activations import (
    feature_map_layout,
    feature_map_size,
    follow_to_activation,
    hook_layers,
    list_layers,
    unit_count,
)
from svertka.inspection.backward_rules import ReLURule, autograd_node_names, backward_with_relu_rule, contains_relu
from svertka.inspection.checked_forward_pass import (
    StopForward,
    prepare_input,
    to_floating_point_images,
    unwrap_compiled,
)
from svertka.inspection.deconvolution.compiled_deconvnet import CompiledDeconvnet
from svertka.inspection.stride_aligned_crops import CropJobs, crops_for_positions, feature_map_size_in_crop
from svertka.text_width import shorten
from svertka.type_checking import check_types

Indices = int | Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer] | Tensor
ForwardFunction = Callable[[Tensor], Tensor]

PIXELS_PER_BATCH = 200_000  # of all crops in a batch; a batch of twice as many does not fit in the CPU's caches
MIN_COMPILED = 32  # projections for which a compiled backward pass is worth the second that compiling takes
FULL_CONTRAST_RMS = 4  # root mean squares at which contrast is full
CROP_TOLERANCE = 1e-3  # of the largest value; rounding differences between a crop and the whole image are far smaller


class Projection(NamedTuple):
    """`pixels` (C, h, w) of an image with upper left corner `top`, `left`; all other pixels are 0."""

    pixels: Tensor
    top: int
    left: int


class Deconvnet:
    """Projects activations of `network` back to pixels.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (N, C, H, W); N does not matter.

    Raises:
        UsageError: The network cannot be traced with such images.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self._network = unwrap_compiled(network)
        self._known, self._shape = list_layers(self._network, shape), tuple(shape[1:])
        self._supports_crops: dict[str, bool] = {}
        self._is_right: dict[str, bool] = {}  # whether compiled projections of a layer are those by autograd
        self._compiled = CompiledDeconvnet(self._network, (1, *self._shape))

    def project(
        self,
        images: Tensor,
        layer: str,
        units: Indices,
        positions: Indices | None = None,
        image_indices: Indices | None = None,
    ) -> list[Projection]:
        """Return the projections of N units, as the function `project` does.

        Only the pixels in a unit's receptive field, and some around them, are computed.
        """
        observed = follow_to_activation(self._known, layer)
        size = feature_map_size(observed)
        which, channels = _pair(len(images), units, image_indices)
        _check_range(f"a unit of layer {layer}", channels, unit_count(observed))
        _check_range("an image", which, len(images))
        if tuple(images.shape[1:]) != self._shape:
            given, expected = ("×".join(map(str, shape)) for shape in (tuple(images.shape[1:]), self._shape))
            raise UsageError(f"images of {given} do not fit this Deconvnet; give images of {expected}")
        # Tensors made in inference mode do not support gradients.
        with torch.inference_mode(False), hook_layers(self._network, [], {}):
            images = to_floating_point_images(self._network, prepare_input(self._network, images).detach())
        if positions is None:
            with torch.inference_mode(False), self._forward_to(observed) as run:
                chosen = _strongest_positions(run, images, which, channels)
        else:
            chosen = np.broadcast_to(_to_integers(positions), (len(channels), 2))
            for axis, count, name in zip(chosen.T, size, ("row", "column"), strict=True):
                _check_range(f"a {name} of layer {layer}", axis, count)
        if len(channels) >= MIN_COMPILED and self._compiled.supports(observed, images):
            projections = self._project_compiled(observed, images, which, channels, chosen)
            if projections is not None:
                return projections
        crop_jobs = CropJobs(which, channels, *crops_for_positions(observed, chosen))
        with torch.inference_mode(False), torch.enable_grad(), self._forward_to(observed) as run:
            jobs = self._crops_or_whole_images(run, observed, images, crop_jobs, chosen)
            return self._project_jobs(run, images, jobs)

    def _project_compiled(
        self, layer: Layer, images: Tensor, which: Ints, channels: Ints, positions: Ints
    ) -> list[Projection] | None:
        """Return the projections by a compiled backward pass; None if one of them differs from that by autograd."""
        with torch.inference_mode(False), torch.no_grad():
            found = [Projection(*one) for one in self._compiled.project(images, layer, channels, positions, which)]
        if layer.name not in self._is_right:
            job = [int(np.argmax([float(one.pixels.abs().sum()) for one in found]))]
            whole = CropJobs(which[job], channels[job], np.array([[0, 0, *images.shape[2:]]]), positions[job])
            with torch.inference_mode(False), torch.enable_grad(), self._forward_to(layer) as run:
                (expected,) = self._project_jobs(run, images, whole)
            self._is_right[layer.name] = _are_close(found[job[0]], expected.pixels)
        return found if self._is_right[layer.name] else None

    def _project_jobs(self, run: ForwardFunction, images: Tensor, jobs: CropJobs) -> list[Projection]:
        """Return the projections by autograd, in the order of the jobs."""
        found: dict[int, Projection] = {}
        for turns in jobs.batches(PIXELS_PER_BATCH):
            found |= _project_batch(self._network, run, images, jobs, turns)
        return [found[job] for job in range(len(jobs.units))]

    @contextmanager
    def _forward_to(self, layer: Layer) -> Iterator[ForwardFunction]:
        """Yield a function that runs images through the network up to `layer` and returns its feature maps."""
        found: list[Tensor] = []

        def stop(output: Tensor) -> None:
            found.append(output)
            raise _LayerReached

        def run(images: Tensor) -> Tensor:
            with suppress(_LayerReached):
                # A clone, since a layer may modify its input in place.
                checked_forward_pass.call_network(self._network, images.clone(memory_format=torch.channels_last))
            return maps.to_maps(found.pop())

        maps = feature_map_layout(layer)
        with hook_layers(self._network, self._known, {layer.name: stop}):
            yield run

    def _crops_or_whole_images(
        self, run: ForwardFunction, layer: Layer, images: Tensor, jobs: CropJobs, positions: Ints
    ) -> CropJobs:
        """Return `jobs`, or jobs on whole images if the network gives other values in crops."""
        areas = jobs.crops[:, 2:].prod(1)
        if len(areas) and layer.name not in self._supports_crops and areas.min() < images.shape[2] * images.shape[3]:
            self._supports_crops[layer.name] = _crops_match_image(
                run, layer, images, jobs, positions, int(areas.argmin())
            )
        if self._supports_crops.get(layer.name, True):
            return jobs
        whole = np.broadcast_to([0, 0, *images.shape[2:]], (len(positions), 4))
        return jobs._replace(crops=whole, positions=positions)


@check_types
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    units: Indices,
    positions: Indices | None = None,
    image_indices: Indices | None = None,
) -> Tensor:
    """Project the activations of N units of `layer` back to pixels by deconvolution.

    An activation of 1 is projected, after the activation function of `layer` where one follows
    (`activations.follow_to_activation`); the paper's projection is this one times the activation. The network runs in
    evaluation mode and is left unchanged. For networks without ReLU or max-pooling, see
    `describe_missing_relu_pooling`.

    Args:
        network: Any nn.Module.
        images: (B, C, H, W) or (C, H, W) float, as the network takes them.
        layer: Name of the layer, as in `list_layers`.
        units: (N,) integers, channels of the layer, or one channel for all images.
        positions: (N, 2) integers, or one for all: row and column in the feature map. None: where the unit is largest.
        image_indices: (N,) indices in `images`. None: unit n is projected into image n, a single unit into every
            image, or every unit into a single image.

    Returns:
        (N, C, H, W), on the scale of the network's input.

    Raises:
        UsageError: There is no such layer, unit, position or image; the layer has no feature maps; the network rejects
            the images.

    Example:
        Pooling keeps 3 and 2 of 1 3 2 0, and the filter computes 2·3 − 1·2. Going back, 2 and −1 return to where 3 and
        2 were, and the first ReLU passes only the 2. (The gradient is 2 and −1.)

        >>> network = nn.Sequential(nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU())
        >>> _ = network[2].weight.data.copy_(torch.tensor([2.0, -1.0]))
        >>> project(network, torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]), "2", 0)
        tensor([[[[0., 2., 0., 0.]]]])
    """
    images = prepare_input(unwrap_compiled(network), images)
    found = Deconvnet(network, tuple(images.shape)).project(images, layer, units, positions, image_indices)
    dtype = found[0].pixels.dtype if found else images.dtype
    result = images.new_zeros((len(found), *images.shape[1:]), dtype=dtype)
    for image, (pixels, top, left) in zip(result, found, strict=True):
        image[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return result


@check_types
def to_images(projections: Tensor) -> npt.NDArray[np.uint8]:
    """Convert projections to images: 0 becomes gray, and the contrast adapts to each projection.

    Full contrast is at four times the root mean square of the nonzero values, because in deep layers the largest value
    is ten times the others. About one value in a hundred exceeds it and is clipped.

    Args:
        projections: (N, C, H, W), floating point. One channel is shown in gray, and so is the mean of more than three.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        UsageError: The projections have another shape, dtype or layout.
    """
    if not is_dense_with_values(projections):
        raise UsageError("projections are a sparse, nested, quantized or meta tensor; to_images() needs a dense one")
    if projections.ndim != 4 or not projections.shape[1] or not projections.is_floating_point():
        raise UsageError(
            f"projections are {tuple(projections.shape)} {projections.dtype}; to_images() needs (N, C, H, W) in "
            "floating point"
        )
    if projections.shape[1] != 3:
        projections = projections.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    sizes = projections.abs().flatten(1)
    shares = sizes / sizes.amax(1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)  # squares cannot overflow
    rms = (shares.square().sum(1) / shares.ne(0).sum(1).clamp_min(1)).sqrt()
    full = (sizes.amax(1) * (FULL_CONTRAST_RMS * rms).clamp_max(1)).clamp_min(torch.finfo(sizes.dtype).tiny)
    bytes_ = (projections / full[:, None, None, None]).clamp_(-1, 1).mul_(127).add_(128).round_().to(torch.uint8)
    return bytes_.permute(0, 2, 3, 1).cpu().numpy()


def find_relu_and_max_pooling(network: nn.Module, shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Return whether a network has ReLU, and whether it has max-pooling.

    Args:
        network: Any nn.Module; nothing is computed.
        shape: Shape of the input, (N, C, H, W).
    """
    copy = copy_with_meta_tensors(network, hooks=False)[0]
    floating = next((one.dtype for one in copy.parameters() if one.is_floating_point()), None)
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        # A clone, since the first layer may modify its input in place.
        output = first_tensor(copy(torch.empty(shape, dtype=floating, requires_grad=True).clone()))
    return contains_relu(output), any("MaxPool" in kind for kind in autograd_node_names(output))


def describe_missing_relu_pooling(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return a sentence on what projections show in a network without ReLU or max-pooling; None if it has both."""
    has_relu, has_max_pooling = find_relu_and_max_pooling(network, shape)
    name = type(network).__name__
    if has_relu and has_max_pooling:
        return None
    if has_relu:
        return (
            f"{name} has no max-pooling, and so no switches that record the position of a maximum: a projection is the "
            "gradient, rectified at each ReLU, and is spread over every pixel that a stride or an average has read."
        )
    if has_max_pooling:
        return (
            f"{name} has no ReLU, so nothing is rectified on the way back: a projection is the gradient, with both of "
            "its signs."
        )
    return (
        f"{name} has neither ReLU nor max-pooling, so nothing is rectified on the way back and there are no switches: "
        "a projection is the gradient."
    )


class _LayerReached(StopForward):
    """The layer has run; the rest of the network is not needed."""


def _project_batch(
    network: nn.Module, run: ForwardFunction, images: Tensor, jobs: CropJobs, turns: list[Ints]
) -> dict[int, Projection]:
    """Return the projections of one batch, by index of the job."""

    def forward() -> tuple[Tensor, Tensor]:
        inputs = torch.stack([jobs.crop(images, job) for job in turns[0]]).requires_grad_()
        return run(inputs), inputs

    outputs, inputs = checked_forward_pass.run_with_gradients_enabled(network, forward)
    found = {}
    for turn, job_of_crop in enumerate(turns):
        crops = np.flatnonzero(job_of_crop >= 0)
        batch = job_of_crop[crops]
        gradient = torch.zeros_like(outputs)
        gradient[tuple(torch.from_numpy(one) for one in (crops, jobs.units[batch], *jobs.positions[batch].T))] = 1
        pixels = backward_with_relu_rule(
            outputs, inputs, gradient, ReLURule.DECONVNET, retain_graph=turn + 1 < len(turns)
        )
        for crop, job in zip(crops, batch, strict=True):
            top, left, _, _ = jobs.crops[job].tolist()
            found[int(job)] = Projection(pixels[crop], top, left)
    return found


def _are_close(found: Projection, expected: Tensor) -> bool:
    """Return whether a projection is that on the whole image, except for rounding."""
    pixels = expected.clone()
    pixels[:, found.top : found.top + found.pixels.shape[1], found.left : found.left + found.pixels.shape[2]] -= (
        found.pixels
    )
    return bool(pixels.abs().max() <= CROP_TOLERANCE * expected.abs().max())


@torch.no_grad()
def _crops_match_image(
    run: ForwardFunction, layer: Layer, images: Tensor, jobs: CropJobs, positions: Ints, job: int
) -> bool:
    """Return whether one job gets the same values in its crop as in the image, and the expected feature map size."""
    whole = run(images[jobs.images[job], None])[0, :, *positions[job]]
    try:
        part = run(jobs.crop(images, job)[None])
    except Exception:  # a network that accepts only one input size may raise anything
        return False
    if tuple(part.shape[2:]) != feature_map_size_in_crop(layer, *jobs.crops[job, 2:].tolist()):
        return False
    return bool((part[0, :, *jobs.positions[job]] - whole).abs().max() <= CROP_TOLERANCE * whole.abs().max())


@torch.no_grad()
def _strongest_positions(run: ForwardFunction, images: Tensor, image_indices: Ints, units: Ints) -> Ints:
    """Return the position of each unit's maximum in its image, (N, 2)."""
    found = np.zeros((len(units), 2), np.int64)
    batch_size = max(1, PIXELS_PER_BATCH // (images.shape[2] * images.shape[3]))
    used = np.unique(image_indices)
    for start in range(0, len(used), batch_size):
        batch = used[start : start + batch_size]
        outputs = run(images[torch.from_numpy(batch)])
        for index in np.flatnonzero(np.isin(image_indices, batch)):
            values = outputs[np.searchsorted(batch, image_indices[index]), units[index]]
            found[index] = np.unravel_index(int(values.argmax()), values.shape)
    return found


def _pair(num_images: int, units: Indices, image_indices: Indices | None) -> tuple[Ints, Ints]:
    """Return the image and the unit of each of N projections."""
    channels = np.atleast_1d(_to_integers(units))
    which = np.arange(num_images) if image_indices is None else np.atleast_1d(_to_integers(image_indices))
    if channels.ndim > 1 or which.ndim > 1:
        raise UsageError("units and image_indices must be one number each, or a sequence of numbers")
    if len(channels) != len(which) and 1 not in (len(channels), len(which)):
        raise UsageError(
            f"{len(channels)} units and {len(which)} images cannot be paired; give as many of both, one of either, or "
            "image_indices"
        )
    which, channels = np.broadcast_arrays(which, channels)
    return which, channels


def _to_integers(numbers: Indices) -> Ints:
    try:
        found = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
        whole = found.astype(np.int64)
    except (ValueError, TypeError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{shorten(str(numbers))} must be integers") from error
    if whole.size and not np.array_equal(whole, found):
        raise UsageError(f"{shorten(str(numbers))} must be integers")
    return whole


def _check_range(what: str, numbers: Ints, count: int) -> None:
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise UsageError(f"{wrong[0]} is not {what}; use 0 to {count - 1}")
