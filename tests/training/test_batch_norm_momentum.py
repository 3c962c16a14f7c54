import pytest
import torch
from torch import nn
from torch.testing import assert_close

from svertka.training.batch_norm_momentum import BatchNormMomentum


def run_batches(layer: nn.BatchNorm2d, count: int) -> torch.Tensor:
    """Take `count` steps and return the mean of each batch, (count, 3)."""
    torch.manual_seed(0)
    momentum, means = BatchNormMomentum(layer), []
    for _ in range(count):
        images = torch.randn(4, 3, 5, 5) * 2 + 7
        with momentum.raised():
            layer(images)
        means.append(images.mean((0, 2, 3)))
    return torch.stack(means)


def test_after_few_steps_the_statistics_are_the_weighted_mean_of_all_batches() -> None:
    layer = nn.BatchNorm2d(3, momentum=0.01)
    shares = torch.arange(1.0, 13.0) / 78
    assert_close(layer.running_mean, shares @ run_batches(layer, 12))
    assert layer.momentum == 0.01


def test_after_many_steps_the_momentum_is_that_of_the_layer() -> None:
    layer = nn.BatchNorm2d(3, momentum=0.25)
    means = run_batches(layer, 12)
    expected = torch.arange(1.0, 8.0) / 28 @ means[:7]  # 2/8 is the momentum of the seventh batch
    for mean in means[7:]:
        expected = 0.75 * expected + 0.25 * mean
    assert_close(layer.running_mean, expected)


@pytest.mark.parametrize("counted", [0, 500])  # some files of weights do not count the batches
def test_statistics_of_pretrained_weights_are_kept(counted: int) -> None:
    layer = nn.BatchNorm2d(3, momentum=0.01)
    torch.nn.init.constant_(layer.running_mean, 3.0)
    layer.num_batches_tracked.fill_(counted)
    means = run_batches(layer, 2)
    after_one = 0.99 * 3.0 + 0.01 * means[0]
    assert_close(layer.running_mean, 0.99 * after_one + 0.01 * means[1], rtol=1e-3, atol=0)


def test_frozen_layers_and_means_over_all_batches_are_left_alone() -> None:
    frozen, cumulative = nn.BatchNorm2d(3, momentum=0.01).eval(), nn.BatchNorm2d(3, momentum=None)
    momentum = BatchNormMomentum(nn.Sequential(frozen, cumulative))
    with momentum.raised():
        assert (frozen.momentum, cumulative.momentum) == (0.01, None)
