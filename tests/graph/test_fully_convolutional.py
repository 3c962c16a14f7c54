"""Fully convolutional networks compared with the same networks on single crops."""

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.fully_convolutional import FullyConvolutional, make_fully_convolutional
from svertka.models.head_kinds import set_head_kind
from svertka.models.registry import MODELS

Built = Callable[[str, int], tuple[nn.Module, int]]

# One of each family, at small sizes; the pools of some come to no pixel more than they need, and those of others do.
FAMILIES = {
    "mlp": 28,
    "lenet5": 32,
    "alexnet": 131,
    "alexnet_owt": 63,
    "zfnet": 63,
    "vgg11_bn": 64,
    "googlenet_bn": 64,
    "inception_v3": 75,
    "inception_resnet_v2": 75,
    "resnet18": 96,
    "resnet20": 32,
    "squeezenet1_1": 64,
    "efficientnet_lite0": 96,
    "airbench": 32,
}
DEAR = ("vgg11_bn", "inception_v3", "inception_resnet_v2")
# Networks without padding, at sizes after which the pools have no pixel left over: crops then see what windows see.
UNPADDED = {"lenet5": (32, 4), "mlp": (28, 1), "alexnet": (195, 32), "alexnet_owt": (195, 32), "vgg11": (150, 32)}


def unpadded(built: Built, name: str, size: int) -> tuple[nn.Module, int]:
    """The same without padding anywhere."""
    network, channels = built(name, size)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.padding = 0
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    return network, channels


def one_by_one(network: nn.Module, images: Tensor, made: FullyConvolutional) -> Tensor:
    """What `network` gives for each crop alone, at the places where `made` stands."""
    (height, width), (down, right) = made.window, made.stride
    rows, columns = range(0, images.shape[2] - height + 1, down), range(0, images.shape[3] - width + 1, right)
    scores = [network(images[:, :, y : y + height, x : x + width]) for y, x in product(rows, columns)]
    return torch.stack(scores, -1).view(len(images), -1, len(rows), len(columns))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.large] * (one in DEAR)) for one in FAMILIES])
@torch.inference_mode()
def test_one_window_is_the_network(built: Built, name: str) -> None:
    size = FAMILIES[name]
    network, channels = built(name, size)
    before = copy.deepcopy(network.state_dict())
    made = make_fully_convolutional(network, (1, channels, size, size))
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    # The order of the sums differs where a dense layer became a convolution.
    torch.testing.assert_close(made(images)[:, :, 0, 0], network(images), rtol=1e-5, atol=1e-5)
    assert made(F.pad(images, (0, made.stride[1], 0, 2 * made.stride[0]))).shape == (2, 4, 3, 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", UNPADDED)
@torch.inference_mode()
def test_windows_are_crops_where_nothing_is_padded(built: Built, name: str) -> None:
    size, stride = UNPADDED[name]
    network, channels = unpadded(built, name, size)
    made = make_fully_convolutional(network, (1, channels, size, size))
    assert made.stride == (stride, stride)
    generator = torch.Generator().manual_seed(1)
    images = 4 * torch.randn(1, channels, size + 2 * stride, size + stride, generator=generator)
    scores, expected = made(images), one_by_one(network, images, made)
    assert scores.shape == (1, 4, 3, 2)
    # Positions can be told apart, and float32's rounding over a dozen layers is the only difference.
    assert expected.flatten(2).std(2).min() > 100 * (scores - expected).abs().max()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_dense_evaluation_of_vgg() -> None:
    """Simonyan & Zisserman 2014, §3.2: the first dense layer as a 7×7 convolution, the others as 1×1, averaged."""
    with torch.device("meta"):
        network = MODELS["vgg11"].build(classes=5)
    # 4096 units are a hundred million weights: the same network with few of them
    network.classifier = nn.Sequential(
        nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True), nn.Linear(16, 5)
    )
    network = network.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for tensor in network.parameters():
        nn.init.normal_(tensor, std=(2 / max(tensor[0].numel(), 1)) ** 0.5)
    images = torch.rand(1, 3, 256, 300)
    scores = make_fully_convolutional(network, (1, 3, 224, 224))(images)
    maps = network.get_submodule("features")(images)
    first, second, third = (network.get_submodule(f"classifier.{index}") for index in (0, 3, 5))
    maps = F.conv2d(maps, first.weight.view(16, 512, 7, 7), first.bias).relu()  # type: ignore[operator, arg-type]
    maps = F.conv2d(maps, second.weight[:, :, None, None], second.bias).relu()  # type: ignore[index, arg-type]
    expected = F.conv2d(maps, third.weight[:, :, None, None], third.bias)  # type: ignore[index, arg-type]
    assert scores.shape == (1, 5, 2, 3)
    torch.testing.assert_close(scores.mean((2, 3)), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["cosine", "adaptation"])
@torch.inference_mode()
def test_any_head_may_follow(built: Built, head: str) -> None:
    network, _ = built("resnet20", 32)
    set_head_kind(network, MODELS["resnet20"], head, 4)  # type: ignore[arg-type]
    network.eval()
    images = torch.rand(2, 3, 32, 32)
    scores = make_fully_convolutional(network, (1, 3, 32, 32))(images)
    torch.testing.assert_close(scores[:, :, 0, 0], network(images), rtol=1e-5, atol=1e-5)


def test_weights_are_the_networks_own(built: Built) -> None:
    network, _ = built("alexnet_owt", 224)
    theirs = {tensor.data_ptr() for tensor in network.parameters()}
    made = make_fully_convolutional(network, (1, 3, 224, 224))
    assert {tensor.data_ptr() for tensor in made.parameters()} == theirs


class Squeezed(nn.Sequential):
    """A network with a gate that sees the whole image."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(5), nn.Conv2d(4, 4, 5), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(3, 4, 8), "Conv2d has 0 nn.Flatten layers"),
        (Squeezed(), "Squeezed cannot take images of any size: what 1 gives depends on the size of the whole"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no dense layer reads its flattened maps"),
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
            "a dense layer behind AdaptiveMaxPool2d cannot become a convolution",
        ),
    ],
)
def test_unsupported_networks_are_rejected(network: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_fully_convolutional(network, (1, 3, 8, 8))


def test_an_image_smaller_than_the_window_is_rejected(built: Built) -> None:
    network, _ = built("resnet20", 32)
    with pytest.raises(UsageError, match="an image of 31×40 pixels is smaller than the network's window of 32×32"):
        make_fully_convolutional(network, (1, 3, 32, 32))(torch.zeros(1, 3, 31, 40))
