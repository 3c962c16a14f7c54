"""The reliability diagram: accuracy against confidence."""

import math

from markupsafe import Markup

from svertka.confidence_intervals import Z
from svertka.evaluation.calibration import BINS, MIN_IMAGES, Calibration, ConfidenceBin
from svertka.pages.axes import Scale
from svertka.pages.number_format import MISSING, NBSP, count_with_noun, format_percent
from svertka.pages.svg_curves import CursorReadout, Line, LineStyle, Panel, XAxis, render_curves
from svertka.pages.templates import render_template

HEIGHT = 288  # pixels
MIN_DIFFERENCE = 0.01  # of mean confidence and accuracy below which neither is called larger


def reliability_html(calibration: Calibration, noun: str = "picture") -> Markup:
    """Return the section as HTML; empty if no image was evaluated, and a sentence if they are too few.

    Args:
        calibration: The calibration.
        noun: What was decided on: a picture, or each label of a picture.
    """
    images = calibration.images
    if not images:
        return Markup()
    if not calibration.is_meaningful:
        return Markup("<p>{} are too few to compare confidence with accuracy; {} are needed.</p>").format(
            count_with_noun(images, noun), MIN_IMAGES
        )
    confidence = sum(one.images * one.confidence for one in calibration.bins) / images
    accuracy = sum(one.images * one.accuracy for one in calibration.bins) / images
    verdict = "overconfident" if confidence > accuracy else "underconfident"
    return render_template(
        "reliability.html",
        calibration=calibration,
        confidence=confidence,
        accuracy=accuracy,
        verdict=verdict if abs(confidence - accuracy) >= max(MIN_DIFFERENCE, _chance_difference(calibration)) else "",
        curves=_curves(calibration, noun),
        noun=noun,
    )


def _chance_difference(calibration: Calibration) -> float:
    """Return the difference of confidence and accuracy that exact probabilities exceed in 5 % of all cases."""
    variance = sum(one.images * one.confidence * (1 - one.confidence) for one in calibration.bins)
    return Z * math.sqrt(variance) / calibration.images


def _curves(calibration: Calibration, noun: str) -> Markup:
    share = Scale("linear", 0.0, 1.0)
    lines = [Line("", [0, 100], [0, 1], "faint"), _line("scaled", calibration.scaled_bins, "dashed")]
    lines.append(_line("raw", calibration.bins, "solid"))
    panel = Panel("Accuracy by confidence", share, lines, lambda value: f"{100 * value:.0f}{NBSP}%", HEIGHT)
    scale = Scale("linear", 0.0, 100.0)
    readings = []
    for one in calibration.bins:
        low = int(min(one.confidence * BINS, BINS - 1))
        between = f"{100 * low / BINS:.0f} to {100 * (low + 1) / BINS:.0f}{NBSP}% confident"
        readings.append(
            CursorReadout(
                100 * one.confidence,
                between,
                [f"{format_percent(one.accuracy)} of {count_with_noun(one.images, noun)} right"],
            )
        )
    return render_curves([panel], XAxis("%", scale, scale.ticks(5)), readings, None, MISSING)


def _line(name: str, bins: tuple[ConfidenceBin, ...], style: LineStyle) -> Line:
    return Line(name, [100 * one.confidence for one in bins], [one.accuracy for one in bins], style)
