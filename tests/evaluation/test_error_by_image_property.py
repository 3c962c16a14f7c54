import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_sample_image

from svertka.errors import ImageError
from svertka.evaluation.error_by_image_property import (
    MAX_BINS,
    MAX_IMAGES,
    errors_by_property,
    errors_by_property_html,
    measure_image_properties,
)
from svertka.evaluation.metrics import Evaluation, MetricAccumulator

Pixels = npt.NDArray[np.uint8]


def evaluation(wrong: npt.NDArray[np.bool_]) -> Evaluation:
    import torch

    tally = MetricAccumulator(2)
    right = torch.from_numpy(~wrong)
    tally.update(
        torch.stack([right, ~right], 1).float(), torch.zeros(len(wrong), dtype=torch.int64), torch.arange(len(wrong))
    )
    return tally.result(("a", "b"))


def test_image_properties_follow_brightness_size_and_blur() -> None:
    photograph = load_sample_image("china.jpg")
    brightness, size, sharpness = measure_image_properties(photograph)
    gray = photograph @ np.array([0.299, 0.587, 0.114])
    assert brightness == pytest.approx(100 * gray.mean() / 255, abs=0.3)  # levels are rounded
    assert size == 427
    darker = measure_image_properties((photograph // 2).astype(np.uint8))
    assert darker[0] == pytest.approx(brightness / 2, abs=0.3)
    summed = np.cumsum(np.cumsum(photograph.astype(np.int64), 0), 1)
    blurred = ((summed[9:, 9:] - summed[:-9, 9:] - summed[9:, :-9] + summed[:-9, :-9]) // 81).astype(np.uint8)
    assert measure_image_properties(blurred)[2] < 0.5 * sharpness
    assert measure_image_properties(photograph[:100, :50, :1])[1] == 50


def test_bins_are_quantiles_with_their_errors() -> None:
    levels = np.random.default_rng(0).permutation(200)
    wrong = levels < 60  # dark pictures, and no others
    pictures = [np.full((8, 8, 1), level, np.uint8) for level in levels]
    found = errors_by_property(evaluation(wrong), lambda index: pictures[index], threads=2)
    assert [one.name for one in found] == ["Brightness"]  # all are of one size, and flat
    groups = found[0].bins
    assert [group.images for group in groups] == [200 // MAX_BINS] * MAX_BINS
    assert [group.error for group in groups] == [1, 0.5, 0, 0, 0]
    assert groups[1].low == pytest.approx(100 * 40 / 255)
    assert groups[1].high == pytest.approx(100 * 79 / 255)
    assert "Brightness" in errors_by_property_html(found, 200)


def test_many_images_are_sampled_and_missing_ones_left_out() -> None:
    asked = []

    def read(index: int) -> Pixels:
        asked.append(index)
        if index % 2:
            raise ImageError("gone")
        return np.full((8, 8 + index % 4, 3), index % 251, np.uint8)

    found = errors_by_property(evaluation(np.zeros(3000, bool)), read, threads=2)
    assert len(asked) == len(set(asked)) == MAX_IMAGES
    assert sum(group.images for group in found[0].bins) == sum(index % 2 == 0 for index in asked)
    assert "drawn at random" in errors_by_property_html(found, 3000)


def test_too_few_images_have_no_slices() -> None:
    read = lambda index: np.full((8, 8, 1), index, np.uint8)  # noqa: E731
    assert errors_by_property(evaluation(np.zeros(19, bool)), read, threads=1) == ()
    assert errors_by_property_html((), 19) == ""
    assert len(errors_by_property(evaluation(np.zeros(20, bool)), read, threads=1)[0].bins) == 2
