"""Results of the ImageNet Large Scale Visual Recognition Challenge (ILSVRC), 2010 to 2015."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChallengeResult:
    """The result of one entry on the challenge's test images.

    Attributes:
        layers: Layers with weights from the image to the logits. None: not a deep network.
        top5_error: Per cent of the images whose class was not among five guesses, without additional training data.
    """

    name: str
    year: int
    layers: int | None
    top5_error: float
    source: str


RUSSAKOVSKY = "Russakovsky et al. 2015, ImageNet large scale visual recognition challenge"

# Winners of the classification task, and VGG, second in 2014. The winners of 2010 and 2011 are linear classifiers on
# encoded local descriptors. From 2012 on all are ensembles.
ILSVRC_RESULTS = (
    ChallengeResult("NEC-UIUC", 2010, None, 28.2, RUSSAKOVSKY),
    ChallengeResult("XRCE", 2011, None, 25.8, RUSSAKOVSKY),
    ChallengeResult(
        "AlexNet", 2012, 8, 16.4, "Krizhevsky et al. 2012, ImageNet classification with deep CNNs, table 2"
    ),
    ChallengeResult("ZFNet", 2013, 8, 11.7, "Russakovsky et al. 2015, as Clarifai; Zeiler & Fergus 2013"),
    ChallengeResult("VGG", 2014, 19, 7.3, "Simonyan & Zisserman 2014, Very deep convolutional networks, table 7"),
    ChallengeResult("GoogLeNet", 2014, 22, 6.7, "Szegedy et al. 2014, Going deeper with convolutions, table 2"),
    ChallengeResult("ResNet", 2015, 152, 3.57, "He et al. 2015, Deep residual learning for image recognition, table 5"),
)
