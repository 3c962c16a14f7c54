"""Statistics accumulated in batches, against NumPy on all images at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from svertka.inspection.unit_statistics import UnitStatistics

UNITS, PICTURES, CLASSES = 9, 700, 4


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """(700, 9, 3, 5): unit 4 is negative, 5 is always 2, 7 correlates with 1, 8 is rarely active; some images equal."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(PICTURES, UNITS, 3, 5, generator=generator).exp() - 2
    maps *= 10.0 ** torch.arange(-4, 5)[:, None, None]
    maps[:, 4] = -maps[:, 4].abs()
    maps[:, 5] = 2
    maps[:, 7] = maps[:, 1] * 1000 + torch.randn(PICTURES, 3, 5, generator=generator)
    maps[4:, 8] = -1
    maps[500:600] = maps[:100]
    return maps


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return (torch.arange(PICTURES) * 5 // 3) % CLASSES


@pytest.fixture(scope="module")
def statistics(maps, labels) -> UnitStatistics:
    statistics, numbers = UnitStatistics(UNITS, count=9), torch.arange(PICTURES) * 2
    for start, end in ((0, 256), (256, 260), (260, PICTURES)):
        for some in maps[start:end].split(100):
            statistics.observe(some)
        statistics.update(numbers[start:end], labels[start:end])
    return statistics


@pytest.fixture(scope="module")
def values(maps) -> np.ndarray:
    """(700, 9)."""
    return maps.numpy().max(axis=(2, 3))


def test_strongest_values_match_a_full_sort(statistics, maps, values):
    order = np.argsort(-values, axis=0, kind="stable")[:9].T
    assert np.array_equal(statistics.values, np.take_along_axis(values.T, order, axis=1))
    assert statistics.has_patch().all()
    assert not statistics.is_dead().any()
    there = statistics.values.numpy() > -np.inf
    assert np.array_equal(statistics.images.numpy()[there], 2 * order[there])
    places = maps.numpy().reshape(PICTURES, UNITS, 15).argmax(axis=2).T
    assert np.array_equal(statistics.positions.numpy()[there], np.take_along_axis(places, order, axis=1)[there])


def test_histogram_matches_numpy(statistics, values):
    counts, edges = statistics.histogram()
    assert len(edges) == counts.shape[1] + 1
    assert counts.sum(0)[[0, -1]].all()  # no empty ends
    for unit in range(UNITS):
        excited = values[values[:, unit] > 0, unit]
        assert np.array_equal(counts[unit], np.histogram(excited, edges)[0])
        assert counts[unit].sum() == len(excited)
    octaves = np.searchsorted(edges, [1, 2, 4])
    assert np.diff(octaves).tolist() == [4, 4]


@pytest.mark.parametrize("value", [1e-30, 2.0**-24, 1e30])
def test_values_out_of_range_fall_into_the_outermost_bins(value):
    statistics = UnitStatistics(1, count=1)
    statistics.observe(torch.full((3, 1, 1, 1), value))
    statistics.update(torch.arange(3), None)
    counts, edges = statistics.histogram()
    assert counts.tolist() == [[3]]
    assert edges.tolist() == ([2.0**-24, 1.25 * 2.0**-24] if value < 1 else [1.75 * 2.0**23, 2.0**24])


def test_class_shares_match_numpy(statistics, labels, values):
    shares, base = statistics.class_shares()
    for label in range(CLASSES):
        positive = values.clip(min=0).astype(np.float64)
        of_class = positive[labels.numpy() == label]
        expected = of_class.sum(0) / np.where(positive.any(0), positive.sum(0), 1)
        np.testing.assert_allclose(shares[:, label], expected, rtol=1e-6)
        np.testing.assert_allclose(base[label], len(of_class) / PICTURES)
    assert not shares[4].any()


def test_similar_units_have_the_highest_correlations(statistics, values):
    units, correlations = statistics.similar_units()
    constant = [5]
    varying = [unit for unit in range(UNITS) if unit not in constant]
    expected = np.corrcoef(values[:, varying].T.astype(np.float64))
    np.fill_diagonal(expected, -2)
    for place, unit in enumerate(varying):
        order = np.argsort(-expected[place])
        assert units[unit].tolist() == [varying[other] for other in order[:6]]
        # float32 products of 256 pictures at a time
        np.testing.assert_allclose(correlations[unit], expected[place, order[:6]], atol=1e-5)
    assert units[1, 0] == 7
    assert (units[constant] == -1).all()
    assert np.isnan(correlations[constant]).all()


def test_few_units_have_fewer_similar_units():
    statistics = UnitStatistics(3, count=1)
    statistics.observe(torch.rand(10, 3, 2, 2, generator=torch.Generator().manual_seed(1)))
    statistics.update(torch.arange(10), None)
    units, correlations = statistics.similar_units()
    assert sorted(units[0].tolist()) == [-1] * 4 + [1, 2]
    assert np.isnan(correlations[0]).sum() == 4


@pytest.mark.parametrize("slope", [0, 0.1])
def test_dead_units_are_constant_and_never_above_zero(slope):
    """Units: always below 0, always −2, below 0 but for one image, below 0 and equal in all images but the last."""
    maps = -1 - torch.rand(50, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    maps[:, 1] = -2
    maps[7, 2, 1, 1] = 1
    maps[:, 3] = -1
    maps[-1, 3, 0, 0] = -1.01
    statistics = UnitStatistics(4, count=3)
    statistics.observe(torch.nn.functional.leaky_relu(maps, slope))
    statistics.update(torch.arange(50), None)
    assert statistics.is_dead().tolist() == ([True, True, False, True] if slope == 0 else [False, True, False, False])
    assert statistics.has_patch().sum(1).tolist() == ([0, 0, 1, 0] if slope == 0 else [3, 0, 3, 3])


def test_a_unit_whose_largest_output_is_always_zero_is_not_dead_if_it_varies():
    maps = torch.nn.functional.hardswish(-6 * torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    maps[:, 0, 0, 0] = 0
    statistics = UnitStatistics(1, count=1)
    statistics.observe(maps)
    statistics.update(torch.arange(20), None)
    assert (statistics.is_dead().tolist(), statistics.values.tolist()) == ([False], [[0]])


def test_nan_and_minus_infinity_count_as_inactive():
    statistics = UnitStatistics(1, count=2)
    statistics.observe(torch.tensor([torch.nan, 1.0, -torch.inf]).view(3, 1, 1, 1))
    statistics.update(torch.arange(3), None)
    assert (statistics.values.tolist(), statistics.images[0, 0].item()) == ([[1, -torch.inf]], 1)
    assert statistics.has_patch().tolist() == [[True, False]]
