"""Scores and probabilities of classifiers with different output layers, against float64 loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.inspection.class_scores import parse_class_indices
from svertka.inspection.saliency import grad_cam, guided_backpropagation, occlusion

SIDE, STRIDE = 4, 3


def backbone(classes: int, scale: float = 6.0) -> nn.Sequential:
    """Return convolutions with a head whose scores depend on the covered part."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, classes)
    )
    with torch.no_grad():
        network[-1].weight *= scale  # type: ignore[operator]
    return network.double().eval()


class Ending(nn.Module):
    """`backbone` followed by `end`, applied to its scores."""

    def __init__(self, classes: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.backbone, self.end = backbone(classes), end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.backbone(images))


def images(count: int = 2) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(count, 3, 12, 12, dtype=torch.float64)


def sigmoid(scores: Tensor) -> Tensor:
    return 1 / (1 + (-scores).exp())


def softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(1, keepdim=True)


def both(yes: Tensor) -> Tensor:
    return torch.cat([1 - yes, yes], 1)


# What a network makes of its scores, how many there are, and the probabilities that it stands for.
ENDINGS: dict[str, tuple[int, Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "one logit": (1, lambda scores: scores, sigmoid),
    "one logit, squeezenet_run": (1, lambda scores: scores.squeeze(1), sigmoid),
    "one logit with places": (1, lambda scores: scores[:, :, None, None], sigmoid),
    "one probability": (1, torch.sigmoid, sigmoid),
    "one probability of a module": (1, nn.Sigmoid(), sigmoid),
    "one probability, squeezenet_run": (1, lambda scores: scores.sigmoid().squeeze(), sigmoid),
    "one probability in place": (1, lambda scores: scores.sigmoid_(), sigmoid),
    "one probability, cut off": (1, lambda scores: scores.sigmoid().clamp(1e-6, 1 - 1e-6), sigmoid),
    "log of one probability": (1, F.logsigmoid, sigmoid),
    "probabilities of labels": (4, torch.sigmoid, sigmoid),
    "no and yes": (1, lambda scores: both(scores.sigmoid()), lambda scores: both(sigmoid(scores))),
    "the second of two": (2, lambda scores: scores.softmax(1)[:, 1], lambda scores: softmax(scores)[:, 1:]),
    "logits": (4, lambda scores: scores, softmax),
    "softmax": (4, lambda scores: scores.softmax(1), softmax),
    "softmax of a module": (4, nn.Softmax(1), softmax),
    "softmax of a function": (4, lambda scores: F.softmax(scores, dim=-1), softmax),
    "softmax, written out": (4, lambda scores: scores.exp() / scores.exp().sum(1, keepdim=True), softmax),
    "log softmax": (4, nn.LogSoftmax(1), softmax),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_occlusion_returns_class_probabilities(ending: str) -> None:
    count, end, probabilities = ENDINGS[ending]
    network = Ending(count, end)
    expected = probabilities(network.backbone(images())).detach()
    label = expected.shape[1] - 1
    found = occlusion(network, images(), label, SIDE, STRIDE)
    assert found.dtype == torch.float64
    for number, image in enumerate(images()):
        for row in range(found.shape[1]):
            for column in range(found.shape[2]):
                covered = image.clone()
                top, left = row * STRIDE, column * STRIDE
                covered[:, top : top + SIDE, left : left + SIDE] = 0
                wanted = probabilities(network.backbone(covered[None]))[0, label].item()
                assert float(found[number, row, column]) == pytest.approx(wanted, abs=1e-6)
    assert found.std() > 0.01  # it depends on what is covered


# What these were given is not seen: the gradient of the probability itself is the answer.
UNSEEN = (
    "one probability in place",
    "no and yes",
    "the second of two",
    "softmax, written out",
    "one probability, cut off",
)


@pytest.mark.parametrize("ending", [name for name in ENDINGS if name not in UNSEEN])
def test_saliency_uses_the_score_before_the_sigmoid(ending: str, captum: Any) -> None:
    count, end, _ = ENDINGS[ending]
    network = Ending(count, end)
    label = count - 1
    cam = captum.LayerGradCam(network.backbone, network.backbone[3]).attribute(images(), label, relu_attributions=True)
    assert torch.allclose(grad_cam(network, images(), label), cam[:, 0], atol=1e-9)
    guided = captum.GuidedBackprop(network.backbone).attribute(images(), label)
    assert torch.allclose(guided_backpropagation(network, images(), label), guided, atol=1e-9)


def test_saturated_sigmoid_does_not_hide_the_gradient() -> None:
    network = nn.Sequential(*backbone(1, scale=1e5), nn.Sigmoid()).float()
    assert network(images().float()).detach().round(decimals=6).unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
    assert guided_backpropagation(network, images(), 0).abs().max() > 1  # through the sigmoid it would be 0


def test_multilabel_option_selects_the_sigmoid() -> None:
    network = backbone(4)
    found = occlusion(network, images(), 2, side=12, stride=1, multilabel=True)
    expected = sigmoid(network(torch.zeros_like(images())))[:, 2].detach()
    assert torch.allclose(found.flatten(), expected)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (1.5, "must be integers, the indices"),
        (True, "must be integers, the indices"),
        ([0.0, 1.0], "must be integers, the indices"),
        ("cat", "classes=cat must be integers"),
        (None, "classes=None must be integers"),
        (10**30, "must be integers"),
        ([[0], [1]], r"classes of shape \(2, 1\) must be one integer"),
        ([], "0 classes for 2 images"),
    ],
)
def test_invalid_class_indices_are_rejected(classes: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_class_indices(classes, 2)


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (lambda scores: (scores, scores), "Ending gives tuple for an image, not one score for each class"),
        (lambda scores: {"logits": scores}, "Ending gives dict for an image"),
        (lambda scores: scores.sum(), "Ending gives Tensor for an image"),
        (lambda scores: scores[:1], "Ending gives 1 for an image"),
        (lambda scores: scores * float("nan"), "Ending gives NaN for image 0 of the batch"),
        (lambda scores: scores @ scores, "Ending cannot run on images .* of torch.float64: "),
    ],
)
def test_outputs_that_are_not_scores_are_rejected(end: Callable[[Tensor], Any], sentence: str) -> None:
    for method in (guided_backpropagation, lambda *asked: occlusion(*asked, SIDE, STRIDE)):
        with pytest.raises(UsageError, match=sentence):
            method(Ending(1, end), images(), 0)
    with pytest.raises(UsageError):  # it may be refused before, where it is traced
        grad_cam(Ending(1, end), images(), 0)


def test_single_score_has_only_class_0() -> None:
    with pytest.raises(UsageError, match="class=1 is out of range; the network has one score: use 0"):
        occlusion(backbone(1), images(), 1, SIDE, STRIDE)
