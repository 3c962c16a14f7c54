import numpy as np
import pytest

from svertka.data import pixel_statistics
from svertka.data.builtin import open_builtin
from svertka.data.pixel_statistics import choose_intensity_range, measure_statistics


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8) // [[[[1, 2, 3]]]]


def test_moments_of_the_images_asked_for(rows):
    indices = np.arange(5, 50, 2)
    measured = measure_statistics(rows.astype(np.uint8), indices)
    pixels = rows[indices].reshape(-1, 3) / 255
    assert measured.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert measured.std == pytest.approx(pixels.std(axis=0), rel=1e-9)
    assert np.allclose(measured.covariance, np.cov(pixels.T, bias=True), rtol=0, atol=1e-12)


def test_chunks_do_not_show(rows, monkeypatch):
    rows = rows.astype(np.uint8)
    whole = measure_statistics(rows, np.arange(50))
    monkeypatch.setattr(pixel_statistics, "CHUNK", 7 * 36)
    assert measure_statistics(rows, np.arange(50)) == whole


def test_very_many_images_are_sampled_and_the_sample_is_fixed(rows, monkeypatch):
    rows, asked = rows.astype(np.uint8), []

    class Watched:
        def __len__(self):
            return len(rows)

        def __getitem__(self, indices):
            asked.extend(indices.tolist())
            return rows[indices]

    monkeypatch.setattr(pixel_statistics, "PIXELS", 20 * 36)
    first = measure_statistics(Watched(), np.arange(50))
    looked_at = asked[pixel_statistics.FIRST :]  # after those that tell the size
    assert len(set(looked_at)) == len(looked_at) == 20
    assert measure_statistics(rows, np.arange(50)) == first
    assert first == measure_statistics(rows, np.array(looked_at))


def test_one_color_can_be_divided_by_its_std():
    measured = measure_statistics(np.full((3, 4, 4, 1), 200, np.uint8), np.arange(3))
    assert measured.mean == pytest.approx([200 / 255])
    assert measured.std == pytest.approx([1 / 255])


@pytest.mark.usefixtures("shared_data")
def test_mnist_has_the_figures_that_everybody_writes():
    mnist = open_builtin("mnist")
    measured = measure_statistics(mnist.images.array, np.flatnonzero(mnist.parts == "train"))
    assert (round(measured.mean[0], 4), round(measured.std[0], 4)) == (0.1307, 0.3081)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], None),
        ([(0, 1023), (3, 1000)], (0, 1023)),
        ([(0, 4095)], (0, 4095)),
        ([(0, 5000)], (0, 8191)),
        ([(0, 40_000)], None),
        ([(7, 65535)], None),
        ([(0, 30)], (0, 255)),  # dark, and stays so
        ([(700, 700)], (0, 1023)),  # of one color
        ([(30_000, 31_000), (30_100, 30_900)], (30_000, 31_000)),  # far from 0, close together
        ([(500, 1000)] * 150 + [(0, 65535)], (0, 1023)),  # one in a hundred does not count
    ],
)
def test_the_16_bit_values_that_images_use(ranges, expected):
    assert choose_intensity_range(ranges) == expected
