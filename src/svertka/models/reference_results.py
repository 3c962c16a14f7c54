"""Reported errors of the networks, from papers and publishers of weights, and how each was measured.

Checked against copies of the papers' tables: AlexNet and ZFNet, the VGGs (tables 3, 4 and 6), GoogLeNet, Inception-v3
over 12 and 144 crops, Inception-v4 and Inception-ResNet-v2, the ResNets of ImageNet and the plain networks (top-1).
From memory of the papers: Inception-v3 over one crop, all on MNIST and CIFAR-10, SqueezeNet 1.0, the top-5 of plain-34.
"""

from dataclasses import dataclass

from svertka.models.published_weights import PRETRAINED

IMAGENET_VAL, IMAGENET_VAL_FILTERED = "ImageNet val", "ImageNet val without blacklisted images"


@dataclass(frozen=True)
class ReferenceResult:
    """The reported error of a network, or of an ensemble of it.

    Attributes:
        top1_error, top5_error: Per cent; None if not reported.
        crops: "1", "6", "10", "12", "144", or "dense" (all positions, and mirrored); "" if not reported.
        scales: Lengths of the images' shorter side, pixels; empty if not reported.
        networks: Size of the ensemble, whose probabilities are averaged.
        dataset: Data set and split.
        note: How the evaluated network differs from the one here.
    """

    top1_error: float | None
    top5_error: float | None
    crops: str
    source: str
    scales: tuple[int, ...] = ()
    networks: int = 1
    dataset: str = IMAGENET_VAL
    note: str = ""

    @property
    def protocol(self) -> str:
        """The evaluation in words: "dense at 256, 384, 512 px", "10 crops, 5 networks"."""
        words = {"": "not reported", "1": "1 crop", "dense": "dense"}.get(self.crops, f"{self.crops} crops")
        if self.scales:
            words += f" at {', '.join(map(str, self.scales))} px"
        return words if self.networks == 1 else f"{words}, {self.networks} networks"


ALEXNET, ZEILER, SIMONYAN = "Krizhevsky et al. 2012", "Zeiler & Fergus 2013", "Simonyan & Zisserman 2014"
SZEGEDY, HE = "Szegedy et al. 2014", "He et al. 2015"
INCEPTION, INCEPTION_V4 = "Szegedy et al. 2015", "Szegedy et al. 2016"
VGG_SCALES, RESNET_SCALES = (256, 384, 512), (224, 256, 384, 480, 640)
SHORTCUTS_A = "parameter-free shortcuts (option A); here they are projections (option B)"


def _vgg(
    one: tuple[float, float, int], several: tuple[float, float, tuple[int, ...]] | None = None
) -> tuple[ReferenceResult, ...]:
    """Return the best result of table 3, at one scale, and of table 4, at several; each is (top-1, top-5, scale)."""
    top1, top5, scale = one
    first = ReferenceResult(top1, top5, "dense", f"{SIMONYAN}, table 3", (scale,))
    if several is None:
        return (first,)
    top1, top5, scales = several
    return first, ReferenceResult(top1, top5, "dense", f"{SIMONYAN}, table 4", scales)


def _resnet(ten: tuple[float, float], dense: tuple[float, float]) -> tuple[ReferenceResult, ...]:
    return (
        ReferenceResult(*ten, "10", f"{HE}, table 3"),
        ReferenceResult(*dense, "dense", f"{HE}, table 4", RESNET_SCALES),
    )


def _small(error: float) -> tuple[ReferenceResult, ...]:
    return (ReferenceResult(error, None, "1", f"{HE}, table 6", dataset="CIFAR-10 test"),)


def _inception_v4(
    one: tuple[float, float], twelve: tuple[float, float], many: tuple[float, float]
) -> tuple[ReferenceResult, ...]:
    return (
        ReferenceResult(*one, "1", f"{INCEPTION_V4}, table 2", dataset=IMAGENET_VAL_FILTERED),
        ReferenceResult(*twelve, "12", f"{INCEPTION_V4}, table 3"),
        ReferenceResult(*many, "144", f"{INCEPTION_V4}, table 4"),
    )


def _mnist(error: float, section: str, note: str = "") -> ReferenceResult:
    return ReferenceResult(error, None, "1", f"LeCun et al. 1998, {section}", dataset="MNIST test", note=note)


