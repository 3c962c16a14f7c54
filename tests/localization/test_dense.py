"""Score maps over a pyramid, held against the same classifier on one patch after the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess, opened
from svertka.localization.dense import Locator, ScoreMap, shown
from svertka.localization.windows import SCALES

Maker = Callable[..., Classifier]


def one_by_one(classifier: Classifier, path: Path, maps: list[ScoreMap], every: int = 1) -> list[torch.Tensor]:
    """Probabilities of the positions, (K, rows, columns) a scale, from crops of the resized pictures.

    `every`: so many positions to one that is looked at, along both axes.
    """
    rgb, size = opened(path), classifier.preprocess.size
    found = []
    for one in maps:
        picture = shown(classifier.preprocess, rgb, one.level)[0]
        rows, columns = one.level.shape
        down = 1 if rows == 1 else (picture.shape[1] - size) // (rows - 1)
        right = 1 if columns == 1 else (picture.shape[2] - size) // (columns - 1)
        crops = [
            picture[:, row * down : row * down + size, column * right : column * right + size]
            for row in range(0, rows, every)
            for column in range(0, columns, every)
        ]
        found.append(classifier.probabilities(crops).T.view(-1, -(-rows // every), -(-columns // every)))
    return found


def test_maps_are_those_of_patches_where_nothing_is_padded(lamp: Path, bright_or_dark: Maker) -> None:
    for classifier in (bright_or_dark(), lenet()):
        maps = Locator(classifier).maps(opened(lamp))
        assert [one.level.scale for one in maps] == list(SCALES)
        expected = one_by_one(classifier, lamp, maps)
        for one, patches in zip(maps, expected, strict=True):
            np.testing.assert_allclose(one.scores, patches.numpy(), rtol=1e-4, atol=1e-7)
        together = np.concatenate([one.scores[0].ravel() for one in maps])
        assert together.std() > 1e-3  # a map, and not the same everywhere


def lenet() -> Classifier:
    """An untrained LeNet-5 whose output is spread enough to tell patches apart."""
    torch.manual_seed(0)
    preprocess = Preprocess(size=32, resize=32, mean=(0.1,), std=(0.2,))
    config = Config(model="lenet5", names=("a", "b", "c"), preprocess=preprocess)
    network = config.build().eval()
    with torch.no_grad():
        network.get_parameter("f6.weight").mul_(10)
    return Classifier(network, config)


@pytest.mark.parametrize("picture", ["n02088094_Afghan_hound.JPEG"])
def test_maps_rank_positions_as_patches_do_where_something_is_padded(picture: str, shared_data: Path) -> None:
    weights = shared_data / "weights" / "squeezenet1_1-imagenet.safetensors"
    classifier = Classifier.load(f"squeezenet1_1:{weights}")
    path = shared_data / "imagenet-samples" / picture
    maps = Locator(classifier).maps(opened(path))[1:3]
    index = classifier.names.index("Afghan hound")
    dense = np.concatenate([one.scores[index, ::2, ::2].ravel() for one in maps])
    patches = np.concatenate([one[index].ravel() for one in one_by_one(classifier, path, maps, every=2)])
    assert len(dense) > 50
    assert spearmanr(dense, patches).statistic >= 0.9  # the bound
