from pathlib import Path

import numpy as np

from svertka.curation.unreadable_images import describe_unreadable, name_unreadable
from svertka.data.dataset import Dataset, FileImages


def test_paths_come_in_the_order_of_the_images_and_are_printable() -> None:
    images = FileImages(Path("photos"), ["a.jpg", "caf\udce9.jpg", "c.jpg"])
    dataset = Dataset("photos", ("x",), images, np.zeros(3, np.int64), np.full(3, "", "<U5"))
    named = name_unreadable(dataset, {2: "truncated", 1: "damaged"})
    assert named == (("photos/caf\\udce9.jpg", "damaged"), ("photos/c.jpg", "truncated"))


def test_the_first_is_named_and_the_others_are_counted() -> None:
    one, other = ("a.jpg", "truncated"), ("b.jpg", "damaged")
    assert describe_unreadable([]) == []
    assert describe_unreadable([one]) == ["left out: 1 image that cannot be read: a.jpg: truncated"]
    assert describe_unreadable([one, other, other]) == [
        "left out: 3 images that cannot be read: a.jpg: truncated; and 2 more"
    ]
