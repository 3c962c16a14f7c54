"""The networks by name, with their sources and default settings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svertka.data.band_ranges import MAX_BANDS
from svertka.data.preprocessing import Preprocess
from svertka.device import meta_device
from svertka.errors import UsageError
from svertka.graph.summary import Trace, trace
from svertka.models.airbench import AirBench
from svertka.models.alexnet import AlexNet, AlexNetOWT
from svertka.models.efficientnet_lite import EfficientNetLite0
from svertka.models.external_builder import BuilderRecord
from svertka.models.googlenet import GoogLeNet, GoogLeNetBN
from svertka.models.inception_v3 import InceptionV3
from svertka.models.inception_v4_and_resnet import InceptionResNetV2, InceptionV4
from svertka.models.lenet import LeNet5
from svertka.models.mlp import MLP
from svertka.models.reference_results import reference_results
from svertka.models.resnet import RESNETS, CIFARResNet, ResNet
from svertka.models.squeezenet import SqueezeNet
from svertka.models.vgg import VGG, warm_start_tensors
from svertka.models.zfnet import ZFNet
from svertka.text_width import shorten


@dataclass(frozen=True)
class Model:
    """A network that is trained: a published one of the registry, or one of somebody else (`models.external`).

    Attributes:
        builder: (classes, channels, size) → the network.
        channels, size, classes: Those of the paper; `size` is the height and width of the images, pixels.
        resize: Height and width to which images are resized before they are cropped or padded to `size`, pixels.
        min_size: The smallest `size` that the network supports.
        source: Paper, and where in it.
        mean, std: Normalization of every channel, where 1 is full scale. None: computed from the training images.
        warm_start: (trained network, deeper network of the same family) → tensors that the deeper one starts from.
        init_from_data: (network, training images (N, C, H, W), normalized) → None; initializes the network before the
            first step.
        reference: How config.json names a network that is not in the registry. None: a network of the registry.
        preprocess: Published preprocessing of a network that is not in the registry. None: unknown.
        is_exported: The network is an exported graph, which ends in the head that it was trained with.
        is_builder_changed: The code that builds the network of a run is not that which it was trained with.
        has_own_weights: The network is built with weights that training starts from, which may be pretrained.
        draws_weights: The network, which has batch norm, is built with other random weights each time.
    """

    name: str
    builder: Callable[[int, int, int], nn.Module]
    channels: int
    size: int
    resize: int
    classes: int
    min_size: int
    source: str
    mean: float | None = None
    std: float | None = None
    warm_start: Callable[[Any, Any], dict[str, torch.Tensor]] | None = None
    init_from_data: Callable[[Any, torch.Tensor], None] | None = None
    reference: BuilderRecord | None = None
    preprocess: Preprocess | None = None
    has_own_weights: bool = False
    draws_weights: bool = False
    is_exported: bool = False
    is_builder_changed: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of an image in the paper, (channels, size, size)."""
        return self.channels, self.size, self.size

    def resize_for(self, size: int) -> int:
        """Return `resize` for another `size`, in the paper's proportion, pixels."""
        return round(size * self.resize / self.size)

    def build(self, classes: int | None = None, channels: int | None = None, size: int | None = None) -> nn.Module:
        """Build the network with initial weights; it returns logits (B, classes).

        Args:
            classes, channels, size: None is the paper's value.

        Raises:
            UsageError: `size` is less than `min_size`, `classes` is less than 1, or `channels` is not 1 to 16.
        """
        classes = self.classes if classes is None else classes
        channels = self.channels if channels is None else channels
        size = self.size if size is None else size
        if size < self.min_size:
            raise UsageError(f"size={size} is too small for {self.name}; use at least {self.min_size} pixels")
        if classes < 1:
            raise UsageError(f"classes={classes} must be at least 1")
        if not 1 <= channels <= MAX_BANDS:
            raise UsageError(f"channels={channels} must be 1 (gray), 3 (RGB) or a number of bands up to {MAX_BANDS}")
        return self.builder(classes, channels, size)


