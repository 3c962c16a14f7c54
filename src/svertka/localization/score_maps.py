"""Class scores of the patches of a picture, over a pyramid of scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svertka.classifier import Classifier
from svertka.compiler.optimize import optimize_if_worthwhile
from svertka.data.bounding_boxes import BACKGROUND
from svertka.data.dataset import Pixels
from svertka.data.preprocessing import Preprocess, resize_image
from svertka.device import get_device
from svertka.graph.shared_crops import share_crops
from svertka.localization.patch_grid import Level, levels

HUNDREDS = 500  # of windows on a picture
POWER = 5  # the paper's k: how much more the best patches count than the others


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Class probabilities of the patches of one level, (K, rows, columns) float32."""

    level: Level
    scores: npt.NDArray[np.float32]


class Locator:
    """A classifier that is shown the patches of a picture, at eight sizes; what they share is computed once."""

    def __init__(self, classifier: Classifier) -> None:
        self.preprocess, self._require_finite = classifier.preprocess, classifier.require_finite
        self.network = share_crops(classifier.network, self.preprocess.input_shape)
        self.network.rest = optimize_if_worthwhile(self.network.rest, self.network.shape, HUNDREDS)
        self.index = {name: index for index, name in enumerate(classifier.names) if name != BACKGROUND}
        self.names = tuple(self.index)  # what can be looked for

    def levels(self, rgb: Pixels) -> list[Level]:
        """The sizes at which a picture (H, W, 3) is looked at.

        Raises:
            ImageError: it is too small.
        """
        height, width = rgb.shape[:2]
        squeezed = self.preprocess.fit == "squeeze"
        return levels(height, width, self.network.window, self.network.stride, squeezed=squeezed)

    @torch.inference_mode()
    def maps(self, rgb: Pixels) -> list[ScoreMap]:
        """The score maps of one picture (H, W, 3) uint8, from the largest patches to the smallest.

        Raises:
            ImageError: it is too small.
        """
        found = []
        for level in self.levels(rgb):
            picture = shown(self.preprocess, rgb, level).to(get_device(self.network), memory_format=torch.channels_last)
            scores = self._require_finite(self.network(picture, level.places).float().softmax(1).cpu()).numpy()
            found.append(ScoreMap(level, scores.T.reshape(-1, len(level.rows), len(level.columns))))
        return found


def shown(preprocess: Preprocess, rgb: Pixels, level: Level) -> Tensor:
    """All of `rgb` (H, W, 3) uint8 at the level's size, (1, C, H, W) float32 normalised: patches are cut out of it."""
    pixels = torch.from_numpy(resize_image(rgb, *level.size, preprocess.channels)).permute(2, 0, 1)[None]
    return preprocess.standardise(pixels)


def scores(maps: Sequence[ScoreMap]) -> npt.NDArray[np.float32]:
    """How much of each class is in a picture, (K,) in 0 to 1: the mean of yᵏ over its patches at all scales, k = 5.

    y is the probability of the class in a patch. High powers let few patches speak, as suits objects that fill few.

    Source: Oquab et al. 2014, §3.3.
    """
    every = np.concatenate([one.scores.reshape(len(one.scores), -1) for one in maps], axis=1)
    mean: npt.NDArray[np.float32] = (every**POWER).mean(axis=1)
    return mean
