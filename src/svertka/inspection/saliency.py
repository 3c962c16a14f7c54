"""Which pixels a class score of a picture depends on: three answers, each an array for each picture."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svertka.arguments import check_types
from svertka.device import device_of
from svertka.errors import UsageError
from svertka.graph.trace import Layer
from svertka.inspection.activations import convolutions, layers, watching
from svertka.inspection.backward import Rule, back

Classes = int | Sequence[int] | npt.NDArray[np.integer] | Tensor

BATCH = 16  # pictures that run together


@check_types
def guided_backpropagation(network: nn.Module, images: Tensor, classes: Classes) -> Tensor:
    """What raises the score of its class in each picture, (N, C, H, W): its gradient, rectified at each ReLU.

    `images`: (N, C, H, W) or (C, H, W), as `network` takes them. `classes`: one for each, or one for all. At a ReLU
    what is above 0 goes back, where the ReLU itself let something through. The network runs in evaluation mode and is
    left as it was.

    Raises:
        UsageError: the network has no such class, or does not give scores (N, K).

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for simplicity", §3.4.
    """
    images, wanted = _asked(images, classes)
    found = []
    with watching(network, [], {}), torch.inference_mode(False), torch.enable_grad():
        for some, of_them in zip(torch.split(images, BATCH), torch.split(wanted, BATCH), strict=True):
            inputs = _to(network, some).detach().clone().requires_grad_()
            # A copy, since the first layer may write into what it is given.
            scores = _of(_scores(network, inputs.clone(), of_them), of_them)
            found.append(back(scores, inputs, torch.ones_like(scores), Rule.GUIDED).to(images.device))
    return torch.cat(found)


@check_types
def grad_cam(network: nn.Module, images: Tensor, classes: Classes) -> Tensor:
    """Where in each picture the score of its class comes from, (N, H', W') at the places of the last maps, 0 or more.

    The maps of the last layer before they are gathered (`last_maps`), each weighted with the mean of the score's
    gradient over it, summed and rectified. Otherwise as `guided_backpropagation`.

    Raises:
        UsageError: no such class, or no scores; the network cannot be traced, or has no convolution with maps.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    eq. 1 and 2.
    """
    images, wanted = _asked(images, classes)
    known = layers(network, tuple(images.shape))
    seen: list[Tensor] = []
    found = []
    see = {last_maps(known).name: seen.append}
    with watching(network, known, see), torch.inference_mode(False), torch.enable_grad():
        for some, of_them in zip(torch.split(images, BATCH), torch.split(wanted, BATCH), strict=True):
            inputs = _to(network, some).detach().clone().requires_grad_()
            scores = _of(_scores(network, inputs.clone(), of_them), of_them)
            maps = seen.pop()
            (gradients,) = torch.autograd.grad(scores.sum(), maps)
            weights = gradients.mean((2, 3), keepdim=True)
            found.append((weights * maps).sum(1).clamp_min(0).detach().to(images.device))
    return torch.cat(found)


def last_maps(known: Sequence[Layer]) -> Layer:
    """Of a network's layers the one whose maps are the last, behind its last convolution and before they are gathered.

    Pooling behind that convolution makes maps smaller: it is the last with the largest.

    Raises:
        UsageError: no convolution among them gives maps.
    """
    names = convolutions(known)
    if not names:
        raise UsageError("the network has no convolution with maps, so that no score can be traced to places")
    last = next(number for number, layer in enumerate(known) if layer.name == names[-1])
    (found,) = [layer for layer in known[last:] if layer.shape[2:] == known[last].shape[2:]][-1:]
    return found


@torch.inference_mode()
@check_types
def occlusion(network: nn.Module, images: Tensor, classes: Classes, side: int, stride: int) -> Tensor:
    """How probable each picture's class still is with a square covered, (N, rows, columns), one for each of its places.

    `side`: of the square, pixels. `stride`: from one place to the next, pixels; the first is in the upper left corner,
    and the last ones reach or cross the other borders. What is covered is 0, which a network whose input is normalised
    takes for the mean colour: the paper's grey. The network runs once for each place, in evaluation mode, and is left
    as it was.

    Raises:
        UsageError: no such class, or no scores; `side` is not within the picture, or `stride` is below 1.

    Source: Zeiler & Fergus 2014, §4.2, figure 6 (d).
    """
    images, wanted = _asked(images, classes)
    height, width = images.shape[2:]
    if not (1 <= side <= min(height, width) and stride >= 1):
        raise UsageError(
            f"a square of {side} pixels every {stride} does not fit pictures of {height}×{width}; use a side of 1 to "
            f"{min(height, width)} and a stride of at least 1"
        )
    tops, lefts = (range(0, _positions(size, side, stride) * stride, stride) for size in (height, width))
    places = [(top, left) for top in tops for left in lefts]
    found = torch.empty(len(images), len(places), dtype=images.dtype)
    with watching(network, [], {}):
        for number, (image, label) in enumerate(zip(images, wanted, strict=True)):
            for start in range(0, len(places), BATCH):
                some = places[start : start + BATCH]
                covered = image.expand(len(some), *image.shape).clone(memory_format=torch.channels_last)
                for one, (top, left) in zip(covered, some, strict=True):
                    one[:, top : top + side, left : left + side] = 0
                labels = label.expand(len(some))
                scores = _scores(network, _to(network, covered), labels)
                found[number, start : start + len(some)] = _of(scores.softmax(1), labels)
    return found.reshape(len(images), len(tops), len(lefts)).to(images.device)


def _positions(size: int, side: int, stride: int) -> int:
    """Of a square that moves over `size` pixels until it has covered the last."""
    return -(-(size - side) // stride) + 1


def _asked(images: Tensor, classes: Classes) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W), and a class for each, (N,)."""
    images = images[None] if images.ndim == 3 else images
    with torch.inference_mode(False):  # autograd keeps them
        wanted = torch.as_tensor(classes, dtype=torch.int64).clone()
    if wanted.ndim and len(wanted) not in (1, len(images)):
        raise UsageError(f"{len(wanted)} classes for {len(images)} pictures; give one for each, or one for all")
    return images, wanted.expand(len(images))


def _to(network: nn.Module, images: Tensor) -> Tensor:
    return images.to(device_of(network) or images.device)


def _scores(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The scores that `network` gives each picture, (N, K), `classes` among them."""
    scores = network(images)
    if not (isinstance(scores, Tensor) and scores.ndim == 2):
        given = "×".join(map(str, scores.shape[1:])) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(f"{type(network).__name__} gives {given} for a picture, not one score for each class")
    count = scores.shape[1]
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise UsageError(f"class={int(wrong[0])} is not among the {count} of the network; use 0 to {count - 1}")
    return scores


def _of(scores: Tensor, classes: Tensor) -> Tensor:
    """Of each picture that of its class, (N,)."""
    return scores.gather(1, classes[:, None].to(scores.device))[:, 0]
