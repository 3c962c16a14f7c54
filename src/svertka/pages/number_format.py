"""Numbers as text: percentages, three significant digits, counts with a noun."""

import math

NBSP = "\u00a0"  # between a number and its unit, so that no line breaks there
MISSING = "–"  # shown in place of a missing number


def format_percent(share: float | None) -> str:
    """Return `share` (0 to 1) with one decimal, "1.1 %"; a dash for None and NaN."""
    return f"{100 * share:.1f}{NBSP}%" if share is not None and math.isfinite(share) else MISSING


def format_three_digits(value: float) -> str:
    """Return `value` with exactly three significant digits, to compare losses: "0.0123", "1.70"; a dash for NaN."""
    if not (math.isfinite(value) and 1e-3 <= abs(value) < 1e5):
        return format_brief(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def format_brief(value: float) -> str:
    """Return `value` with at most three significant digits: "0.5", "0.00249", "10⁻⁶", "3.2·10⁻⁵"; a dash for NaN."""
    if not math.isfinite(value):
        return MISSING
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"


def count_with_noun(value: int, noun: str) -> str:
    """Return a count with its noun in singular or plural: "1 epoch", "20 epochs", "10,000 images"."""
    return f"{value:,}{NBSP}{noun}{'' if value == 1 else 's'}"
