"""How well a classifier says where things are, from boxes: does the spot it points at lie in one?"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from svertka.data.bounding_boxes import Annotation, Box

SMALL = 0.25  # of a picture: where its boxes cover less, to point at the middle is no answer

Point = tuple[float, float]


@dataclass
class Count:
    """Pictures in which a class was pointed at, and those in which the spot, or the picture's centre, lay in a box.

    `covered`: the share of the picture that the boxes of the class cover, summed: what pointing blindly hits.
    """

    pictures: int = 0
    hits: int = 0
    centre_hits: int = 0
    covered: float = 0.0

    def add(self, boxes: list[Box], point: Point, width: int, height: int) -> None:
        """Count one picture of `width` × `height` pixels, in which `boxes` are those of the class."""
        self.pictures += 1
        self.hits += any(box.contains(*point) for box in boxes)
        self.centre_hits += any(box.contains(width / 2, height / 2) for box in boxes)
        self.covered += cover(boxes, width, height)

    def to_dict(self) -> dict[str, Any]:
        """`pictures`, and the shares of them, 0 to 1, or null where there are none."""
        shares = {"hits": self.hits, "centre_hits": self.centre_hits, "covered": self.covered}
        return {"pictures": self.pictures} | {
            name: value / self.pictures if self.pictures else None for name, value in shares.items()
        }


@dataclass
class Pointing:
    """The pointing game (Zhang et al. 2018, "Top-down neural attention by excitation backprop", §4.2), class by class.

    Beside it, how well the scores rank the pictures that have a box of the class before those that have none.
    """

    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    small: Count = field(default_factory=Count)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    present: list[set[str]] = field(default_factory=list)

    def add(
        self, annotation: Annotation, size: tuple[int, int], scores: Mapping[str, float], spot: Callable[[str], Point]
    ) -> None:
        """Judge one picture of `size` (width, height): its `scores` by class, and the `spot` that shows a class."""
        self.scores.append(scores)
        self.present.append({box.name for box in annotation.boxes})
        for name in sorted(self.present[-1]):
            boxes = [box for box in annotation.boxes if box.name == name]
            point = spot(name)
            self.counts[name].add(boxes, point, *size)
            if cover(boxes, *size) < SMALL:
                self.small.add(boxes, point, *size)

    def to_dict(self) -> dict[str, Any]:
        """The figures for a JSON file: over all, where boxes are small, and by class."""
        counts = self.counts.values()
        total = Count(**{name: sum(getattr(count, name) for count in counts) for name in vars(Count())})
        classes = {
            name: count.to_dict() | {"average_precision": self.average_precision(name)}
            for name, count in sorted(self.counts.items())
        }
        return {"judged": len(self.scores), **total.to_dict(), "small": self.small.to_dict(), "classes": classes}

    def average_precision(self, name: str) -> float | None:
        """Of the ranking of all pictures by the score of a class, 0 to 1; None where all of them have it, or none."""
        from sklearn.metrics import average_precision_score

        there = [name in present for present in self.present]
        if all(there) or not any(there):
            return None
        return float(average_precision_score(there, [scores[name] for scores in self.scores]))


def cover(boxes: list[Box], width: int, height: int) -> float:
    """The share of a picture of `width` × `height` pixels that `boxes` cover together, 0 to 1."""
    # Between all edges the picture falls into cells that are inside a box or outside, whole.
    xs = sorted({edge for box in boxes for edge in (box.left, box.right)})
    ys = sorted({edge for box in boxes for edge in (box.top, box.bottom)})
    covered = sum(
        (right - left) * (bottom - top)
        for left, right in pairwise(xs)
        for top, bottom in pairwise(ys)
        if any(box.contains(left, top) for box in boxes)
    )
    return covered / (width * height)
