"""The unknown score is a Mahalanobis distance, and a network with it computes the same logits as without."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf_shrinkage as shrinkage_of_scikit_learn
from sklearn.datasets import load_digits

from svertka.classifier import Classifier
from svertka.errors import RunError, UsageError
from svertka.models.external import open_model
from svertka.unknown_score import (
    MIN_VARIANCE,
    UnknownScore,
    add_unknown_score,
    fit_unknown_score,
    ledoit_wolf_shrinkage,
    split_features_and_logits,
)


def test_it_is_the_distance_to_the_nearest_mean_in_the_shared_covariance() -> None:
    data = load_digits()
    features, labels = data.data[:300].astype(np.float32), data.target[:300]
    new = torch.from_numpy(data.data[300:350]).float()
    found = fit_unknown_score(features, labels, new, torch.zeros(50, 10)).distances(new)

    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    means = np.stack([unit(features)[labels == k].mean(0) for k in range(10)])
    fitted = LedoitWolf(assume_centered=True).fit(unit(features) - means[labels]).covariance_
    inverse = np.linalg.inv(fitted + MIN_VARIANCE * np.trace(fitted) / 64 * np.eye(64))
    wanted = [min((x - mean) @ inverse @ (x - mean) for mean in means) ** 0.5 for x in unit(data.data[300:350])]
    torch.testing.assert_close(found, torch.tensor(wanted).float(), rtol=1e-3, atol=0)


def test_inverted_digits_score_higher_than_digits() -> None:
    data = load_digits()
    val = torch.from_numpy(data.data[850:900]).float()
    score = fit_unknown_score(data.data[:850].astype(np.float32), data.target[:850], val, torch.zeros(50, 10))
    known, inverted = (
        score(torch.from_numpy(values).float(), torch.zeros(len(values), 10)).numpy()
        for values in (data.data[900:], 16 - data.data[900:])
    )
    assert (inverted[:, None] > known).mean() > 0.99  # the area under the ROC curve


def test_distance_and_energy_count_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    features, logits = torch.randn(80, 6, generator=generator), 3 * torch.randn(80, 2, generator=generator)
    score = fit_unknown_score(features[:40].numpy(), np.arange(40) % 2, features[40:], logits[40:])
    distances, energies = score.distances(features[40:]), -logits[40:].logsumexp(1)
    wanted = sum((one - one.mean()) / one.std(correction=0) for one in (distances, energies))
    torch.testing.assert_close(score(features[40:], logits[40:]), wanted, rtol=1e-4, atol=1e-4)


def test_energy_needs_no_features() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 50.0]])
    wanted = -np.log(np.exp(logits.double().numpy()).sum(1))
    np.testing.assert_allclose(UnknownScore("energy", {})(logits, logits), wanted, rtol=1e-6)


def test_features_that_are_constant_or_zero_are_no_fault() -> None:
    features = np.zeros((20, 6), np.float32)
    features[:, 0] = 1 + np.arange(20) % 2
    score = fit_unknown_score(features, np.arange(20) % 2, torch.from_numpy(features[:1]), torch.zeros(1, 2))
    assert score(torch.zeros(3, 6), torch.zeros(3, 2)).isfinite().all()


def test_features_that_hardly_vary_keep_their_digits() -> None:
    generator = np.random.default_rng(0)
    features = (100 + generator.normal(size=(200, 20)) * 1e-2).astype(np.float32)
    score = fit_unknown_score(features, np.arange(200) % 4, torch.from_numpy(features), torch.zeros(200, 4))
    exact = UnknownScore(score.method, {name: one.double() for name, one in score.named_buffers()})
    new = torch.from_numpy(100 + generator.normal(size=(50, 20)) * 1e-2)
    found, wanted = score.distances(new.float()), exact.distances(new.float().double())
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0)


def test_nan_features_are_refused() -> None:
    features = np.ones((20, 6), np.float32)
    features[3, 2] = np.nan
    with pytest.raises(UsageError, match="1 of 20 training images have features that are NaN or infinite"):
        fit_unknown_score(features, np.arange(20) % 2, torch.zeros(1, 6), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("model", "size", "channels", "features"),
    [("lenet5", 32, 1, 84), ("resnet20", 32, 3, 64), ("squeezenet1_1", 48, 3, 512)],
)
def test_the_logits_are_those_of_the_network(
    made: Callable[..., Classifier], model: str, size: int, channels: int, features: int
) -> None:
    classifier = made(model, size, size, channels)
    split = split_features_and_logits(classifier.network, classifier.model, classifier.preprocess.input_shape)
    assert split is not None
    images = torch.randn(3, channels, size, size)
    with torch.inference_mode():
        found, logits = split(images)
        torch.testing.assert_close(logits, classifier.network(images))
    assert found.shape == (3, features)


def test_a_network_that_cannot_be_split_is_refused_where_features_are_needed() -> None:
    model = open_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)), sizes=(4,))
    network = model.build(2, 3, 4)
    features = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    score = fit_unknown_score(features, np.arange(20) % 2, torch.from_numpy(features), torch.zeros(20, 2))
    if split_features_and_logits(network, model, (1, 3, 4, 4)) is None:
        with pytest.raises(RunError, match="cannot be split before its last layer"):
            add_unknown_score(network, model, (1, 3, 4, 4), score)
    logits, scores = add_unknown_score(network, model, (1, 3, 4, 4), UnknownScore("energy", {})).logits_and_scores(
        torch.randn(2, 3, 4, 4)
    )
    torch.testing.assert_close(scores, -logits.logsumexp(1))


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (50, 200), (500, 30)])
def test_the_shrinkage_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    draws = np.random.default_rng(shape[0])
    features = draws.normal(size=shape) * draws.gamma(1, size=shape[1])
    features -= features.mean(0)
    expected = shrinkage_of_scikit_learn(features, assume_centered=True)
    assert ledoit_wolf_shrinkage(features, features.T @ features / len(features)) == pytest.approx(expected, rel=1e-9)
