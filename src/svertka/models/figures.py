"""The errors that the papers and the publishers of weights report for the networks, and how each was measured.

Compared with copies of the papers' tables that others published: AlexNet and ZFNet, the VGGs (tables 3, 4 and 6),
GoogLeNet, Inception-v3 over 12 and 144 crops, Inception-v4 and Inception-ResNet-v2, the ResNets of ImageNet and the
plain networks (top-1). From memory of the papers: Inception-v3 over one crop, all on MNIST and CIFAR-10, SqueezeNet
1.0, the top-5 of plain-34.
"""

from dataclasses import dataclass

from svertka.models.published import PUBLISHED

IMAGENET, SIFTED = "ImageNet val", "ImageNet val without its blacklist"


@dataclass(frozen=True)
class Figure:
    """What a network, or the mean of several alike, is said to have got wrong.

    `top1_error`, `top5_error`: per cent; None where the source does not say. `crops`: "1", "6", "10", "12", "144", or
    "dense", all positions and mirrored too; "" where the source does not say. `scales`: lengths of the shorter side,
    pixels; none: not said. `networks`: whose probabilities were averaged. `pictures`: the data set and its part.
    `note`: how what was judged differs from the network here.
    """

    top1_error: float | None
    top5_error: float | None
    crops: str
    source: str
    scales: tuple[int, ...] = ()
    networks: int = 1
    pictures: str = IMAGENET
    note: str = ""

    @property
    def protocol(self) -> str:
        """In words: "dense at 256, 384, 512 px", "10 crops, 5 networks"."""
        said = {"": "not said", "1": "1 crop", "dense": "dense"}.get(self.crops, f"{self.crops} crops")
        if self.scales:
            said += f" at {', '.join(map(str, self.scales))} px"
        return said if self.networks == 1 else f"{said}, {self.networks} networks"


ALEXNET, ZEILER, SIMONYAN = "Krizhevsky et al. 2012", "Zeiler & Fergus 2013", "Simonyan & Zisserman 2014"
SZEGEDY, HE = "Szegedy et al. 2014", "He et al. 2015"
INCEPTION, INCEPTION_V4 = "Szegedy et al. 2015", "Szegedy et al. 2016"
VGG_SCALES, RESNET_SCALES = (256, 384, 512), (224, 256, 384, 480, 640)
SHORTCUTS_A = "shortcuts without weights (A), where ours have projections (B)"


def _vgg(
    one: tuple[float, float, int], several: tuple[float, float, tuple[int, ...]] | None = None
) -> tuple[Figure, ...]:
    """At the best single scale of table 3, and at the best several of table 4."""
    top1, top5, scale = one
    first = Figure(top1, top5, "dense", f"{SIMONYAN}, table 3", (scale,))
    if several is None:
        return (first,)
    top1, top5, scales = several
    return first, Figure(top1, top5, "dense", f"{SIMONYAN}, table 4", scales)


def _resnet(ten: tuple[float, float], dense: tuple[float, float]) -> tuple[Figure, ...]:
    return (
        Figure(*ten, "10", f"{HE}, table 3"),
        Figure(*dense, "dense", f"{HE}, table 4", RESNET_SCALES),
    )


def _small(error: float) -> tuple[Figure, ...]:
    return (Figure(error, None, "1", f"{HE}, table 6", pictures="CIFAR-10 test"),)


def _inception_v4(
    one: tuple[float, float], twelve: tuple[float, float], many: tuple[float, float]
) -> tuple[Figure, ...]:
    return (
        Figure(*one, "1", f"{INCEPTION_V4}, table 2", pictures=SIFTED),
        Figure(*twelve, "12", f"{INCEPTION_V4}, table 3"),
        Figure(*many, "144", f"{INCEPTION_V4}, table 4"),
    )


def _mnist(error: float, section: str, note: str = "") -> Figure:
    return Figure(error, None, "1", f"LeCun et al. 1998, {section}", pictures="MNIST test", note=note)


