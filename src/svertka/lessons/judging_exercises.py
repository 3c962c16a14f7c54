"""Exercises of the notebook "Judging"."""

import math
from typing import Any

import torch

from svertka.confidence_intervals import mcnemar_p_value, wilson_interval
from svertka.lessons.answer_checks import check_function, check_number, to_number

# Per cent. The mean of the largest of 20 draws from Binomial(100, ½) is 59.3; few simulations give 57 to 62.
BEST_OF_TWENTY, ROUGHLY = 59.5, 0.043


def check_top_k_error(answer: Any) -> str | None:
    """12.1: a function (scores, labels, k) that returns the top-k error."""
    if reason := check_function(answer, "scores, labels and k"):
        return reason
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 8, generator=generator), torch.randint(0, 8, (200,), generator=generator)
    place = (scores > scores.gather(1, labels[:, None])).sum(1)
    for k in (1, 3, 5):
        expected = float((place >= k).double().mean())
        result = answer(scores, labels, k)
        value = to_number(result)
        if value is None:
            return (
                f"It returns {'None' if result is None else type(result).__name__}. The error, a number, is asked for."
            )
        if (reason := check_number(result, expected, tolerance=1e-6)) is None:
            continue
        for mistake, hint in (
            (1 - expected, "This is the accuracy. The error is the rest."),
            (100 * expected, "The error is a share, from 0 to 1."),
            (float((place >= k).sum()), "This is the number of mistakes. Divide by the number of images."),
            (float((place >= 1).double().mean()), "It returns the top-1 error for every k."),
            (float((place >= k - 1).double().mean()), "One class too few is counted: the first place is place 0."),
            (float((place > k).double().mean()), "One class too many is counted: the first place is place 0."),
        ):
            if check_number(result, mistake, tolerance=1e-6) is None:
                return f"For k = {k}: {hint}"
        return f"For k = {k} it returns {value:.4f}, and {expected:.4f} is right."
    return None


def check_no_mistakes(answer: Any) -> str | None:
    """12.2: the upper end of Wilson's interval for 0 of 50, per cent."""
    high = 100 * wilson_interval(0, 50)[1]
    hints = {
        0.0: "The next image may be wrong. With 50 images, an error of a few per cent is easily overlooked.",
        6.0: "This is the rule of three, 3 / n: a one-sided interval. Wilson's is a little wider.",
        2.0: "This would be one mistake in 50.",
        high / 100: "This is the share; per cent are asked for.",
        5.0: "The 95 % are not what is asked for, but how sure one wants to be.",
    }
    return check_number(answer, high, hints, tolerance=0.02)


def check_images_needed(answer: Any) -> str | None:
    """12.3: images for ± 0.5 points at 5 %."""
    right = 1.96**2 * 0.05 * 0.95 / 0.005**2
    hints = {
        0.05 * 0.95 / 0.005**2: "This is for one standard deviation. 95 % take 1.96 of them.",
        right / 4: "This is for ± 1 point.",
        right * 4: "This is for ± 0.25 points: the interval goes to both sides.",
        1.96 * 0.05 * 0.95 / 0.005**2: "The 1.96 is squared, too.",
        1.96**2 * 0.25 / 0.005**2: "This is for an error of 50 %, the worst case.",
    }
    return check_number(answer, right, hints, tolerance=0.04)


def check_coin_tosses(answer: Any) -> str | None:
    """12.4: McNemar's p-value for 16 against 4."""
    right = mcnemar_p_value(16, 4)
    hints = {
        right / 2: "This is for one direction. Tails count, too.",
        2 * math.comb(20, 16) / 2**20: "This is exactly 16. More than 16 count, too.",
        math.comb(20, 16) / 2**20: "This is exactly 16 heads. More than 16 count, and tails as well.",
        1 - right: "This is the probability of the opposite.",
        100 * right: "This is in per cent; a probability is asked for.",
    }
    return check_number(answer, right, hints, tolerance=0.03)


def check_best_of_twenty(answer: Any) -> str | None:
    """12.5: the accuracy of the best of twenty coin tossers on 100 images, per cent."""
    hints = {
        50.0: "This is the mean of the twenty. The best of them was lucky.",
        55.0: "This is one standard deviation above the mean. The best of twenty is further up.",
    }
    return check_number(answer, BEST_OF_TWENTY, hints, tolerance=ROUGHLY)


def check_averaged_crops(answer: Any) -> str | None:
    """12.6: the answer of three crops."""
    hints = {
        1.0: "Two of three crops say dog, but only just. The probabilities are averaged, not the answers.",
        2.0: "The fox has the smallest probability of all.",
    }
    return check_number(answer, 0, hints)


EXERCISES = {
    "12.1": check_top_k_error, "12.2": check_no_mistakes, "12.3": check_images_needed, "12.4": check_coin_tosses,
    "12.5": check_best_of_twenty, "12.6": check_averaged_crops,
}  # fmt: skip
