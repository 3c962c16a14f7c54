"""The networks by name, with the facts that training and its reader need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka.errors import UsageError
from svertka.graph.trace import Trace, trace
from svertka.models.airbench import AirBench
from svertka.models.alexnet import AlexNet, AlexNetOWT
from svertka.models.efficientnet import EfficientNetLite0
from svertka.models.googlenet import GoogLeNet, GoogLeNetBN
from svertka.models.inception import InceptionV3
from svertka.models.inception_v4 import InceptionResNetV2, InceptionV4
from svertka.models.lenet import LeNet5
from svertka.models.mlp import MLP
from svertka.models.resnet import RESNETS, ResNet, SmallResNet
from svertka.models.squeezenet import SqueezeNet
from svertka.models.vgg import VGG, starting_tensors
from svertka.models.zfnet import ZFNet


@dataclass(frozen=True)
class Model:
    """A network as published.

    `builder`: (classes, channels, size) to the network. `channels`, `size`, `classes`: the paper's. `resize`: side to
    which pictures are resized before they are cropped or padded to `size`. `smallest`: of the sizes it can take.
    `mean`, `std`: what every channel is normalised with, of full scale; None: measured on the training pictures.
    `take_over`: from a trained network of the same family to the tensors that a deeper one starts from, by name.
    `prepare`: what it does to fresh weights with training pictures, (N, C, H, W) normalised, before the first step.
    """

    name: str
    builder: Callable[[int, int, int], nn.Module]
    channels: int
    size: int
    resize: int
    classes: int
    smallest: int
    source: str
    published: str | None = None
    mean: float | None = None
    std: float | None = None
    take_over: Callable[[Any, Any], dict[str, torch.Tensor]] | None = None
    prepare: Callable[[Any, torch.Tensor], None] | None = None

    @property
    def input(self) -> tuple[int, int, int]:
        """Shape of one picture as in the paper, (channels, size, size)."""
        return self.channels, self.size, self.size

    def resize_for(self, size: int) -> int:
        """`resize` in the paper's proportion to another input `size`, pixels."""
        return round(size * self.resize / self.size)

    def build(self, classes: int | None = None, channels: int | None = None, size: int | None = None) -> nn.Module:
        """The network with fresh random weights, returning logits (B, classes); None is the paper's value.

        Raises:
            UsageError: `size` is too small, or `classes` below 1, or `channels` neither 1 nor 3.
        """
        classes = self.classes if classes is None else classes
        channels = self.channels if channels is None else channels
        size = self.size if size is None else size
        if size < self.smallest:
            raise UsageError(f"size={size} is too small for {self.name}; use at least {self.smallest} pixels")
        if classes < 1:
            raise UsageError(f"classes={classes} must be at least 1")
        if channels not in (1, 3):
            raise UsageError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
        return self.builder(classes, channels, size)


def facts(model: Model) -> dict[str, Any]:
    """What `svertka models` says of a network in the paper's form: name, parameters, multiply_adds, input, source …

    `parameters`, `multiply_adds`: what inference takes; `training_parameters`: with those of auxiliary classifiers.
    `input`: (channels, size, size). `published`: the result that the paper reports, or None.
    """
    parameters, training_parameters, multiply_adds = SIZES[model.name]
    return {
        "name": model.name,
        "parameters": parameters,
        "training_parameters": training_parameters,
        "multiply_adds": multiply_adds,
        "input": list(model.input),
        "source": model.source,
        "published": model.published,
    }


def _read_sizes() -> dict[str, tuple[int, ...]]:
    """The lines of sizes.tsv: name, parameters in inference, in training, multiply-adds."""
    lines = Path(__file__).with_name("sizes.tsv").read_text(encoding="utf-8").splitlines()
    return {name: tuple(map(int, numbers)) for name, *numbers in (line.split("\t") for line in lines)}


# Written down, since to build all networks and count takes ten seconds; a test holds them against that count.
SIZES = _read_sizes()


def traced(model: Model) -> Trace:
    """The layers of a network in the paper's form."""
    with torch.device("meta"):  # no weights
        network = model.build()
    return trace(network, (1, *model.input))


def find(name: str) -> Model:
    """The network called `name`.

    Raises:
        UsageError: there is none; the message names those that are spelt nearly so, or all.
    """
    if name in MODELS:
        return MODELS[name]
    names = get_close_matches(name.lower(), MODELS) or list(MODELS)
    raise UsageError(f"model={name} is not known; use {' or '.join(names)}")


def _imagenet(
    name: str,
    builder: Callable[[int, int, int], nn.Module],
    paper: str,
    published: str | None,
    smallest: int = 8,
    size: int = 224,
    resize: int = 256,
) -> Model:
    """A network for photographs of a thousand classes."""
    return Model(name, builder, 3, size, resize, 1000, smallest, paper, published)


def _vgg(name: str, configuration: str, published: str | None, *, batch_norm: bool = False) -> Model:
    """A network of Simonyan & Zisserman's table 1, and what it scores in table 4."""
    model = _imagenet(name, partial(VGG, configuration, batch_norm=batch_norm), VGG_PAPER, published)
    return replace(model, take_over=starting_tensors)


def _resnet(layers: int, published: str, *, shortcuts: bool = True) -> Model:
    """He et al.'s network of so many layers for photographs, or the same without shortcuts."""
    block, blocks = RESNETS[layers]
    name = f"{'resnet' if shortcuts else 'plain'}{layers}"
    return _imagenet(name, partial(ResNet, block, blocks, shortcuts=shortcuts), f"{RESNET_PAPER}, table 1", published)