# network → figures, the plainest protocol first; of those that papers report what was measured with this network.
FIGURES: dict[str, tuple[Figure, ...]] = {
    "mlp": (_mnist(4.7, "§III.C.5"),),
    "lenet5": (_mnist(0.95, "§III.B"), _mnist(0.8, "§III.B", "trained on distorted pictures, too")),
    "alexnet": (
        Figure(40.7, 18.2, "10", f"{ALEXNET}, table 2", (256,)),
        Figure(38.1, 16.4, "10", f"{ALEXNET}, table 2", (256,), networks=5),
    ),
    "zfnet": (
        Figure(38.4, 16.5, "", f"{ZEILER}, table 2"),
        Figure(36.7, 15.3, "", f"{ZEILER}, table 2", networks=5),
    ),
    "vgg11": _vgg((29.6, 10.4, 256)),
    "vgg11_lrn": _vgg((29.7, 10.5, 256)),
    "vgg13": _vgg((28.7, 9.9, 256), (28.2, 9.6, (224, 256, 288))),
    "vgg16_1x1": _vgg((27.3, 8.8, 384), (26.3, 8.2, VGG_SCALES)),
    "vgg16": (
        *_vgg((25.6, 8.1, 384), (24.8, 7.5, VGG_SCALES)),
        Figure(24.0, 7.1, "dense", f"{SIMONYAN}, table 6", VGG_SCALES, networks=2, note="with vgg19"),
    ),
    "vgg19": (
        *_vgg((25.5, 8.0, 384), (24.8, 7.5, VGG_SCALES)),
        Figure(24.0, 7.1, "dense", f"{SIMONYAN}, table 6", VGG_SCALES, networks=2, note="with vgg16"),
    ),
    "googlenet": tuple(
        Figure(None, error, crops, f"{SZEGEDY}, table 3", networks=networks)
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
        Figure(21.2, 5.6, "1", f"{INCEPTION}, table 3"),
        Figure(19.47, 4.48, "12", f"{INCEPTION}, table 4"),
        Figure(18.77, 4.2, "144", f"{INCEPTION}, table 4"),
    ),
    "inception_v4": _inception_v4((20.0, 5.0), (18.7, 4.2), (17.7, 3.8)),
    "inception_resnet_v2": _inception_v4((19.9, 4.9), (18.7, 4.1), (17.8, 3.7)),
    "resnet18": (Figure(27.88, None, "10", f"{HE}, table 2", note=SHORTCUTS_A),),
    "resnet34": _resnet((24.52, 7.46), (21.84, 5.71)),
    "resnet50": _resnet((22.85, 6.71), (20.74, 5.25)),
    "resnet101": _resnet((21.75, 6.05), (19.87, 4.60)),
    "resnet152": _resnet((21.43, 5.71), (19.38, 4.49)),
    "plain18": (Figure(27.94, None, "10", f"{HE}, table 2"),),
    "plain34": (Figure(28.54, 10.02, "10", f"{HE}, table 3"),),
    "resnet20": _small(8.75),
    "resnet32": _small(7.51),
    "resnet44": _small(7.17),
    "resnet56": _small(6.97),
    "resnet110": _small(6.43),
    "resnet1202": _small(7.93),
    "squeezenet1_1": (
        Figure(42.5, 19.7, "", "Iandola et al. 2016, table 2", note="version 1.0; 1.1 claims the same for less work"),
    ),
    "airbench": (
        Figure(6.0, None, "6", "Jordan 2024, §3", pictures="CIFAR-10 test", note="shifted by a pixel, mirrored"),
    ),
}


def figures(name: str) -> tuple[Figure, ...]:
    """What is published of the network `name`: by its paper, and then of each set of weights that others published."""
    of_weights = (
        Figure(
            one.top1_error,
            one.top5_error,
            "1",
            one.source,
            (one.preprocess.resize,),
            note=f"{name}:{weights}",
        )
        for weights, one in PUBLISHED.get(name, {}).items()
    )
    return *FIGURES.get(name, ()), *of_weights
