"""Score maps over a pyramid, held against the same classifier on one patch after the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess, opened
from svertka.localization.dense import Locator, ScoreMap, shown
from svertka.localization.windows import SCALES

Maker = Callable[..., Classifier]


def one_by_one(
    classifier: Classifier, path: Path, maps: list[ScoreMap], positions: list[tuple[int, int, int]]
) -> np.ndarray:
    """Probabilities (positions, K) of crops of the resized pictures at `positions`: the map, its row and its column."""
    rgb, (size, *_), crops = opened(path), Locator(classifier).network.window, []
    pictures = [shown(classifier.preprocess, rgb, one.level)[0] for one in maps]
    stride = Locator(classifier).network.stride[0]
    for number, row, column in positions:
        y, x = row * stride, column * stride
        crops.append(pictures[number][:, y : y + size, x : x + size])
    return classifier.probabilities(crops).numpy()


def positions_of(maps: list[ScoreMap]) -> list[tuple[int, int, int]]:
    """All of them: the map, its row and its column."""
    return [(number, *place) for number, one in enumerate(maps) for place in np.ndindex(one.level.shape)]


def values(maps: list[ScoreMap], positions: list[tuple[int, int, int]]) -> np.ndarray:
    """What `maps` say at `positions`, (positions, K)."""
    return np.stack([maps[number].scores[:, row, column] for number, row, column in positions])


def test_maps_are_those_of_patches_where_nothing_is_padded(lamp: Path, bright_or_dark: Maker) -> None:
    for classifier in (bright_or_dark(), lenet()):
        maps = Locator(classifier).maps(opened(lamp))
        assert [one.level.scale for one in maps] == list(SCALES)
        positions = positions_of(maps)
        assert len(positions) > 500
        dense, patches = values(maps, positions), one_by_one(classifier, lamp, maps, positions)
        np.testing.assert_allclose(dense, patches, rtol=1e-4, atol=1e-7)
        assert dense[:, 0].std() > 1e-3  # a map, and not the same everywhere


def lenet() -> Classifier:
    """An untrained LeNet-5 whose output is spread enough to tell patches apart."""
    torch.manual_seed(0)
    preprocess = Preprocess(size=32, resize=32, mean=(0.1,), std=(0.2,))
    config = Config(model="lenet5", names=("a", "b", "c"), preprocess=preprocess)
    network = config.build().eval()
    with torch.no_grad():
        network.get_parameter("f6.weight").mul_(10)
    return Classifier(network, config)


def test_maps_rank_positions_as_patches_do_where_something_is_padded(shared_data: Path) -> None:
    weights = shared_data / "weights" / "squeezenet1_1-imagenet.safetensors"
    classifier = Classifier.load(f"squeezenet1_1:{weights}")
    path = shared_data / "imagenet-samples" / "n02088094_Afghan_hound.JPEG"
    maps = Locator(classifier).maps(opened(path))
    every = positions_of(maps)
    positions = [every[place] for place in np.random.default_rng(0).choice(len(every), 120, replace=False)]
    index = classifier.names.index("Afghan hound")
    dense, patches = values(maps, positions)[:, index], one_by_one(classifier, path, maps, positions)[:, index]
    assert spearmanr(dense, patches).statistic >= 0.85  # measured 0.88; each patch has zeros around it
