from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.inspection.activations import hook_layers, list_layers
from svertka.inspection.saliency import grad_cam, guided_backpropagation, last_feature_map_layer, occlusion

Make = Callable[[str, int], nn.Module]
Unchanged = Callable[[nn.Module], AbstractContextManager[None]]

# Where the last convolutional stage of each ends.
STAGES = {
    "squeezenet1_1": (95, "classifier.2"),
    "vgg11_bn": (32, "features.27"),
    "alexnet_owt": (95, "features.11"),
    "googlenet": (96, "inception5b.cat"),
    "resnet18": (64, "layer4.1.relu2"),
}


def pictures(size: int, count: int = 3) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("name", STAGES)
def test_guided_backpropagation_matches_captum(exact_network: Make, captum: Any, name: str):
    network, images = exact_network(name, STAGES[name][0]), pictures(STAGES[name][0])
    classes = network(images).argmax(1)
    expected = captum.GuidedBackprop(network).attribute(images.clone(), classes)
    found = guided_backpropagation(network, images, classes)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", STAGES)
def test_grad_cam_matches_captum_at_the_last_stage(exact_network: Make, captum: Any, name: str):
    size, stage = STAGES[name]
    network, images = exact_network(name, size), pictures(size)
    assert last_feature_map_layer(list_layers(network, tuple(images.shape)))[0].name == stage
    module, classes = network.get_submodule(stage.removesuffix(".cat")), network(images).argmax(1)
    expected = captum.LayerGradCam(network, module).attribute(images, classes, relu_attributions=True)[:, 0]
    found = grad_cam(network, images, classes)
    assert expected.abs().max() > 0
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class Functions(nn.Module):
    """A classifier without a ReLU module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = F.relu(self.conv(F.relu_(self.norm(inputs))), inplace=True)
        return self.head(F.dropout(maps.mean((2, 3)), training=self.training))


@pytest.mark.parametrize(("side", "stride"), [(16, 16), (24, 10), (20, 17), (64, 3)])
def test_occlusion_matches_captum(captum: Any, side: int, stride: int):
    torch.manual_seed(1)
    network, images, classes = Functions().double().eval(), pictures(64, count=2), torch.tensor([3, 0])
    with torch.no_grad():
        network.head.weight *= 20  # a mean depends little on any part
    found = occlusion(network, images, classes, side, stride)

    def probabilities(batch: Tensor) -> Tensor:
        return network(batch).softmax(1)

    theirs = captum.Occlusion(probabilities).attribute(
        images, (3, side, side), target=classes, strides=(3, stride, stride), perturbations_per_eval=8
    )
    # Theirs says for each pixel by how much the squares over it lower the probability, on average.
    whole = probabilities(images).detach().gather(1, classes[:, None])
    falls, counts = torch.zeros_like(images), torch.zeros_like(images)
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            square = (..., slice(row * stride, row * stride + side), slice(column * stride, column * stride + side))
            falls[square] += (whole - found[:, row, column, None])[:, :, None, None]
            counts[square] += 1
    assert counts.min() == 1
    assert theirs.abs().max() > 0.001
    # captum adds up in float32.
    assert (falls / counts - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_occlusion_refuses_a_softmax_over_one_score() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1), nn.Softmax(1))
    with pytest.raises(UsageError, match="Sequential ends in a softmax over one score, which is 1 for every image"):
        occlusion(network, torch.zeros(1, 3, 8, 8), 0, 4, 4)


def test_network_is_left_unchanged(assert_unchanged: Unchanged):
    network, images = Functions().train(), torch.randn(20, 3, 12, 12)
    before = images.clone()
    with assert_unchanged(network):
        guided = guided_backpropagation(network, images, 3)
        cam = grad_cam(network, images, [3] * 20)
        covered = occlusion(network, images, 3, side=4, stride=4)
    assert torch.equal(images, before)
    assert [tuple(found.shape) for found in (guided, cam, covered)] == [(20, 3, 12, 12), (20, 10, 10), (20, 3, 3)]
    assert not any(found.requires_grad for found in (guided, cam, covered))
    network.eval()
    maps = network.conv(network.norm(images).relu()).relu()
    expected = (maps * network.head.weight[3][:, None, None] / 100).sum(1).relu()
    assert torch.allclose(cam, expected, atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(guided_backpropagation(network, images[0], 3), guided[:1], atol=1e-6)
        assert torch.allclose(grad_cam(network, images[0], 3), cam[:1], atol=1e-6)
        assert torch.allclose(occlusion(network, images[0], 3, side=4, stride=4), covered[:1], atol=1e-6)


def test_square_over_the_whole_image_gives_the_probability_of_a_zero_image():
    network = Functions().eval()
    found = occlusion(network, torch.randn(2, 3, 12, 12), [0, 1], side=12, stride=1)
    expected = network(torch.zeros(1, 3, 12, 12)).softmax(1)[0, :2]
    assert torch.allclose(found.flatten(), expected)


@pytest.mark.parametrize("method", [guided_backpropagation, grad_cam, lambda *asked: occlusion(*asked, 4, 4)])
def test_invalid_arguments_are_rejected(method: Callable[..., Tensor], assert_unchanged: Unchanged):
    network, images = Functions(), torch.randn(2, 3, 12, 12)
    with assert_unchanged(network):
        with pytest.raises(UsageError, match="class=4 is out of range; the network has 4 classes: use 0 to 3"):
            method(network, images, [0, 4])
        with pytest.raises(UsageError, match="3 classes for 2 images; give one for each, or one for all"):
            method(network, images, [0, 1, 2])
    with pytest.raises(UsageError, match="Conv2d gives 4×10×10 for an image, not one score for each class"):
        method(nn.Conv2d(3, 4, 3), images, 0)


@pytest.mark.parametrize(("side", "stride"), [(13, 1), (0, 1), (4, 0)])
def test_squares_that_do_not_fit_are_rejected(side: int, stride: int):
    with pytest.raises(UsageError, match=f"side={side} with stride={stride} does not fit images of 12×14"):
        occlusion(Functions(), torch.zeros(1, 3, 12, 14), 0, side, stride)


def test_grad_cam_rejects_networks_without_feature_maps():
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 4))
    with pytest.raises(UsageError, match="needs feature maps larger than 1×1"):
        grad_cam(network, torch.zeros(1, 3, 3, 3), 0)


class SqueezeExcite(nn.Module):
    """Gates computed by 1×1 convolutions of the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.expand(self.reduce(maps.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ChannelsLast(nn.Module):
    """A dense layer over channels-last maps, as in ConvNeXt and Swin."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.dense = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.permute(0, 2, 3, 1)
        return F.gelu(self.dense(self.norm(maps))).add(maps)


class Tokens(nn.Module):
    """A transformer with or without a class token, which alone is classified."""

    def __init__(self, has_class_token: bool) -> None:
        super().__init__()
        self.has_class_token = has_class_token
        self.patches, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.has_class_token:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            inside = norm(tokens)
            tokens = tokens + block(inside, inside, inside, need_weights=False)[0]
        tokens = self.norm(tokens)
        return self.head(tokens[:, 0] if self.has_class_token else tokens.mean(1))


def pooled(*layers: nn.Module) -> nn.Module:
    """`layers` and a head with a 1×1 convolution of 1×1 maps, as in MobileNetV3."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(6, 4)]
    return nn.Sequential(*layers, *head)


CHOSEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "squeeze and excite": (lambda: pooled(nn.Conv2d(3, 8, 3), SqueezeExcite(8)), "1.mul"),
    "head of 1×1 maps": (lambda: pooled(nn.Conv2d(3, 8, 3), nn.SiLU()), "1"),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelsLast(8), nn.Flatten(), nn.Linear(128, 4)),
        "1.add",
    ),
    "tokens": (lambda: Tokens(has_class_token=False), "norm"),
    "class token": (lambda: Tokens(has_class_token=True), "norms.1"),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_grad_cam_reads_the_last_maps_larger_than_one_pixel(name: str, assert_unchanged: Unchanged):
    torch.manual_seed(3)
    make, chosen = CHOSEN[name]
    network, images, classes = make().double().eval(), pictures(16), torch.tensor([0, 3, 1])
    known = list_layers(network, tuple(images.shape))
    layer, maps = last_feature_map_layer(known)
    assert layer.name == chosen
    with assert_unchanged(network):
        found = grad_cam(network, images, classes)
    # Equations 1 and 2 of the paper, on the layer's own output.
    outputs: list[Tensor] = []
    with hook_layers(network, known, {chosen: outputs.append}):
        score = network(images).gather(1, classes[:, None]).sum()
    gradient, output = torch.autograd.grad(score, outputs[0])[0], outputs[0].detach()
    if output.ndim == 4:
        gradient, output = (one.flatten(2) if one.shape[1] == 8 else one.flatten(1, 2).mT for one in (gradient, output))
    else:
        gradient, output = (one[:, -16:].mT for one in (gradient, output))
    expected = (gradient.mean(2, keepdim=True) * output).sum(1).relu()
    assert found.shape == (3, *maps.size)
    assert found.max() > 0
    assert torch.allclose(found.flatten(1), expected, atol=1e-12)


