"""The reliability diagram: how often the network is right against how sure it is."""

from svertka.evaluation.calibration import BINS, Calibration, ConfidenceBin
from svertka.pages.axes import Scale
from svertka.pages.html_page import NOTHING, SPACE, count, percent
from svertka.pages.svg_curves import Axis, Line, Panel, Reading, curves

HEIGHT = 288  # pixels


def reliability_html(calibration: Calibration) -> str:
    """The section's HTML; empty where no picture was judged."""
    if not calibration.bins:
        return ""
    said = _sentence(calibration)
    how = (
        "The pictures in groups by the probability of the class they were given: solid is the share of them that is "
        "right, grey where it would be if probabilities could be taken at their word, dashed what is left after all "
        "scores were divided by one number, the temperature, chosen for each half of the pictures on the other half "
        '(<a href="https://arxiv.org/abs/1706.04599">Guo et al. 2017, §2 and §4.2</a>).'
    )
    return f'<p>{said}</p><p class="how">{how}</p>{_figure(calibration)}'


def _sentence(calibration: Calibration) -> str:
    images = sum(one.images for one in calibration.bins)
    sure = sum(one.images * one.confidence for one in calibration.bins) / images
    right = sum(one.images * one.accuracy for one in calibration.bins) / images
    much = "too sure of itself" if sure > right else "not sure enough"
    judged = f"On average it is {percent(sure)} sure and {percent(right)} right"
    verdict = f": {much}" if abs(sure - right) >= 0.01 else ""
    return (
        f"{judged}{verdict}. Expected calibration error {percent(calibration.error)}; with a temperature of "
        f"{calibration.temperature:.2f} it is {percent(calibration.scaled_error)}."
    )


def _figure(calibration: Calibration) -> str:
    share = Scale("linear", 0.0, 1.0)
    lines = [Line("", [0, 100], [0, 1], "faint"), _line("scaled", calibration.scaled_bins, "dashed")]
    lines.append(_line("as it is", calibration.bins, "solid"))
    panel = Panel("Right", share, lines, lambda value: f"{100 * value:.0f}{SPACE}%", HEIGHT)
    scale = Scale("linear", 0.0, 100.0)
    readings = []
    for one in calibration.bins:
        low = int(min(one.confidence * BINS, BINS - 1))
        between = f"{100 * low / BINS:.0f} to {100 * (low + 1) / BINS:.0f}{SPACE}% sure"
        readings.append(
            Reading(100 * one.confidence, between, [f"{percent(one.accuracy)} of {count(one.images, 'picture')} right"])
        )
    return curves([panel], Axis("% sure", scale, scale.ticks(5)), readings, None, NOTHING)


def _line(name: str, bins: tuple[ConfidenceBin, ...], style: "str") -> Line:
    return Line(name, [100 * one.confidence for one in bins], [one.accuracy for one in bins], style)  # type: ignore[arg-type]
