"""Which pixels a class score of a picture depends on: three answers, each an array for each picture."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.summary import Layer
from svertka.inspection.activations import convolution_names, hook_layers, list_layers
from svertka.inspection.backward_rules import ReLURule, backward
from svertka.inspection.class_scores import ClassIndices, compute_class_scores, parse_class_indices
from svertka.inspection.forward_pass import (
    floating_point_dtype,
    make_differentiable,
    prepare_input,
    run_with_gradients,
    unwrap_compiled,
)
from svertka.type_checking import check_types

BATCH = 16  # pictures that run together


@check_types
def guided_backpropagation(network: nn.Module, images: Tensor, classes: ClassIndices) -> Tensor:
    """What raises the score of its class in each picture, (N, C, H, W): its gradient, rectified at each ReLU.

    `images`: (N, C, H, W) or (C, H, W), as `network` takes them. `classes`: one for each, or one for all. At a ReLU
    what is above 0 goes back, where the ReLU itself let something through. The score is that before a sigmoid or a
    softmax at the end; a network with one score has class 0 alone. The network runs in evaluation mode and is left as
    it was; where it computes under `torch.no_grad()`, that is ignored.

    Raises:
        UsageError: the network has no such class, does not give scores (N, K) or cannot run on `images`, or cuts off
        gradients.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for simplicity", §3.4.
    """
    network = unwrap_compiled(network)
    pictures = prepare_input(network, images)
    wanted = parse_class_indices(classes, len(pictures))
    found = [torch.zeros_like(pictures[:0], dtype=floating_point_dtype(network))]
    with hook_layers(network, [], {}), torch.inference_mode(False), torch.enable_grad():
        pictures = make_differentiable(network, pictures)
        for some, of_them in _batches(pictures, wanted):

            def forward(some: Tensor = some, of_them: Tensor = of_them) -> tuple[Tensor, Tensor]:
                inputs = some.detach().clone().requires_grad_()
                # A copy, since the first layer may write into what it is given.
                return compute_class_scores(network, inputs.clone(), of_them).of(of_them), inputs

            scores, inputs = run_with_gradients(network, forward)
            found.append(backward(scores, inputs, torch.ones_like(scores), ReLURule.GUIDED))
    return torch.cat(found).to(images.device)


@check_types
def grad_cam(network: nn.Module, images: Tensor, classes: ClassIndices) -> Tensor:
    """Where in each picture the score of its class comes from, (N, H', W') at the places of the last maps, 0 or more.

    The maps of the last layer before they are gathered (`last_maps`), each weighted with the mean of the score's
    gradient over it, summed and rectified. Otherwise as `guided_backpropagation`.

    Raises:
        UsageError: no such class, or no scores; the network cannot be traced, or has no convolution with maps.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    eq. 1 and 2.
    """
    network = unwrap_compiled(network)
    pictures = prepare_input(network, images)
    wanted = parse_class_indices(classes, len(pictures))
    known = list_layers(network, tuple(pictures.shape))
    last = last_feature_map_layer(known)
    seen: list[Tensor] = []
    dtype = torch.promote_types(floating_point_dtype(network) or torch.float32, torch.float32)
    found = [torch.zeros(0, *last.shape[2:], dtype=dtype, device=pictures.device)]
    with hook_layers(network, known, {last.name: seen.append}), torch.inference_mode(False), torch.enable_grad():
        pictures = make_differentiable(network, pictures)
        for some, of_them in _batches(pictures, wanted):

            def forward(some: Tensor = some, of_them: Tensor = of_them) -> tuple[Tensor, Tensor]:
                seen.clear()
                inputs = some.detach().clone().requires_grad_()
                scores = compute_class_scores(network, inputs.clone(), of_them).of(of_them)
                return scores, seen.pop()

            scores, maps = run_with_gradients(network, forward)
            (gradients,) = torch.autograd.grad(scores.sum(), maps)
            weights = gradients.to(dtype).mean((2, 3), keepdim=True)
            found.append((weights * maps.to(dtype)).sum(1).clamp_min(0).detach())
    return torch.cat(found).to(images.device)


def last_feature_map_layer(known: Sequence[Layer]) -> Layer:
    """Of a network's layers the one whose maps are the last, behind its last convolution and before they are gathered.

    Pooling behind that convolution makes maps smaller: it is the last with the largest.

    Raises:
        UsageError: no convolution among them gives maps.
    """
    names = convolution_names(known)
    if not names:
        raise UsageError("the network has no convolution with maps, so that no score can be traced to places")
    last = next(number for number, layer in enumerate(known) if layer.name == names[-1])
    (found,) = [layer for layer in known[last:] if layer.shape[2:] == known[last].shape[2:]][-1:]
    return found


@torch.inference_mode()
@check_types
def occlusion(
    network: nn.Module, images: Tensor, classes: ClassIndices, side: int, stride: int, multilabel: bool = False
) -> Tensor:
    """How probable each picture's class still is with a square covered, (N, rows, columns), one for each of its places.

    In 0 to 1, float32 (float64 where the network computes in it): the softmax of the scores, or the sigmoid of the
    class's own where the network has one score alone, ends in a sigmoid, or is `multilabel`: each score says yes or no
    to its class, whatever the others are. Probabilities that the network gives itself are taken as they are.

    `side`: of the square, pixels. `stride`: from one place to the next, pixels; the first is in the upper left corner,
    and the last ones reach or cross the other borders. What is covered is 0, which a network whose input is normalised
    takes for the mean colour: the paper's grey. The network runs once for each place, in evaluation mode, and is left
    as it was.

    Raises:
        UsageError: no such class, or no scores; `side` is not within the picture, or `stride` is below 1.

    Source: Zeiler & Fergus 2014, §4.2, figure 6 (d).
    """
    network = unwrap_compiled(network)
    pictures = prepare_input(network, images)
    wanted = parse_class_indices(classes, len(pictures))
    height, width = pictures.shape[2:]
    if not (1 <= side <= min(height, width) and stride >= 1):
        raise UsageError(
            f"a square of {side} pixels every {stride} does not fit pictures of {height}×{width}; use a side of 1 to "
            f"{min(height, width)} and a stride of at least 1"
        )
    tops, lefts = (range(0, _num_positions(size, side, stride) * stride, stride) for size in (height, width))
    places = [(top, left) for top in tops for left in lefts]
    dtype = torch.promote_types(floating_point_dtype(network) or torch.float32, torch.float32)
    found = torch.empty(len(pictures), len(places), dtype=dtype)
    with hook_layers(network, [], {}):
        for number, (image, label) in enumerate(zip(pictures, wanted, strict=True)):
            for start in range(0, len(places), BATCH):
                some = places[start : start + BATCH]
                covered = image.expand(len(some), *image.shape).clone(memory_format=torch.channels_last)
                for one, (top, left) in zip(covered, some, strict=True):
                    one[:, top : top + side, left : left + side] = 0
                labels = label.expand(len(some))
                scores = compute_class_scores(network, covered, labels, multilabel)
                found[number, start : start + len(some)] = scores.probabilities(labels)
    return found.reshape(len(pictures), len(tops), len(lefts)).to(images.device)


def _num_positions(size: int, side: int, stride: int) -> int:
    """Of a square that moves over `size` pixels until it has covered the last."""
    return -(-(size - side) // stride) + 1


def _batches(images: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to BATCH images at a time, with their classes; none where there is no image."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH], classes[start : start + BATCH]
