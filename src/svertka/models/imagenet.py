"""What won ImageNet's challenge; its classes are the data's, in `data.imagenet`."""

from dataclasses import dataclass

from svertka.data.imagenet import CLASSES, NAMES, SENSES, Class, name_of

__all__ = ["CHALLENGE", "CLASSES", "NAMES", "SENSES", "Class", "Entry", "name_of"]


@dataclass(frozen=True)
class Entry:
    """What one entry achieved on the challenge's test pictures.

    `layers`: with weights, on the way from picture to scores; None: it did not learn its features in layers.
    `top5_error`: per cent of the pictures whose class was not among five guesses, without pictures from elsewhere.
    """

    name: str
    year: int
    layers: int | None
    top5_error: float
    source: str


# The winners of classification, and VGG, second in 2014. The entries of 2010 and 2011 are shallow: linear classifiers
# on coded local descriptors. From 2012 on each is an average over several networks.
CHALLENGE = (
    Entry("NEC-UIUC", 2010, None, 28.2, "Russakovsky et al. 2015, ImageNet large scale visual recognition challenge"),
    Entry("XRCE", 2011, None, 25.8, "Russakovsky et al. 2015, ImageNet large scale visual recognition challenge"),
    Entry("AlexNet", 2012, 8, 16.4, "Krizhevsky et al. 2012, ImageNet classification with deep CNNs, table 2"),
    Entry("ZFNet", 2013, 8, 11.7, "Russakovsky et al. 2015, as Clarifai; Zeiler & Fergus 2013"),
    Entry("VGG", 2014, 19, 7.3, "Simonyan & Zisserman 2014, Very deep convolutional networks, table 7"),
    Entry("GoogLeNet", 2014, 22, 6.7, "Szegedy et al. 2014, Going deeper with convolutions, table 2"),
    Entry("ResNet", 2015, 152, 3.57, "He et al. 2015, Deep residual learning for image recognition, table 5"),
)
