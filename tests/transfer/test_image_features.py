import numpy as np
import pytest

from svertka.transfer.image_features import scale_to_unit_length


def test_features_of_zero_stay_zero() -> None:
    scaled = scale_to_unit_length(np.array([[3, 4], [0, 0]], np.float32))
    assert scaled.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