# Model → results reported in papers for this network, the simplest evaluation first.
REFERENCE_RESULTS: dict[str, tuple[ReferenceResult, ...]] = {
    "mlp": (_mnist(4.7, "§III.C.5"),),
    "lenet5": (_mnist(0.95, "§III.B"), _mnist(0.8, "§III.B", "trained with distorted images, too")),
    "alexnet": (
        ReferenceResult(40.7, 18.2, "10", f"{ALEXNET}, table 2", (256,)),
        ReferenceResult(38.1, 16.4, "10", f"{ALEXNET}, table 2", (256,), networks=5),
    ),
    "zfnet": (
        ReferenceResult(38.4, 16.5, "", f"{ZEILER}, table 2"),
        ReferenceResult(36.7, 15.3, "", f"{ZEILER}, table 2", networks=5),
    ),
    "vgg11": _vgg((29.6, 10.4, 256)),
    "vgg11_lrn": _vgg((29.7, 10.5, 256)),
    "vgg13": _vgg((28.7, 9.9, 256), (28.2, 9.6, (224, 256, 288))),
    "vgg16_1x1": _vgg((27.3, 8.8, 384), (26.3, 8.2, VGG_SCALES)),
    "vgg16": (
        *_vgg((25.6, 8.1, 384), (24.8, 7.5, VGG_SCALES)),
        ReferenceResult(24.0, 7.1, "dense", f"{SIMONYAN}, table 6", VGG_SCALES, networks=2, note="with vgg19"),
    ),
    "vgg19": (
        *_vgg((25.5, 8.0, 384), (24.8, 7.5, VGG_SCALES)),
        ReferenceResult(24.0, 7.1, "dense", f"{SIMONYAN}, table 6", VGG_SCALES, networks=2, note="with vgg16"),
    ),
    "googlenet": tuple(
        ReferenceResult(None, error, crops, f"{SZEGEDY}, table 3", networks=networks)
        for networks, crops, error in (
            (1, "1", 10.07),
            (1, "10", 9.15),
            (1, "144", 7.89),
            (7, "1", 8.09),
            (7, "10", 7.62),
            (7, "144", 6.67),
        )
    ),
    "inception_v3": (
        ReferenceResult(21.2, 5.6, "1", f"{INCEPTION}, table 3"),
        ReferenceResult(19.47, 4.48, "12", f"{INCEPTION}, table 4"),
        ReferenceResult(18.77, 4.2, "144", f"{INCEPTION}, table 4"),
    ),
    "inception_v4": _inception_v4((20.0, 5.0), (18.7, 4.2), (17.7, 3.8)),
    "inception_resnet_v2": _inception_v4((19.9, 4.9), (18.7, 4.1), (17.8, 3.7)),
    "resnet18": (ReferenceResult(27.88, None, "10", f"{HE}, table 2", note=SHORTCUTS_A),),
    "resnet34": _resnet((24.52, 7.46), (21.84, 5.71)),
    "resnet50": _resnet((22.85, 6.71), (20.74, 5.25)),
    "resnet101": _resnet((21.75, 6.05), (19.87, 4.60)),
    "resnet152": _resnet((21.43, 5.71), (19.38, 4.49)),
    "plain18": (ReferenceResult(27.94, None, "10", f"{HE}, table 2"),),
    "plain34": (ReferenceResult(28.54, 10.02, "10", f"{HE}, table 3"),),
    "resnet20": _small(8.75),
    "resnet32": _small(7.51),
    "resnet44": _small(7.17),
    "resnet56": _small(6.97),
    "resnet110": _small(6.43),
    "resnet1202": _small(7.93),
    "squeezenet1_1": (
        ReferenceResult(
            42.5,
            19.7,
            "",
            "Iandola et al. 2016, table 2",
            note="version 1.0; 1.1 claims the same accuracy with less computation",
        ),
    ),
    "airbench": (
        ReferenceResult(
            6.0, None, "6", "Jordan 2024, §3", dataset="CIFAR-10 test", note="shifted by a pixel, and mirrored"
        ),
    ),
}


def reference_results(name: str) -> tuple[ReferenceResult, ...]:
    """Return the reported errors of the model called `name`: those of papers, then those of its published weights."""
    of_weights = (
        ReferenceResult(
            one.top1_error,
            one.top5_error,
            "1",
            one.source,
            (one.preprocess.resize,),
            note=f"{name}:{weights}",
        )
        for weights, one in PRETRAINED.get(name, {}).items()
    )
    return *REFERENCE_RESULTS.get(name, ()), *of_weights
