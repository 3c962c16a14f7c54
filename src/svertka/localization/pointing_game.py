"""The pointing game: how often the peak of a heat map lies in a bounding box of its class.

Source: Zhang et al. 2018, "Top-down neural attention by excitation backprop", §4.2.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from svertka.data.box_annotations import Annotation, Box

SMALL_SHARE = 0.25  # of an image: if its boxes cover less, pointing at the center is rarely right

Point = tuple[float, float]


@dataclass
class PointingCounts:
    """Counts of the pointing game for one class.

    Attributes:
        images: Images with a box of the class.
        hits: Images in which the point lies in a box.
        centre_hits: Images in which the center of the image lies in a box.
        covered: Sum of the shares of the images that the boxes cover: expected hits of random points.
    """

    images: int = 0
    hits: int = 0
    centre_hits: int = 0
    covered: float = 0.0

    def add(self, boxes: list[Box], point: Point, width: int, height: int) -> None:
        """Count one image.

        Args:
            boxes: The boxes of the class.
            point: Where the class was located, (x, y), pixels.
            width: Width of the image, pixels.
            height: Height of the image, pixels.
        """
        self.images += 1
        self.hits += any(box.contains(*point) for box in boxes)
        self.centre_hits += any(box.contains(width / 2, height / 2) for box in boxes)
        self.covered += covered_share(boxes, width, height)

    def to_dict(self) -> dict[str, Any]:
        """Return the number of images and the mean of each count, 0 to 1; None without images."""
        shares = {"hits": self.hits, "centre_hits": self.centre_hits, "covered": self.covered}
        return {"images": self.images} | {
            name: value / self.images if self.images else None for name, value in shares.items()
        }


@dataclass
class PointingGame:
    """The pointing game by class, and the average precision of the class scores.

    Attributes:
        counts: Counts by class.
        small: Counts of the images whose boxes cover less than a quarter.
        scores: Scores by class of each image.
        present: Classes with a box in each image.
    """

    counts: dict[str, PointingCounts] = field(default_factory=lambda: defaultdict(PointingCounts))
    small: PointingCounts = field(default_factory=PointingCounts)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    present: list[set[str]] = field(default_factory=list)

    def add(
        self, annotation: Annotation, size: tuple[int, int], scores: Mapping[str, float], locate: Callable[[str], Point]
    ) -> None:
        """Add one image.

        Args:
            annotation: Its boxes.
            size: Its width and height, pixels.
            scores: Its score of each class.
            locate: Returns the point at which a class was located.
        """
        self.scores.append(scores)
        self.present.append({box.name for box in annotation.boxes})
        for name in sorted(self.present[-1]):
            boxes = [box for box in annotation.boxes if box.name == name]
            point = locate(name)
            self.counts[name].add(boxes, point, *size)
            if covered_share(boxes, *size) < SMALL_SHARE:
                self.small.add(boxes, point, *size)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values: over all images, for small boxes, and by class."""
        counts = self.counts.values()
        total = PointingCounts(
            **{name: sum(getattr(count, name) for count in counts) for name in vars(PointingCounts())}
        )
        classes = {
            name: count.to_dict() | {"average_precision": self.average_precision(name)}
            for name, count in sorted(self.counts.items())
        }
        return {"judged": len(self.scores), **total.to_dict(), "small": self.small.to_dict(), "classes": classes}

    def average_precision(self, name: str) -> float | None:
        """Return the average precision, 0 to 1, of a class as predicted by its score; None if all images have it."""
        from sklearn.metrics import average_precision_score

        is_present = [name in present for present in self.present]
        if all(is_present) or not any(is_present):
            return None
        return float(average_precision_score(is_present, [scores[name] for scores in self.scores]))


def covered_share(boxes: list[Box], width: int, height: int) -> float:
    """Return the share, 0 to 1, of an image of `width` × `height` pixels that `boxes` cover together."""
    # The edges of all boxes divide the image into cells, each entirely inside or outside of a box.
    xs = sorted({edge for box in boxes for edge in (box.left, box.right)})
    ys = sorted({edge for box in boxes for edge in (box.top, box.bottom)})
    covered = sum(
        (right - left) * (bottom - top)
        for left, right in pairwise(xs)
        for top, bottom in pairwise(ys)
        if any(box.contains(left, top) for box in boxes)
    )
    return covered / (width * height)