def test_grad_cam_rejects_maps_of_one_pixel_and_tokens_in_an_unknown_order():
    shuffled = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (12, 16)), nn.Linear(16, 8), nn.Flatten(), nn.Linear(96, 4))
    small = nn.Sequential(nn.Conv2d(3, 8, 8), nn.Flatten(), nn.Linear(8, 4))
    for network in (shuffled, small):
        with pytest.raises(UsageError, match="needs feature maps larger than 1×1, or tokens with known positions"):
            grad_cam(network, torch.zeros(1, 3, 8, 8), 0)


def test_grad_cam_rejects_a_last_stage_of_unknown_positions():
    class Reordered(Tokens):
        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).transpose(1, 2).roll(1, 1)
            return self.head(self.norm(tokens)).mean(1)

    with pytest.raises(UsageError, match="outputs in the image, which are not known for layer=head"):
        grad_cam(Reordered(has_class_token=False), torch.zeros(1, 3, 16, 16), 0)


def test_guided_backpropagation_without_relu_says_that_it_is_the_gradient():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with pytest.warns(
        UserWarning, match="Sequential has no ReLU, so guided backpropagation returns the plain gradient"
    ):
        found = guided_backpropagation(network, images.detach(), 1)
    (expected,) = torch.autograd.grad(network(images)[:, 1].sum(), images)
    torch.testing.assert_close(found, expected)
