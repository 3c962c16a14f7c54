"""Selection of the images of an atlas, and averaged occlusion maps."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from svertka.inspection.atlas.image_data import occlusion_per_pixel, select_atlas_images


@dataclass
class Found:
    images: npt.NDArray[np.int64]


def test_strongest_images_are_selected_and_all_classes_get_overlays() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 2, 0, 1])
    some = [Found(np.array([[1, 2, 3], [4, -1, -1]])), Found(np.array([[5, 7], [9, 3]]))]
    chosen = select_atlas_images(some, labels, 4)  # type: ignore[arg-type]
    assert chosen.indices.tolist() == [1, 2, 3, 4, 5, 7, 9]
    assert chosen.slots.tolist() == [-1, 0, 1, 2, 3, 4, -1, 5, -1, 6]
    assert [labels[chosen.indices[slot]] for slot in chosen.with_overlays] == [0, 0, 1, 2]


def test_pixels_get_the_mean_of_the_squares_that_cover_them() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1, 1.5, 2], [2, 2.5, 3], [3, 3.5, 4]])
    assert torch.equal(occlusion_per_pixel(values, side=2, stride=1, size=3), expected)
    # The last square may reach beyond the border.
    assert torch.equal(
        occlusion_per_pixel(values, side=2, stride=2, size=3), torch.tensor([[1.0, 1, 2], [1, 1, 2], [3, 3, 4]])
    )
