"""How sure a share is that was counted on some pictures: 95 % confidence intervals, of one and of a difference."""

import math

Z = 1.959963984540054  # of the standard normal distribution lies 95 % between −Z and Z

Interval = tuple[float, float]


def wilson_interval(count: int, images: int) -> Interval:
    """The share of all pictures of which `count` among `images` are an example, 0 to 1; NaN without pictures.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not images:
        return math.nan, math.nan
    share = count / images
    centre = share + Z**2 / (2 * images)
    reach = Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    low, high = ((centre + side * reach) / (1 + Z**2 / images) for side in (-1, 1))
    # At the ends rounding would leave 1e-17 of what is exactly zero.
    return (low if count else 0.0), (high if count < images else 1.0)


def paired_difference_interval(only_first: int, only_second: int, images: int) -> Interval:
    """The first's error minus the second's, −1 to 1, where both judged the same `images` pictures; NaN without any.

    `only_first`, `only_second`: pictures that this one alone has wrong. Source: Bonett & Price 2012, Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data, eq. 6.
    """
    if not images:
        return math.nan, math.nan
    first, second = ((wrong + 1) / (images + 2) for wrong in (only_first, only_second))
    reach = Z * math.sqrt((first + second - (first - second) ** 2) / (images + 2))
    return max(-1.0, first - second - reach), min(1.0, first - second + reach)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """How probable so unequal a split is if both are equally good: the exact two-sided p, 0 to 1.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions, as a sign test.
    """
    all_of_them, fewer = only_first + only_second, min(only_first, only_second)

    def term(wrong: int) -> float:
        ways = math.lgamma(all_of_them + 1) - math.lgamma(wrong + 1) - math.lgamma(all_of_them - wrong + 1)
        return math.exp(ways - all_of_them * math.log(2))

    return min(1.0, 2 * math.fsum(term(wrong) for wrong in range(fewer + 1)))


def format_points(share: float) -> str:
    """Format a difference of shares (−1 to 1) in percentage points: "−1.3", "+0.4", "0.0"."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return text[1:] if text in ("+0.0", "−0.0") else text


def format_p(p: float) -> str:
    """Format a p-value after the letter p: "= 0.03", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.01 else f"= {p:.2f}"
