"""The reliability diagram: accuracy against confidence."""

from svertka.evaluation.calibration import BINS, Calibration, ConfidenceBin
from svertka.pages.axes import Scale
from svertka.pages.number_format import MISSING, NBSP, format_count, format_percent
from svertka.pages.svg_curves import Line, Panel, Reading, XAxis, render_curves

HEIGHT = 288  # pixels


def reliability_html(calibration: Calibration) -> str:
    """Return the section as HTML; empty if no image was evaluated."""
    if not calibration.bins:
        return ""
    said = _sentence(calibration)
    how = (
        "The pictures in groups by the probability of the class they were given: solid is the share of them that is "
        "right, grey where it would be if probabilities were exact, dashed after all "
        "scores were divided by one number, the temperature, chosen for each half of the pictures on the other half "
        '(<a href="https://arxiv.org/abs/1706.04599">Guo et al. 2017, §2 and §4.2</a>).'
    )
    return f'<p>{said}</p><p class="how">{how}</p>{_figure(calibration)}'


def _sentence(calibration: Calibration) -> str:
    images = sum(one.images for one in calibration.bins)
    sure = sum(one.images * one.confidence for one in calibration.bins) / images
    right = sum(one.images * one.accuracy for one in calibration.bins) / images
    much = "too sure of itself" if sure > right else "not sure enough"
    judged = f"On average it is {format_percent(sure)} sure and {format_percent(right)} right"
    verdict = f": {much}" if abs(sure - right) >= 0.01 else ""
    return (
        f"{judged}{verdict}. Expected calibration error {format_percent(calibration.error)}; with a temperature of "
        f"{calibration.temperature:.2f} it is {format_percent(calibration.scaled_error)}."
    )


def _figure(calibration: Calibration) -> str:
    share = Scale("linear", 0.0, 1.0)
    lines = [Line("", [0, 100], [0, 1], "faint"), _line("scaled", calibration.scaled_bins, "dashed")]
    lines.append(_line("as it is", calibration.bins, "solid"))
    panel = Panel("Right", share, lines, lambda value: f"{100 * value:.0f}{NBSP}%", HEIGHT)
    scale = Scale("linear", 0.0, 100.0)
    readings = []
    for one in calibration.bins:
        low = int(min(one.confidence * BINS, BINS - 1))
        between = f"{100 * low / BINS:.0f} to {100 * (low + 1) / BINS:.0f}{NBSP}% sure"
        readings.append(
            Reading(
                100 * one.confidence,
                between,
                [f"{format_percent(one.accuracy)} of {format_count(one.images, 'picture')} right"],
            )
        )
    return render_curves([panel], XAxis("% sure", scale, scale.ticks(5)), readings, None, MISSING)


def _line(name: str, bins: tuple[ConfidenceBin, ...], style: "str") -> Line:
    return Line(name, [100 * one.confidence for one in bins], [one.accuracy for one in bins], style)  # type: ignore[arg-type]
