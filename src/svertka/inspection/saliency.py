"""Saliency maps of a class score: guided backpropagation, Grad-CAM and occlusion."""

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.map_layout import MapLayout
from svertka.graph.summary import Layer
from svertka.inspection.activations import hook_layers, list_layers
from svertka.inspection.backward_rules import ReLURule, backward_with_relu_rule, contains_relu
from svertka.inspection.checked_forward_pass import (
    floating_point_dtype,
    prepare_input,
    run_with_gradients_enabled,
    to_floating_point_images,
    unwrap_compiled,
)
from svertka.inspection.class_scores import ClassIndices, OutputActivation, compute_class_scores, parse_class_indices
from svertka.type_checking import check_types

BATCH_SIZE = 16


@check_types
def guided_backpropagation(network: nn.Module, images: Tensor, classes: ClassIndices) -> Tensor:
    """Return the gradient of each image's class score with respect to its pixels, rectified at each ReLU.

    A ReLU passes back the positive part of the gradient where its input was positive. The score is the value before a
    final sigmoid or softmax. The network runs in evaluation mode and is left unchanged; a `torch.no_grad()` inside it
    is ignored. A network without ReLU, such as one with SiLU or GELU, has nothing to rectify: the result is the plain
    gradient, and a warning says so.

    Args:
        network: Any classifier; one with a single score has only class 0.
        images: (N, C, H, W) or (C, H, W) float, as the network takes them.
        classes: (N,) integers, or one index for all images.

    Returns:
        (N, C, H, W).

    Raises:
        UsageError: The network has no such class, does not return scores (N, K), cannot run on `images`, or cuts off
            gradients.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for simplicity", §3.4.
    """
    network = unwrap_compiled(network)
    inputs = prepare_input(network, images)
    targets = parse_class_indices(classes, len(inputs))
    found = [torch.zeros_like(inputs[:0], dtype=floating_point_dtype(network))]
    with hook_layers(network, [], {}), torch.inference_mode(False), torch.enable_grad():
        inputs = to_floating_point_images(network, inputs)
        for batch, batch_targets in _batches(inputs, targets):

            def forward(batch: Tensor = batch, batch_targets: Tensor = batch_targets) -> tuple[Tensor, Tensor]:
                leaf = batch.detach().clone().requires_grad_()
                # A clone, since the first layer may modify its input in place.
                return compute_class_scores(network, leaf.clone(), batch_targets).select(batch_targets), leaf

            scores, leaf = run_with_gradients_enabled(network, forward)
            if len(found) == 1 and not contains_relu(scores):
                warnings.warn(
                    f"{type(network).__name__} has no ReLU, so guided backpropagation returns the plain gradient",
                    stacklevel=3,
                )
            found.append(backward_with_relu_rule(scores, leaf, torch.ones_like(scores), ReLURule.GUIDED))
    return torch.cat(found).to(images.device)


@check_types
def grad_cam(network: nn.Module, images: Tensor, classes: ClassIndices) -> Tensor:
    """Return the Grad-CAM heat map of each image's class score.

    It is the sum of the last stage's feature maps (`last_feature_map_layer`), each weighted with the mean gradient of
    the score over it, rectified. The tokens of a transformer are read as feature maps.

    Args:
        network: Any classifier with a convolution, or a transformer.
        images: (N, C, H, W) or (C, H, W) float, as the network takes them.
        classes: (N,) integers, or one index for all images.

    Returns:
        (N, H', W') at the resolution of those feature maps, 0 or more.

    Raises:
        UsageError: The network has no such class, does not return scores (N, K), cannot be traced, or has no layer
            with feature maps.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    eq. 1 and 2.
    """
    network = unwrap_compiled(network)
    inputs = prepare_input(network, images)
    targets = parse_class_indices(classes, len(inputs))
    known = list_layers(network, tuple(inputs.shape))
    last, layout = last_feature_map_layer(known)
    outputs: list[Tensor] = []
    dtype = torch.promote_types(floating_point_dtype(network) or torch.float32, torch.float32)
    found = [torch.zeros(0, *layout.size, dtype=dtype, device=inputs.device)]
    hooks = {last.name: outputs.append}
    with hook_layers(network, known, hooks), torch.inference_mode(False), torch.enable_grad():
        inputs = to_floating_point_images(network, inputs)
        for batch, batch_targets in _batches(inputs, targets):

            def forward(batch: Tensor = batch, batch_targets: Tensor = batch_targets) -> tuple[Tensor, Tensor]:
                outputs.clear()
                leaf = batch.detach().clone().requires_grad_()
                scores = compute_class_scores(network, leaf.clone(), batch_targets).select(batch_targets)
                return scores, outputs.pop()

            scores, output = run_with_gradients_enabled(network, forward)
            (gradients,) = torch.autograd.grad(scores.sum(), output)
            weights = layout.to_maps(gradients).to(dtype).mean((2, 3), keepdim=True)
            found.append((weights * layout.to_maps(output).to(dtype)).sum(1).clamp_min(0).detach())
    return torch.cat(found).to(images.device)


