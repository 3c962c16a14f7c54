import numpy as np

from svertka.tasks import Regression
from svertka.transfer.multi_label_and_regression_heads import fit_logistic_regressions, fit_ridge_regression


def test_each_label_is_found_again() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 6)) * [1, 10, 0.1, 1, 1, 1] + 3).astype(np.float32)
    targets = np.zeros((400, 3), np.float32)
    targets[:, 0] = features[:, 0] > 3
    targets[:, 1] = features[:, 1] > 8
    weight, bias = fit_logistic_regressions(features, targets, 3)
    assert (((features @ weight.T + bias) > 0) == (targets > 0.5)).mean() > 0.98
    assert not weight[2].any()  # no image has the label
    np.testing.assert_allclose(bias[2], np.log(0.5 / 400.5), rtol=1e-6)


def test_a_linear_number_is_found_again() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 5)) * [1, 10, 0.1, 1, 1] - 2).astype(np.float32)
    numbers = features.astype(np.float64) @ [2.0, 0.3, 5.0, 0.0, -1.0] + 100
    task = Regression().fit(numbers)
    weight, bias = fit_ridge_regression(features, numbers, task)
    found = (features @ weight.T + bias)[:, 0] * task.std + task.mean
    np.testing.assert_allclose(found, numbers, atol=0.05)
