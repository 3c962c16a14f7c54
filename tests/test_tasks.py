import math

import numpy as np
import torch
from torch import nn

from svertka.tasks import SINGLE_LABEL, MultiLabel, Regression

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.2, 1.0]])
LABELS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def test_losses_are_those_of_pytorch_summed_over_the_batch() -> None:
    wanted = nn.BCEWithLogitsLoss(reduction="sum")(LOGITS, LABELS)
    torch.testing.assert_close(MultiLabel().loss(LOGITS, LABELS), wanted)
    each = nn.BCEWithLogitsLoss(reduction="none")(LOGITS, LABELS * 0.8 + 0.1).sum(1)
    weights = torch.tensor([2.0, 0.5])
    torch.testing.assert_close(MultiLabel().loss(LOGITS, LABELS, weights, 0.2), weights @ each)

    task, outputs = Regression(mean=10.0, std=4.0), torch.tensor([[0.0], [1.0], [-3.0]])
    numbers = torch.tensor([10.0, 15.0, 10.0], dtype=torch.float64)  # 0, 1.25 and 0 standardized
    torch.testing.assert_close(task.loss(outputs, numbers), torch.tensor(0.25**2 / 2 + 3.0 - 0.5))
    torch.testing.assert_close(task.activate(outputs)[:, 0], torch.tensor([10.0, 14.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(task.errors(outputs, numbers), torch.tensor([0.0, 1.0, 12.0], dtype=torch.float64))


def test_outputs_in_bfloat16_have_the_same_loss() -> None:
    rounded = LOGITS.bfloat16()
    torch.testing.assert_close(MultiLabel().loss(rounded, LABELS), MultiLabel().loss(rounded.float(), LABELS))
    numbers = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        Regression().loss(rounded[:, :1], numbers), Regression().loss(rounded[:, :1].float(), numbers)
    )


def test_error_of_labels_is_the_share_of_wrong_ones() -> None:
    torch.testing.assert_close(MultiLabel().errors(LOGITS, LABELS), torch.tensor([1 / 3, 0.0], dtype=torch.float64))


def test_probabilities_are_averaged_over_crops() -> None:
    crops = torch.tensor([[[2.0], [-2.0]]])  # one image, two crops, one label
    averaged = MultiLabel().average(crops, 1)
    assert torch.sigmoid(averaged).item() == 0.5
    np.testing.assert_allclose(
        MultiLabel().average(LOGITS[None, :, :1], 1).sigmoid().item(), LOGITS[:, 0].sigmoid().mean(), rtol=1e-6
    )


def test_initial_bias_predicts_the_shares_of_the_labels() -> None:
    targets = np.zeros((99, 3), np.float32)
    targets[:49, 0], targets[:, 1] = 1, 1
    shares = MultiLabel().initial_bias(targets).sigmoid().tolist()
    np.testing.assert_allclose(shares, [0.495, 0.995, 0.005], rtol=1e-6)


def test_a_number_has_the_shortest_text_that_is_read_as_it() -> None:
    assert [Regression().text(number, ("age",)) for number in (0.1, 37.0, np.float64(1 / 3))] == [
        "0.1",
        "37",
        "0.3333333333333333",
    ]


def test_strata() -> None:
    # The third label is the rarest; the last image has none.
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(MultiLabel().strata(targets)[[2, 3, 5]], [2, 2, 3])
    numbers = np.random.default_rng(0).permutation(1000).astype(float)
    strata = Regression().strata(numbers)
    np.testing.assert_array_equal(np.bincount(strata), [100] * 10)
    assert all(numbers[strata == one].max() < numbers[strata == one + 1].min() for one in range(9))
    assert set(Regression().strata(np.array([0.0] * 50 + [1.0])).tolist()) <= {0, 1}


def test_what_is_stored() -> None:
    fitted = Regression().fit(np.array([1.0, 3.0]))
    assert (fitted.mean, fitted.std) == (2.0, 1.0)
    assert Regression().fit(np.array([2.0, 2.0])).std == 1.0
    assert SINGLE_LABEL.model_dump() == {"kind": "single-label"}
    assert math.isclose(MultiLabel(thresholds=(0.25, 0.5)).threshold(0), 0.25)
