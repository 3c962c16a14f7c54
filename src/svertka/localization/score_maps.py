"""Score maps: probabilities of the classes or labels in the patches of an image, at eight scales."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svertka.classifier import Classifier
from svertka.compiler.optimize import MANY_IMAGES, optimize_if_worthwhile
from svertka.data.box_annotations import BACKGROUND
from svertka.data.dataset import Pixels
from svertka.data.preprocessing import Preprocess, resize_image
from svertka.device import network_device
from svertka.graph.shared_crops import make_shared_crops
from svertka.localization.optimized_rest import optimized_rest
from svertka.localization.patch_pyramid import PyramidLevel, pyramid_levels
from svertka.progress import say

POWER = 5  # the paper's k: the larger, the more the best patches count


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Probabilities of the classes or labels in the patches of one level.

    Attributes:
        level: The level.
        scores: Probabilities, (K, rows, columns) float32.
    """

    level: PyramidLevel
    scores: npt.NDArray[np.float32]


class PatchScorer:
    """A classifier of the patches of an image at eight scales. Overlapping patches share their feature maps.

    Args:
        classifier: The classifier.

    Attributes:
        network: The network, prepared for overlapping patches.
        preprocess: Preprocessing of the classifier.
        index: Index of each class but background by its name.
        names: These names.

    Raises:
        UsageError: The network cannot be traced.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.preprocess, self._require_finite = classifier.preprocess, classifier.require_finite
        self._activate = classifier.task.activate
        self.network = make_shared_crops(classifier.network, self.preprocess.input_shape)
        rest = (
            None
            if classifier.optimized is None
            else optimized_rest(classifier.optimized, self.network, len(classifier.names))
        )
        if classifier.optimized is not None and rest is None:
            say(f"{classifier.origin}: the optimized network cannot be applied to patches; they are computed in fp32")
        self.network.rest = rest or optimize_if_worthwhile(self.network.rest, self.network.shape, MANY_IMAGES)
        self.index = {name: index for index, name in enumerate(classifier.names) if name != BACKGROUND}
        self.names = tuple(self.index)

    def levels(self, image: Pixels) -> list[PyramidLevel]:
        """Return the levels of `image` (H, W, 3), from the largest patches to the smallest.

        Raises:
            ImageError: The image is too small.
        """
        height, width = image.shape[:2]
        squeezed = self.preprocess.fit == "squeeze"
        return pyramid_levels(height, width, self.network.window, self.network.stride, squeezed=squeezed)

    @torch.inference_mode()
    def score_maps(self, image: Pixels) -> list[ScoreMap]:
        """Return the score maps of `image` (H, W, 3) uint8, one per level.

        Raises:
            ImageError: The image is too small.
        """
        maps = []
        for level in self.levels(image):
            resized = resize_to_level(self.preprocess, image, level)
            resized = resized.to(network_device(self.network), memory_format=torch.channels_last)
            scores = self._require_finite(self._activate(self.network(resized, level.places).float()).cpu()).numpy()
            maps.append(ScoreMap(level, scores.T.reshape(-1, len(level.rows), len(level.columns))))
        return maps


def resize_to_level(preprocess: Preprocess, image: Pixels, level: PyramidLevel) -> Tensor:
    """Resize `image` (H, W, 3) uint8 to the size of `level` and standardize it: (1, C, h, w) float32."""
    resized = resize_image(image, *level.size, preprocess.channels, preprocess.interpolation)
    return preprocess.standardize(torch.from_numpy(resized).permute(2, 0, 1)[None])


def average_class_scores(maps: Sequence[ScoreMap]) -> npt.NDArray[np.float32]:
    """Return the score of each class in the image, (K,) in 0 to 1: the mean of yᵏ over all patches, k = 5.

    y is the probability of the class in a patch. The power lets a few patches decide, as suits small objects.

    Source: Oquab et al. 2014, §3.3.
    """
    every = np.concatenate([one.scores.reshape(len(one.scores), -1) for one in maps], axis=1)
    mean: npt.NDArray[np.float32] = (every**POWER).mean(axis=1)
    return mean
