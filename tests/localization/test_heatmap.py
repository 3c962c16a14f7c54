"""Heat maps and their hottest regions, from score maps whose answer is known."""

import numpy as np
import pytest

from svertka.localization.heatmap import CELLS, find_hottest_region, make_heat_map
from svertka.localization.patch_pyramid import pyramid_levels
from svertka.localization.score_maps import ScoreMap, average_class_scores


def painted(height: int, width: int, box: tuple[float, float, float, float]) -> list[ScoreMap]:
    """Score maps of a class that is in a patch as far as patch and `box` have pixels in common (over their union)."""
    found = []
    for level in pyramid_levels(height, width, (224, 224), (32, 32)):
        patches = level.edges(level.places)
        shared = np.minimum(patches[:, 2:], box[2:]) - np.maximum(patches[:, :2], box[:2])
        both = np.clip(shared, 0, None).prod(axis=1)
        areas = (patches[:, 2:] - patches[:, :2]).prod(axis=1) + (box[2] - box[0]) * (box[3] - box[1])
        values = (both / (areas - both)).reshape(len(level.rows), len(level.columns))
        found.append(ScoreMap(level, np.stack([values, 1 - values]).astype(np.float32)))
    return found


@pytest.mark.parametrize("box", [(20, 30, 180, 200), (400, 100, 620, 300), (240, 180, 400, 330)])
def test_the_hottest_region_is_where_the_object_is(box: tuple[int, int, int, int]) -> None:
    maps = painted(480, 640, box)
    hot = make_heat_map(maps, 0, 480, 640)
    assert hot.shape == (CELLS, 128)
    assert 0 <= hot.min() < hot.max() <= 1
    found = find_hottest_region(hot, "cat", 480, 640)
    assert box[0] <= found.peak[0] < box[2]
    assert box[1] <= found.peak[1] < box[3]
    assert found.box.name == "cat"
    assert found.box.contains(*found.peak)
    # Region and object share more than a half of what either has.
    width = min(found.box.right, box[2]) - max(found.box.left, box[0])
    height = min(found.box.bottom, box[3]) - max(found.box.top, box[1])
    assert 2 * width * height > found.box.area


def test_heat_is_a_sum_over_the_patches_around_each_spot() -> None:
    maps = painted(96, 128, (10, 10, 50, 60))
    hot = make_heat_map(maps, 0, 96, 128)  # a cell is a pixel
    for y, x in ((0, 0), (40, 30), (95, 127), (60, 100)):
        shares = []
        for one in maps:
            edges = np.rint(one.level.edges(one.level.places))
            ys, xs = np.mgrid[:96, :128]
            inside = [(left <= xs) & (xs < right) & (top <= ys) & (ys < bottom) for left, top, right, bottom in edges]
            around = np.array([patch[y, x] for patch in inside])
            powers = one.scores[0].ravel()[around].astype(float) ** 5
            shares.append(powers.sum() / np.sum(inside, axis=0).max())
        assert hot[y, x] == pytest.approx(np.mean(shares), rel=1e-5)


def test_scores_are_means_of_fifth_powers() -> None:
    maps = painted(96, 128, (10, 10, 50, 60))
    every = np.concatenate([one.scores[1].ravel() for one in maps]).astype(float)
    assert average_class_scores(maps)[1] == pytest.approx(sum(every**5) / len(every), rel=1e-5)


def test_equal_heat_everywhere_is_the_whole_picture() -> None:
    found = find_hottest_region(np.full((96, 128), 0.25, np.float32), "cat", 480, 640)
    assert found.peak == pytest.approx((320, 240))
    assert (found.box.left, found.box.top, found.box.right, found.box.bottom) == (0, 0, 640, 480)