def last_feature_map_layer(known: Sequence[Layer]) -> tuple[Layer, MapLayout]:
    """Return the layer that Grad-CAM reads, and how its output holds feature maps.

    This is the last layer whose feature maps have the size of the last convolution's, or of the last dense layer's over
    positions, and are larger than 1×1. If the network reads only the class token of that layer, it is the last layer of
    the same shape, other than a dense one, whose other tokens are read: the input of the last attention.

    Raises:
        UsageError: No layer among them has such feature maps, or a later stage has positions of unknown order.
    """
    stages = [(layer, layer.maps) for layer in known if layer.maps and layer.call and math.prod(layer.maps.size) > 1]
    multiplying = [index for index, (layer, _) in enumerate(stages) if layer.multiply_adds]
    if not multiplying:
        raise UsageError(
            "Grad-CAM needs feature maps larger than 1×1, or tokens with known positions in the image, and the network "
            "has neither; use a larger image, or occlusion"
        )
    of_last_stage = multiplying[-1]
    size = stages[of_last_stage][1].size
    last, maps = [(layer, maps) for layer, maps in stages[of_last_stage:] if maps.size == size][-1]
    unknown = [layer.name for layer in known[known.index(last) :] if _has_unknown_positions(layer)]
    if unknown:
        raise UsageError(
            f"Grad-CAM needs the positions of the last stage's outputs in the image, which are not known for "
            f"layer={unknown[-1]}; use occlusion"
        )
    if maps.is_read:
        return last, maps
    read = [
        (layer, maps)
        for layer, maps in stages
        if maps.is_read and layer.shape == last.shape and not layer.multiply_adds
    ]
    return read[-1] if read else (last, maps)


def _has_unknown_positions(layer: Layer) -> bool:
    """Return whether `layer` is a dense layer or convolution over positions of unknown order."""
    is_product = "matmul" in layer.kind or "attention" in layer.kind
    sizes = [size for size in layer.shape[1:] if size > 1]
    return bool(layer.multiply_adds) and not is_product and layer.maps is None and len(sizes) > 1


@torch.inference_mode()
@check_types
def occlusion(
    network: nn.Module, images: Tensor, classes: ClassIndices, side: int, stride: int, multilabel: bool = False
) -> Tensor:
    """Return the probability of each image's class with part of the image covered, for a grid of covering squares.

    The probability is the softmax of the scores, or the sigmoid of the class's own score if the network has a single
    score, ends in a sigmoid, or is `multilabel`. Probabilities that the network itself returns are used as they are.
    The network runs once for each square, in evaluation mode, and is left unchanged.

    Args:
        network: Any classifier.
        images: (N, C, H, W) or (C, H, W) float, as the network takes them.
        classes: (N,) integers, or one index for all images.
        side: Side of the square, pixels. It is filled with 0, which is the mean color of normalized inputs: the paper's
            gray.
        stride: Distance between squares, pixels. The first square is in the upper left corner; the last ones reach or
            cross the right and lower borders.
        multilabel: Whether an image may have several classes.

    Returns:
        (N, rows, columns) in 0 to 1, float32, or float64 if the network computes in it.

    Raises:
        UsageError: The network has no such class, does not return scores (N, K), or ends in a softmax over one score;
            `side` exceeds the image; `side` or `stride` is below 1.

    Source: Zeiler & Fergus 2014, §4.2, figure 6 (d).
    """
    network = unwrap_compiled(network)
    inputs = prepare_input(network, images)
    targets = parse_class_indices(classes, len(inputs))
    height, width = inputs.shape[2:]
    if not (1 <= side <= min(height, width) and stride >= 1):
        raise UsageError(
            f"side={side} with stride={stride} does not fit images of {height}×{width}; use a side of 1 to "
            f"{min(height, width)} and a stride of at least 1"
        )
    tops, lefts = (range(0, _num_positions(size, side, stride) * stride, stride) for size in (height, width))
    corners = [(top, left) for top in tops for left in lefts]
    dtype = torch.promote_types(floating_point_dtype(network) or torch.float32, torch.float32)
    found = torch.empty(len(inputs), len(corners), dtype=dtype)
    with hook_layers(network, [], {}):
        for index, (image, target) in enumerate(zip(inputs, targets, strict=True)):
            for start in range(0, len(corners), BATCH_SIZE):
                batch = corners[start : start + BATCH_SIZE]
                covered = image.expand(len(batch), *image.shape).clone(memory_format=torch.channels_last)
                for one, (top, left) in zip(covered, batch, strict=True):
                    one[:, top : top + side, left : left + side] = 0
                labels = target.expand(len(batch))
                scores = compute_class_scores(network, covered, labels, multilabel)
                if scores.activation is OutputActivation.SOFTMAX and scores.values.shape[1] == 1:
                    raise UsageError(
                        f"{type(network).__name__} ends in a softmax over one score, which is 1 for every image; end "
                        "it in a sigmoid, or leave the softmax out"
                    )
                found[index, start : start + len(batch)] = scores.probabilities(labels)
    return found.reshape(len(inputs), len(tops), len(lefts)).to(images.device)


def _num_positions(size: int, side: int, stride: int) -> int:
    """Return how many squares cover `size` pixels along one axis."""
    return -(-(size - side) // stride) + 1


def _batches(images: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield up to BATCH_SIZE images at a time with their classes; nothing for no images."""
    for start in range(0, len(images), BATCH_SIZE):
        yield images[start : start + BATCH_SIZE], classes[start : start + BATCH_SIZE]
