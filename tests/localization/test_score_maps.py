"""Score maps over a pyramid, held against the same classifier on one patch after the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess, load_rgb_image
from svertka.localization.patch_pyramid import SCALES
from svertka.localization.score_maps import PatchScorer, ScoreMap, resize_to_level

Maker = Callable[..., Classifier]


def one_by_one(classifier: Classifier, path: Path, some: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Probabilities (patches, K) of crops of the resized pictures, level after level, or of `some` of them."""
    locator, rgb, crops = PatchScorer(classifier), load_rgb_image(path), []
    (height, width), stride = locator.network.window, locator.network.stride
    for level in locator.levels(rgb):
        picture = resize_to_level(classifier.preprocess, rgb, level)[0]
        crops += [picture[:, y : y + height, x : x + width] for y, x in (level.places * stride).tolist()]
    return classifier.probabilities([crops[place] for place in np.arange(len(crops))[some]]).numpy()


def values(maps: list[ScoreMap]) -> np.ndarray:
    """What `maps` say, (patches, K), level after level."""
    return np.concatenate([one.scores.reshape(len(one.scores), -1).T for one in maps])


def test_maps_are_those_of_patches_where_nothing_is_padded(
    lamp: Path, bright_or_dark: Maker, large_count: Callable[[int, int], int]
) -> None:
    for classifier in (bright_or_dark(), lenet()):
        maps = PatchScorer(classifier).score_maps(load_rgb_image(lamp))
        assert [one.level.scale for one in maps] == list(SCALES)
        dense = values(maps)
        assert len(dense) > 300
        some = np.random.default_rng(0).choice(len(dense), large_count(50, len(dense)), replace=False)
        np.testing.assert_allclose(dense[some], one_by_one(classifier, lamp, some), rtol=1e-4, atol=1e-7)
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


@pytest.mark.large  # padding: graph/test_shared_crops.py; maps of a padded network: test_optimized_rest.py
def test_maps_rank_positions_as_patches_do_where_something_is_padded(
    shared_data: Path,
) -> None:
    weights = shared_data / "weights" / "squeezenet1_1-imagenet.safetensors"
    classifier = Classifier.load(f"squeezenet1_1:{weights}")
    path = shared_data / "imagenet-samples" / "n02088094_Afghan_hound.JPEG"
    maps = PatchScorer(classifier).score_maps(load_rgb_image(path))
    index, dense = classifier.names.index("Afghan hound"), values(maps)
    patches = one_by_one(classifier, path)[:, index]
    assert spearmanr(dense[:, index], patches).statistic >= 0.9
