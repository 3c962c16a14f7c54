"""Patches of a picture and what they show, held against the paper's words and against counting pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.errors import ImageError
from svertka.localization.patch_pyramid import SCALES, pyramid_levels

WINDOW, STRIDE = (224, 224), (32, 32)


def test_a_photograph_has_about_five_hundred_patches_at_eight_scales() -> None:
    found = pyramid_levels(480, 640, WINDOW, STRIDE)
    assert [level.scale for level in found] == list(SCALES)
    assert len(SCALES) == 8
    chosen = [level.edges(level.places) for level in found]
    assert 400 <= sum(map(len, chosen)) <= 600
    for level, patches in zip(found, chosen, strict=True):
        widths, heights = patches[:, 2] - patches[:, 0], patches[:, 3] - patches[:, 1]
        # min(w, h) / λ, rounded to the network's stride: up to half of 32 pixels of 224
        np.testing.assert_allclose(heights, 480 / level.scale, rtol=0.08)
        np.testing.assert_allclose(widths, heights, rtol=0.08)
        np.testing.assert_allclose(patches.min(0)[:2], 0, atol=1e-9)
        np.testing.assert_allclose(patches.max(0)[2:], (640, 480))  # from edge to edge
        for axis, sizes in ((0, widths), (1, heights)):
            starts = np.unique(patches[:, axis].round(6))
            assert (np.diff(starts) <= sizes[0] / 2).all()  # at least half overlapping


@given(
    height=st.integers(32, 900),
    width=st.integers(32, 900),
    window=st.sampled_from([((224, 224), (32, 32)), ((227, 227), (32, 32)), ((32, 32), (4, 4)), ((28, 28), (1, 1))]),
)
def test_every_patch_lies_in_the_picture(
    height: int, width: int, window: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    for level in pyramid_levels(height, width, *window):
        for axis, places in enumerate((level.rows, level.columns)):
            assert places[0] == 0
            assert level.size[axis] == window[0][axis] + places[-1] * window[1][axis]  # from edge to edge
            if len(places) > 1:
                most = np.diff(places).max() * window[1][axis]
                assert most <= max(2 / 7 * window[0][axis], window[1][axis])
        edges = level.edges(level.places)
        assert len(edges) == len(level.rows) * len(level.columns)
        assert edges[:, :2].min() >= 0
        np.testing.assert_allclose(edges.max(0)[2:], (width, height))


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="31×400 pixels, too few for patches; it needs 32 a side or more"):
        pyramid_levels(400, 31, WINDOW, STRIDE)
