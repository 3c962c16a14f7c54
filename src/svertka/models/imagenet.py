"""ImageNet's 1000 classes, and what won its challenge."""

from dataclasses import dataclass
from pathlib import Path

# Words that name two classes each, with the sense that WordNet gives: a class name has to be the class's own.
SENSES = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}


@dataclass(frozen=True)
class Class:
    """One of the 1000: `wordnet`, the id that names its folder ("n01440764"), and `name`, its own ("tench")."""

    wordnet: str
    name: str


def _read() -> tuple[Class, ...]:
    """The lines of imagenet-classes.tsv: WordNet id, tab, name as the challenge spells it."""
    lines = Path(__file__).with_name("imagenet-classes.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return tuple(Class(wordnet, SENSES.get(wordnet, name)) for wordnet, name in pairs)


# In the order of the published networks' outputs, which is that of the WordNet ids.
CLASSES = _read()
NAMES = tuple(one.name for one in CLASSES)
_NAME_OF = {one.wordnet: one.name for one in CLASSES}


def name_of(text: str) -> str:
    """The class name of a WordNet id among the 1000; any other text as it is.

    >>> name_of("n01440764")
    'tench'
    """
    return _NAME_OF.get(text, text)


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
