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
    counts = 1, 3, 5
    expected = [float((place >= k).double().mean()) for k in counts]
    found = []
    for k in counts:
        result = answer(scores, labels, k)
        value = to_number(result)
        if value is None:
            kind = "None" if result is None else type(result).__name__
            return f"It returns {kind}. The error, a number, is asked for."
        found.append(value)
    fewer = [float((place >= k - 1).double().mean()) for k in counts]
    more = [float((place > k).double().mean()) for k in counts]
    lowest = [float((place < 8 - k).double().mean()) for k in counts]
    for mistake, hint in (
        (expected, ""),
        ([1 - error for error in expected], "This is the accuracy. The error is the rest."),
        ([100 * error for error in expected], "The error is a share, from 0 to 1."),
        ([200 * error for error in expected], "This is the number of mistakes. Divide by the number of images."),
        ([expected[0]] * 3, "It returns the top-1 error for every k."),
        ([expected[2]] * 3, "It returns the top-5 error for every k."),
        (fewer, "One class too few is counted: the first place is place 0."),
        (more, "One class too many is counted: the first place is place 0."),
        (lowest, "It takes the k lowest scores."),
        (
            [1 - (1 - error) / k for k, error in zip(counts, expected, strict=True)],
            "An image with k guesses is right if one of them is; the other guesses do not count as wrong.",
        ),
    ):
        if all(abs(one - other) < 1e-6 * max(1, abs(other)) for one, other in zip(found, mistake, strict=True)):
            return hint or None
    for k, value, right in zip(counts, found, expected, strict=True):
        if not abs(value - right) < 1e-6:  # NaN is wrong, too
            return f"For k = {k} it returns {value:.4f}, and {right:.4f} is right."
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
        100 * (1 - 0.05 ** (1 / 50)): "This is the exact one-sided limit. Wilson's interval is asked for.",
        100.0: "With an error near 100 %, 50 right answers in a row would be a miracle.",
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
        right / 100: "± 0.5 points are ± 0.005, not ± 0.05.",
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
        right - 2 * math.comb(20, 16) / 2**20: "16 heads count, too, not only more.",
        4 / 20: "This is the share of A. How probable is it that coins fall as unevenly?",
    }
    return check_number(answer, right, hints, tolerance=0.03)


def check_best_of_twenty(answer: Any) -> str | None:
    """12.5: the accuracy of the best of twenty coin tossers on 100 images, per cent."""
    hints = {
        50.0: "This is the mean of the twenty. The best of them was lucky.",
        55.0: "This is one standard deviation above the mean. The best of twenty is further up.",
        BEST_OF_TWENTY / 100: "This is the share; per cent are asked for.",
        67.0: "The best of twenty reaches 65 in 3 of 100 classes of students, and 70 hardly ever.",
        100.0: "A hundred right guesses in a row do not happen. One standard deviation is 5 points.",
    }
    return check_number(answer, BEST_OF_TWENTY, hints, tolerance=ROUGHLY)


def check_averaged_crops(answer: Any) -> str | None:
    """12.6: the answer of three crops."""
    if isinstance(answer, str):
        return "The number of the class is asked for: 0, 1 or 2."
    hints = {
        1.0: "Two of three crops say dog, but only just. The probabilities are averaged, not the answers.",
        2.0: "The fox has the smallest probability of all.",
    }
    return check_number(answer, 0, hints)


EXERCISES = {
    "12.1": check_top_k_error, "12.2": check_no_mistakes, "12.3": check_images_needed, "12.4": check_coin_tosses,
    "12.5": check_best_of_twenty, "12.6": check_averaged_crops,
}  # fmt: skip