def _cifar_resnet(layers: int, published: str | None, *, shortcuts: bool = True) -> Model:
    """He et al.'s network of so many layers for 32×32 pixels, or the same without shortcuts."""
    name = f"{'resnet' if shortcuts else 'plain'}{layers}"
    builder = partial(SmallResNet, (layers - 2) // 6, shortcuts=shortcuts)
    return Model(name, builder, 3, 32, 32, 10, 8, f"{RESNET_PAPER}, §4.2", published)


ALEXNET_PAPER = "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks"
VGG_PAPER = "Simonyan & Zisserman 2014, Very deep convolutional networks, table 1"
RESNET_PAPER = "He et al. 2015, Deep residual learning for image recognition"
LENET_PAPER = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
INCEPTION_V4_PAPER = "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections"

# Errors are those of one network on ImageNet's 50,000 validation pictures, unless they say otherwise.
MODELS = {
    model.name: model
    for model in (
        Model("mlp", MLP, 1, 28, 28, 10, 1, f"{LENET_PAPER}, §III.C.5", "4.7 % test error on MNIST"),
        Model(
            name="lenet5",
            builder=LeNet5,
            channels=1,
            size=32,
            resize=28,
            classes=10,
            smallest=16,
            source=f"{LENET_PAPER}, §II.B",
            published="0.95 % test error on MNIST without distortions",
            mean=0.1 / 1.275,  # so that 0 becomes −0.1 and 255 becomes 1.175 (§II.B)
            std=1 / 1.275,
        ),
        _imagenet("alexnet", AlexNet, ALEXNET_PAPER, "18.2 % top-5", 8, size=227),
        _imagenet(
            "alexnet_owt",
            AlexNetOWT,
            "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks",
            None,
            smallest=15,
        ),
        _imagenet(
            "zfnet",
            ZFNet,
            "Zeiler & Fergus 2013, Visualizing and understanding convolutional networks, figure 3",
            "16.5 % top-5",
            smallest=47,
        ),
        _vgg("vgg11", "A", "10.4 % top-5"),
        _vgg("vgg11_lrn", "A-LRN", "10.5 % top-5"),
        _vgg("vgg13", "B", "9.9 % top-5"),
        _vgg("vgg16_1x1", "C", "8.8 % top-5"),
        _vgg("vgg16", "D", "8.1 % top-5"),
        _vgg("vgg19", "E", "8.0 % top-5"),
        _vgg("vgg11_bn", "A", None, batch_norm=True),
        _vgg("vgg13_bn", "B", None, batch_norm=True),
        _vgg("vgg16_bn", "D", None, batch_norm=True),
        _vgg("vgg19_bn", "E", None, batch_norm=True),
        _imagenet(
            "googlenet",
            GoogLeNet,
            "Szegedy et al. 2014, Going deeper with convolutions",
            "10.07 % top-5",
        ),
        _imagenet(
            "googlenet_bn",
            GoogLeNetBN,
            "Szegedy et al. 2014, with Ioffe & Szegedy 2015, Batch normalization, and changes of the published weights",
            None,
        ),
        _imagenet(
            "inception_v3",
            InceptionV3,
            "Szegedy et al. 2015, Rethinking the Inception architecture for computer vision",
            "5.6 % top-5",
            smallest=75,
            size=299,
            resize=342,
        ),
        _imagenet("inception_v4", InceptionV4, INCEPTION_V4_PAPER, "5.0 % top-5", 75, 299, 342),
        _imagenet("inception_resnet_v2", InceptionResNetV2, INCEPTION_V4_PAPER, "4.9 % top-5", 75, 299, 342),
        _resnet(18, "27.9 % top-1, ten crops"),
        _resnet(34, "5.71 % top-5"),
        _resnet(50, "5.25 % top-5"),
        _resnet(101, "4.60 % top-5"),
        _resnet(152, "4.49 % top-5"),
        _resnet(18, "27.9 % top-1, ten crops", shortcuts=False),
        _resnet(34, "10.0 % top-5, ten crops", shortcuts=False),
        _cifar_resnet(20, "8.75 % test error on CIFAR-10"),
        _cifar_resnet(32, "7.51 % test error on CIFAR-10"),
        _cifar_resnet(44, "7.17 % test error on CIFAR-10"),
        _cifar_resnet(56, "6.97 % test error on CIFAR-10"),
        _cifar_resnet(110, "6.43 % test error on CIFAR-10"),
        _cifar_resnet(1202, "7.93 % test error on CIFAR-10"),
        *(_cifar_resnet(layers, None, shortcuts=False) for layers in (20, 32, 44, 56, 110)),
        _imagenet(
            "squeezenet1_1",
            SqueezeNet,
            "Iandola et al. 2016, SqueezeNet, in its version 1.1",
            "19.7 % top-5",
            smallest=17,
        ),
        _imagenet(
            "efficientnet_lite0",
            EfficientNetLite0,
            "Tan & Le 2019, EfficientNet, in the form Lite of 2020",
            "24.9 % top-1",
        ),
        Model(
            name="airbench",
            builder=AirBench,
            channels=3,
            size=32,
            resize=32,
            classes=10,
            smallest=9,
            source="Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, §3",
            published="6 % test error on CIFAR-10, averaged over six views",
            prepare=AirBench.whiten,
        ),
    )
}
