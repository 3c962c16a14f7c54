"""95 % confidence intervals of shares and of paired differences, and their formats."""

import math

Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution

Interval = tuple[float, float]


def wilson_interval(count: float, images: float) -> Interval:
    """Return the Wilson score interval of a share.

    Args:
        count: Successes; not a whole number where trials are not independent.
        images: Independent trials.

    Returns:
        Lower and upper end, 0 to 1; NaN without trials.

    Source:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not images:
        return math.nan, math.nan
    share = count / images
    center = share + Z**2 / (2 * images)
    reach = Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    low, high = ((center + side * reach) / (1 + Z**2 / images) for side in (-1, 1))
    # Rounding would give 1e-17 instead of 0 at the ends.
    return (low if count else 0.0), (high if count < images else 1.0)


def error_interval(error: float, images: int) -> Interval:
    """Return the Wilson interval of an error, 0 to 1, that was measured on so many images; NaN without images."""
    return wilson_interval(round(error * images) if images else 0, images)


def paired_difference_interval(only_first: int, only_second: int, images: int) -> Interval:
    """Return the interval of the difference between two errors on the same images, the first minus the second.

    Args:
        only_first: Number of images that only the first classifier gets wrong.
        only_second: Images that only the second gets wrong.
        images: All images.

    Returns:
        Lower and upper end, −1 to 1; NaN without images.

    Source:
        Bonett & Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions based on
        paired data, eq. 6.
    """
    if not images:
        return math.nan, math.nan
    first, second = ((wrong + 1) / (images + 2) for wrong in (only_first, only_second))
    reach = Z * math.sqrt((first + second - (first - second) ** 2) / (images + 2))
    return max(-1.0, first - second - reach), min(1.0, first - second + reach)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test, 0 to 1.

    Args:
        only_first: Number of images that only the first classifier gets wrong.
        only_second: Images that only the second gets wrong.

    Source:
        McNemar 1947, Note on the sampling error of the difference between correlated proportions, as a sign test.
    """
    from scipy.special import bdtr  # scipy.stats.binomtest gives the same number and takes a second to import

    discordant = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0


def format_percentage_points(share: float) -> str:
    """Format a difference of shares (−1 to 1) in percentage points: "-1.3", "+0.4", "0.0"."""
    text = f"{100 * share:+.1f}"
    return text[1:] if text in ("+0.0", "-0.0") else text


def format_p_value(p: float) -> str:
    """Format a p-value after the letter p: "= 0.03", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.01 else f"= {p:.2f}"


def percent_with_interval(share: float, interval: Interval) -> str:
    """Return a share and its interval in percent, such as "5.00% (3.10 to 7.90)"."""
    return f"{share:.2%} ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def finite_or_none(value: float | None) -> float | None:
    """Return a number for JSON, which has neither NaN nor infinity: None in their place."""
    return float(value) if value is not None and math.isfinite(value) else None


def finite_interval_or_none(interval: Interval) -> Interval | None:
    """Return an interval for JSON; None unless both ends are finite."""
    return interval if all(map(math.isfinite, interval)) else None