def describe_model(model: Model) -> dict[str, Any]:
    """Return the JSON object of `svertka models` for a network as in its paper or package.

    Keys: name; parameters and multiply_adds in inference; training_parameters, including auxiliary classifiers; input,
    [channels, size, size]; source; and published, the reported errors with the fields of ReferenceResult.
    """
    parameters, training_parameters, multiply_adds = SIZES.get(model.name) or _count(model)
    return {
        "name": model.name,
        "parameters": parameters,
        "training_parameters": training_parameters,
        "multiply_adds": multiply_adds,
        "input": list(model.input_shape),
        "source": model.source,
        "published": [asdict(result) | {"protocol": result.protocol} for result in reference_results(model.name)],
    }


def _count(model: Model) -> tuple[int, int, int]:
    """Return parameters in inference, parameters in training, and multiply-adds of a network, as in its paper."""
    with meta_device():
        network = model.build()
    layers = trace(network, (1, *model.input_shape))
    return layers.parameters, sum(parameter.numel() for parameter in network.parameters()), layers.multiply_adds


def _read_sizes() -> dict[str, tuple[int, ...]]:
    """Read sizes.tsv: name → parameters in inference, parameters in training, multiply-adds."""
    lines = Path(__file__).with_name("sizes.tsv").read_text(encoding="utf-8").splitlines()
    return {name: tuple(map(int, numbers)) for name, *numbers in (line.split("\t") for line in lines)}


# Stored in a file, since building and counting all networks takes ten seconds; a test compares it with the count.
SIZES = _read_sizes()


def trace_model(model: Model) -> Trace:
    """Trace a network as in its paper, without allocating its weights."""
    with meta_device():
        network = model.build()
    return trace(network, (1, *model.input_shape))


def find_model(name: str) -> Model:
    """Return the model called `name`.

    Raises:
        UsageError: There is none; the message lists models with similar names.
    """
    if name in MODELS:
        return MODELS[name]
    if name.endswith(".py"):
        raise UsageError(f"model={shorten(name, 200)} names no function; write {shorten(name, 200)}:FUNCTION")
    names = get_close_matches(name.lower(), MODELS)
    hint = f"use {' or '.join(names)}" if names else "`svertka models` lists those that are"
    raise UsageError(f"model={shorten(name, 200)} is not known; {hint}")


def _imagenet(
    name: str,
    builder: Callable[[int, int, int], nn.Module],
    paper: str,
    min_size: int = 8,
    size: int = 224,
    resize: int = 256,
) -> Model:
    """Return a model for ImageNet: RGB images of 1000 classes."""
    return Model(name, builder, 3, size, resize, 1000, min_size, paper)


def _vgg(name: str, configuration: str, *, batch_norm: bool = False) -> Model:
    """Return a model of Simonyan & Zisserman 2014, table 1."""
    model = _imagenet(name, partial(VGG, configuration, batch_norm=batch_norm), VGG_PAPER)
    return replace(model, warm_start=warm_start_tensors)


def _resnet(layers: int, *, shortcuts: bool = True) -> Model:
    """Return He et al.'s network for ImageNet with `layers` layers, or the plain network."""
    block, depths = RESNETS[layers]
    name = f"{'resnet' if shortcuts else 'plain'}{layers}"
    return _imagenet(name, partial(ResNet, block, depths, shortcuts=shortcuts), f"{RESNET_PAPER}, table 1")


def _cifar_resnet(layers: int, *, shortcuts: bool = True) -> Model:
    """Return He et al.'s network for CIFAR-10 with `layers` layers, or the plain network."""
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
            min_size=16,
            source=f"{LENET_PAPER}, §II.B",
            mean=0.1 / 1.275,  # so that 0 becomes −0.1 and 255 becomes 1.175 (§II.B)
            std=1 / 1.275,
        ),
        _imagenet("alexnet", AlexNet, ALEXNET_PAPER, 8, size=227),
        _imagenet(
            "alexnet_owt",
            AlexNetOWT,
            "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks",
            min_size=15,
        ),
        _imagenet(
            "zfnet",
            ZFNet,
            "Zeiler & Fergus 2013, Visualizing and understanding convolutional networks, figure 3",
            min_size=47,
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
            "Szegedy et al. 2014, with Ioffe & Szegedy 2015, Batch normalization, as in the published PyTorch weights",
        ),
        _imagenet(
            "inception_v3",
            InceptionV3,
            "Szegedy et al. 2015, Rethinking the Inception architecture for computer vision",
            min_size=75,
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
            min_size=17,
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
            min_size=9,
            source="Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU, §3",
            init_from_data=AirBench.whiten,
        ),
    )
}
