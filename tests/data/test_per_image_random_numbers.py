import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from svertka.data.per_image_random_numbers import PerImageRandomNumbers

INDICES = np.arange(20_000)


def test_a_number_is_the_hash_of_what_it_is_for():
    # SplitMix64's finalizer, written a second time and in plain integers: the numbers must never change.
    def mixed(word):
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
        return word ^ (word >> 31)

    golden, key = 0x9E3779B97F4A7C15, 0
    for word in (7, 3, 2, 1):
        key = mixed(((key ^ word) + golden) % 2**64)
    expected = [(mixed(mixed((index * golden + key) % 2**64)) >> 11) / 2**53 for index in (0, 5, 10**12)]
    assert PerImageRandomNumbers(7, 3, np.array([0, 5, 10**12])).for_augmentation(2).uniform(1).tolist() == expected


def test_numbers_do_not_depend_on_the_batch():
    whole = PerImageRandomNumbers(1, 2, INDICES)
    order = np.random.default_rng(0).permutation(INDICES)
    for some in np.array_split(order, 7):
        assert torch.equal(PerImageRandomNumbers(1, 2, some).uniform(3), whole.uniform(3)[some])


def test_numbers_are_uniform_and_normal():
    for seed, epoch, stream in itertools.product((0, 1, 2**63), (0, 1), (0, 1, 2)):
        draws = PerImageRandomNumbers(seed, epoch, INDICES)
        uniform = draws.uniform(stream)
        assert 0 <= uniform.min() <= uniform.max() < 1
        # The seeds are fixed: a good generator fails one of 36 such tests at 1e-4 once in 280 choices of seeds.
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4
        assert stats.kstest(draws.normal(stream).numpy(), "norm").pvalue > 1e-4


def test_whole_numbers_are_all_equally_likely():
    numbers = PerImageRandomNumbers(5, 0, INDICES).below(0, 9)
    assert numbers.dtype == torch.int64
    assert stats.chisquare(np.bincount(numbers.numpy(), minlength=9)).pvalue > 1e-4


def test_seeds_epochs_places_streams_and_neighbors_are_independent():
    columns = [
        PerImageRandomNumbers(seed, epoch, INDICES).for_augmentation(place).uniform(stream).numpy()
        for seed, epoch, place, stream in itertools.product((0, 1), repeat=4)
    ]
    columns += [PerImageRandomNumbers(0, 0, INDICES + shift).uniform(0).numpy() for shift in (1, 2, 28)]
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    # Of 171 correlations with a standard deviation of 1 / √20,000 = 0.007, none beyond five of them.
    assert np.abs(correlation).max() < 0.035


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_range_stay_within_bounds(number, monkeypatch):
    monkeypatch.setattr(PerImageRandomNumbers, "uniform", lambda *_: torch.tensor([number], dtype=torch.float64))
    draws = PerImageRandomNumbers(0, 0, np.array([0]))
    for bound in range(1, 5000):
        assert 0 <= int(draws.below(0, bound)) < bound
    assert torch.isfinite(draws.normal(0)).all()
