"""The pointing game, counted by hand."""

import pytest

from svertka.data.box_annotations import Annotation, Box
from svertka.localization.pointing_game import PointingGame, covered_share


def test_hits_are_counted_by_class_and_where_boxes_are_small() -> None:
    pointing = PointingGame()
    spots = {"cat": (5.0, 5.0), "dog": (95.0, 95.0)}
    left, right = Box("cat", 0, 0, 10, 10), Box("cat", 50, 0, 100, 100)
    for boxes, cat in (
        ((left,), 0.9),
        ((right,), 0.2),
        ((left, right), 0.8),
        ((Box("dog", 90, 0, 100, 99),), 0.3),
        ((), 0.1),
    ):
        annotation = Annotation("a.jpg", "a.xml", None, boxes)
        pointing.add(annotation, (100, 100), {"cat": cat, "dog": 0.5}, spots.__getitem__)
    said = pointing.to_dict()
    assert said["judged"] == 5
    assert (said["images"], said["hits"], said["centre_hits"]) == (4, 3 / 4, 2 / 4)
    assert said["small"] == {"images": 2, "hits": 1.0, "centre_hits": 0.0, "covered": (0.01 + 0.099) / 2}
    assert said["classes"]["cat"]["hits"] == 2 / 3
    # Ranked by score: with, with, without, with, without; precisions 1, 1 and 3/4 at those that have a cat.
    assert said["classes"]["cat"]["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert said["classes"]["dog"]["images"] == 1


def test_overlapping_boxes_cover_what_they_share_once() -> None:
    boxes = [Box("a", 0, 0, 60, 50), Box("a", 40, 0, 100, 50), Box("b", 45, 10, 50, 20)]
    assert covered_share(boxes, 100, 100) == 0.5
    assert covered_share([], 100, 100) == 0
