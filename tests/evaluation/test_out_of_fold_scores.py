"""Unknown scores of training images by the other folds, against loops written out, and what they promise."""

import numpy as np
import pytest
import torch

from svertka.evaluation.out_of_fold_scores import FoldSettings, compute_out_of_fold_components
from svertka.evaluation.unknown_threshold import choose_threshold
from svertka.unknown_score import fit_unknown_score

D = 24


def draw(count, rng):
    """Features (N, D) of two classes, and their labels."""
    labels = np.arange(count) % 2
    values = rng.normal(0, 1, (count, D)) + 2.5 * np.eye(D)[labels]
    return values.astype(np.float32), labels


def logits_of(head, values):
    return torch.from_numpy(values @ head[0].T + head[1])


def mean_head(values, labels, classes):
    """Weights and biases of the nearest mean, as an oracle that is quick."""
    means = np.stack([values[labels == label].mean(0) for label in range(classes)])
    return 2 * means, -np.square(means).sum(1)


def test_each_image_is_scored_by_the_images_of_the_other_folds():
    values, labels = draw(6, np.random.default_rng(0))
    settings = FoldSettings(mean_head, np.arange(6))
    logits = logits_of(mean_head(values, labels, 2), values)
    found = compute_out_of_fold_components(torch.from_numpy(values), logits, labels, settings)
    pairs = set()
    for row in range(6):
        # Three images a class give three folds of two images, one of each class.
        for other in np.flatnonzero(labels != labels[row]):
            kept = np.setdiff1d(np.arange(6), [row, other])
            one = torch.from_numpy(values[[row]])
            own = logits_of(mean_head(values[kept], labels[kept], 2), values[[row]])
            score = fit_unknown_score(values[kept], labels[kept], one, own)
            if torch.allclose(score.components(one, own)[0], found[row], rtol=1e-4):
                pairs.add(frozenset((row, int(other))))
    assert len(pairs) == 3
    assert frozenset.union(*pairs) == set(range(6))


def test_images_of_one_group_do_not_score_each_other():
    values, labels = draw(8, np.random.default_rng(1))
    values, labels, groups = np.repeat(values, 2, 0), np.repeat(labels, 2), np.repeat(np.arange(8), 2)
    logits = logits_of(mean_head(values, labels, 2), values)
    found = [
        compute_out_of_fold_components(torch.from_numpy(values), logits, labels, FoldSettings(mean_head, own))[:, 0]
        for own in (groups, np.arange(16))
    ]
    assert found[0].mean() > 1.2 * found[1].mean()  # a copy in another fold would be near


def test_another_head_or_too_few_images_give_none():
    values, labels = draw(8, np.random.default_rng(2))
    logits = logits_of(mean_head(values, labels, 2), values)
    features, settings = torch.from_numpy(values), FoldSettings(mean_head, np.arange(8))
    assert compute_out_of_fold_components(features, logits, labels, settings) is not None
    assert compute_out_of_fold_components(features, 2 * logits, labels, settings) is None
    assert compute_out_of_fold_components(features, logits, labels, FoldSettings(mean_head, labels)) is None
    assert compute_out_of_fold_components(features, logits, labels, FoldSettings(mean_head, np.arange(7))) is None


def test_few_images_keep_as_many_new_ones_as_is_said():
    kept, alone = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        (values, labels), (val, _), (new, _) = draw(36, rng), draw(4, rng), draw(2000, rng)
        head = mean_head(values, labels, 2)
        train, held, others = ((torch.from_numpy(one), logits_of(head, one)) for one in (values, val, new))
        score = fit_unknown_score(values, labels, *held)
        threshold = choose_threshold(score.method, score(*held).numpy(), None, 0.95).threshold
        alone.append(float((score(*others) <= threshold).float().mean()))
        own = compute_out_of_fold_components(*train, labels, FoldSettings(mean_head, np.arange(36)))
        components = torch.cat([score.components(*held), own])
        score.set_scale(components)
        chosen = choose_threshold(score.method, score.standardize(components).numpy(), None, 0.95)
        assert (chosen.images, round(chosen.kept * 40)) == (40, 39)
        kept.append(float((score(*others) <= chosen.threshold).float().mean()))
    assert np.mean(kept) == pytest.approx(39 / 41, abs=0.04)
    assert np.mean(alone) < 0.9
