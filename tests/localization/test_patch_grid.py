"""Patches of a picture and what they show, held against the paper's words and against counting pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.data.box_annotations import Box
from svertka.errors import ImageError
from svertka.localization.patch_grid import SCALES, label_patches, pyramid_levels

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


def _box(name: str, left: int, top: int, right: int, bottom: int) -> Box:
    return Box(name, left, top, right, bottom)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], 2),
        ([_box("cat", 10, 10, 60, 60)], 0),  # a quarter of the patch, all of the object
        ([_box("cat", 10, 10, 40, 40)], 2),  # 9 % of the patch
        ([_box("cat", 50, 0, 150, 100)], 2),  # half of the object
        ([_box("cat", 30, 0, 140, 100)], 0),  # 64 % of it
        ([_box("cat", 10, 10, 60, 60), _box("cat", 90, 90, 300, 300)], 0),  # a second cat does no harm
        ([_box("cat", 10, 10, 60, 60), _box("dog", 90, 90, 300, 300)], 2),  # a dog does
        ([_box("dog", 100, 0, 200, 100), _box("cat", 0, 0, 100, 100)], 0),  # beside the patch it does not
    ],
)
def test_the_papers_rule(boxes: list[Box], expected: int) -> None:
    assert label_patches(np.array([[0.0, 0, 100, 100]]), boxes, ["cat", "dog"]).tolist() == [expected]


@given(st.data())
def test_labels_are_those_of_counted_pixels(data: st.DataObject) -> None:
    def square(text: str) -> tuple[int, int, int, int]:
        left, top = (data.draw(st.integers(0, 20), label=text) for _ in range(2))
        width, height = (data.draw(st.integers(1, 20), label=text) for _ in range(2))
        return left, top, left + width, top + height

    names = ["cat", "dog", "bird"]
    patch = square("patch")
    boxes = [_box(data.draw(st.sampled_from(names)), *square("box")) for _ in range(data.draw(st.integers(0, 3)))]
    inside = np.zeros((40, 40), bool)
    inside[patch[1] : patch[3], patch[0] : patch[2]] = True
    shown, touched = set(), set()
    for box in boxes:
        thing = np.zeros((40, 40), bool)
        thing[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
        shared = int((thing & inside).sum())
        if shared:
            touched.add(box.name)
        if 5 * shared > inside.sum() and 5 * shared > 3 * thing.sum():
            shown.add(box.name)
    expected = names.index(shown.pop()) if shown and len(touched) == 1 else 3
    assert label_patches(np.array([patch], float), boxes, names).tolist() == [expected]
