"""The networks by name, with the facts that training and its reader need."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from svertka.models.figures import figures
from svertka.models.googlenet import GoogLeNet, GoogLeNetBN
from svertka.models.inception import InceptionV3
from svertka.models.inception_v4 import InceptionResNetV2, InceptionV4
from svertka.models.lenet import LeNet5
from svertka.models.mlp import MLP
from svertka.models.resnet import RESNETS, CIFARResNet, ResNet
from svertka.models.squeezenet import SqueezeNet
from svertka.models.vgg import VGG, warm_start_tensors
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
    `input`: (channels, size, size). `published`: what is reported of it, `figures.Figure` by its fields.
    """
    parameters, training_parameters, multiply_adds = SIZES[model.name]
    return {
        "name": model.name,
        "parameters": parameters,
        "training_parameters": training_parameters,
        "multiply_adds": multiply_adds,
        "input": list(model.input),
        "source": model.source,
        "published": [asdict(figure) | {"protocol": figure.protocol} for figure in figures(model.name)],
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
    smallest: int = 8,
    size: int = 224,
    resize: int = 256,
) -> Model:
    """A network for photographs of a thousand classes."""
    return Model(name, builder, 3, size, resize, 1000, smallest, paper)


def _vgg(name: str, configuration: str, *, batch_norm: bool = False) -> Model:
    """A network of Simonyan & Zisserman's table 1."""
    model = _imagenet(name, partial(VGG, configuration, batch_norm=batch_norm), VGG_PAPER)
    return replace(model, take_over=warm_start_tensors)


def _resnet(layers: int, *, shortcuts: bool = True) -> Model:
    """He et al.'s network of so many layers for photographs, or the same without shortcuts."""
    block, blocks = RESNETS[layers]
    name = f"{'resnet' if shortcuts else 'plain'}{layers}"
    return _imagenet(name, partial(ResNet, block, blocks, shortcuts=shortcuts), f"{RESNET_PAPER}, table 1")


def _cifar_resnet(layers: int, *, shortcuts: bool = True) -> Model:
    """He et al.'s network of so many layers for 32×32 pixels, or the same without shortcuts."""
    name = f"{'resnet' if shortcuts else 'plain'}{layers}"
    builder = partial(CIFARResNet, (layers - 2) // 6, shortcuts=shortcuts)
    return Model(name, builder, 3, 32, 32, 10, 8, f"{RESNET_PAPER}, §4.2")


ALEXNET_PAPER = "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks"
VGG_PAPER = "Simonyan & Zisserman 2014, Very deep convolutional networks, table 1"
RESNET_PAPER = "He et al. 2015, Deep residual learning for image recognition"
LENET_PAPER = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
INCEPTION_V4_PAPER = "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections"

MODELS = {
    model.name: model
    for model in (
        Model("mlp", MLP, 1, 28, 28, 10, 1, f"{LENET_PAPER}, §III.C.5"),
        Model(
            name="lenet5",
            builder=LeNet5,
            channels=1,
            size=32,
            resize=28,
            classes=10,
            smallest=16,
            source=f"{LENET_PAPER}, §II.B",
            mean=0.1 / 1.275,  # so that 0 becomes −0.1 and 255 becomes 1.175 (§II.B)
            std=1 / 1.275,
        ),
        _imagenet("alexnet", AlexNet, ALEXNET_PAPER, 8, size=227),
        _imagenet(
            "alexnet_owt",
            AlexNetOWT,
            "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks",
            smallest=15,
        ),
        _imagenet(
            "zfnet",
            ZFNet,
            "Zeiler & Fergus 2013, Visualizing and understanding convolutional networks, figure 3",
            smallest=47,
        ),
        _vgg("vgg11", "A"),
        _vgg("vgg11_lrn", "A-LRN"),
        _vgg("vgg13", "B"),
        _vgg("vgg16_1x1", "C"),
        _vgg("vgg16", "D"),
        _vgg("vgg19", "E"),
        _vgg("vgg11_bn", "A", batch_norm=True),
        _vgg("vgg13_bn", "B", batch_norm=True),
        _vgg("vgg16_bn", "D", batch_norm=True),
        _vgg("vgg19_bn", "E", batch_norm=True),
        _imagenet(
            "googlenet",
            GoogLeNet,
            "Szegedy et al. 2014, Going deeper with convolutions",
        ),
        _imagenet(
            "googlenet_bn",
            GoogLeNetBN,
            "Szegedy et al. 2014, with Ioffe & Szegedy 2015, Batch normalization, and changes of the published weights",
        ),
        _imagenet(
            "inception_v3",
            InceptionV3,
            "Szegedy et al. 2015, Rethinking the Inception architecture for computer vision",
            smallest=75,
            size=299,
            resize=342,
        ),
        _imagenet("inception_v4", InceptionV4, INCEPTION_V4_PAPER, 75, 299, 342),
        _imagenet("inception_resnet_v2", InceptionResNetV2, INCEPTION_V4_PAPER, 75, 299, 342),
        *(_resnet(layers) for layers in RESNETS),
        _resnet(18, shortcuts=False),
        _resnet(34, shortcuts=False),
        *(_cifar_resnet(layers) for layers in (20, 32, 44, 56, 110, 1202)),
        *(_cifar_resnet(layers, shortcuts=False) for layers in (20, 32, 44, 56, 110)),
        _imagenet(
            "squeezenet1_1",
            SqueezeNet,
            "Iandola et al. 2016, SqueezeNet, in its version 1.1",
            smallest=17,
        ),
        _imagenet(
            "efficientnet_lite0",
            EfficientNetLite0,
            "Tan & Le 2019, EfficientNet, in the form Lite of 2020",
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
            prepare=AirBench.whiten,
        ),
    )
}
