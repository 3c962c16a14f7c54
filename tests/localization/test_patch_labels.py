import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svertka.data.box_annotations import Box
from svertka.localization.patch_labels import label_patches


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
