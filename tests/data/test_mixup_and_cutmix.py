import numpy as np
import pytest
import torch
from scipy import stats

from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.data.per_image_random_numbers import PerImageRandomNumbers


def mix_black_with_white(mixing, count, size=24):
    """Mix black images with white ones: (mixed images, shares of the black ones)."""
    black = torch.zeros(count, 3, size, size)
    return mixing.mix(black, black + 1, PerImageRandomNumbers(5, 0, np.arange(count)))


@pytest.mark.parametrize(
    "mixing", [MixupAndCutmix(mixup=0.2), MixupAndCutmix(cutmix=1.0), MixupAndCutmix(mixup=0.4, cutmix=0.7)]
)
def test_the_share_of_a_label_is_that_of_its_image(mixing):
    mixed, shares = mix_black_with_white(mixing, 400)
    assert torch.allclose(mixed.mean((1, 2, 3)), 1 - shares, atol=1e-5)
    assert len(shares.unique()) > 100


def test_mixup_is_the_weighted_mean_with_weights_of_the_beta_distribution():
    images = torch.randn(2000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    others = images.roll(1, 0)
    mixed, shares = MixupAndCutmix(mixup=0.2).mix(images, others, PerImageRandomNumbers(5, 0, np.arange(2000)))
    for number in range(0, 2000, 100):
        share = float(shares[number])
        assert torch.allclose(mixed[number], share * images[number] + (1 - share) * others[number], atol=1e-6)
    assert stats.kstest(shares.numpy(), stats.beta(0.2, 0.2).cdf).pvalue > 0.001


def test_cutmix_pastes_one_rectangle():
    images = torch.rand(200, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    others = images.roll(1, 0)
    mixed, shares = MixupAndCutmix(cutmix=1.0).mix(images, others, PerImageRandomNumbers(5, 0, np.arange(200)))
    for image, other, result, share in zip(images, others, mixed, shares.tolist(), strict=True):
        pasted = (result != image).any(0)
        assert torch.equal(pasted, pasted.any(1)[:, None] & pasted.any(0)[None])
        assert torch.equal(result[:, pasted], other[:, pasted])
        assert float(pasted.double().mean()) == pytest.approx(1 - share, abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "row", "column", "box", "share"),
    # timm 1.0.31: cutmix_bbox_and_lam((3, 20, 30), weight), with row and column from numpy.random.randint
    [
        (0.3, 3, 10, (0, 11, 0, 23), 0.578333),
        (0.75, 10, 29, (5, 15, 22, 30), 0.866667),
        (0.5, 19, 0, (12, 20, 0, 11), 0.853333),
        (0.96, 7, 7, (5, 9, 4, 10), 0.96),
        (0.0, 5, 5, (0, 15, 0, 20), 0.5),
    ],
)
def test_rectangles_and_shares_are_those_of_timm(weight, row, column, box, share):
    class Known(PerImageRandomNumbers):
        def for_augmentation(self, place):
            return self

        def uniform(self, stream):  # α = 1 makes the weight uniform
            return torch.tensor([(0.0, weight, (row + 0.5) / 20, (column + 0.5) / 30)[stream]], dtype=torch.float64)

    images = torch.zeros(1, 3, 20, 30)
    mixed, shares = MixupAndCutmix(cutmix=1.0).mix(images, images + 1, Known(0, 0, np.arange(1)))
    expected = torch.zeros(20, 30)
    top, bottom, left, right = box
    expected[top:bottom, left:right] = 1
    assert torch.equal(mixed[0, 0], expected)
    assert float(shares) == pytest.approx(share, abs=1e-6)


def test_with_both_methods_each_image_has_one_of_them():
    mixed, _ = mix_black_with_white(MixupAndCutmix(mixup=1.0, cutmix=1.0), 1000)
    values = mixed[:, 0].flatten(1)
    blended = ((values > 0) & (values < 1)).any(1)
    assert 420 < blended.sum() < 580
    assert not MixupAndCutmix()
