"""Error by image properties: brightness, size and sharpness."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from svertka.confidence_intervals import Interval, wilson_interval
from svertka.data.rgb_conversion import to_gray
from svertka.errors import ImageError
from svertka.evaluation.metrics import Evaluation
from svertka.pages.axes import Scale
from svertka.pages.number_format import NBSP, count_with_noun, format_brief, format_percent
from svertka.pages.svg_curves import CursorReadout, Line, Panel, XAxis, render_curves
from svertka.pages.templates import render_template

Pixels = npt.NDArray[np.uint8]

MAX_IMAGES = 1000  # that are read again, drawn at random
MAX_BINS, MIN_IMAGES_PER_BIN = 5, 10
SIDE = 256  # shorter side at which sharpness is measured, pixels
HEIGHT = 120  # pixels of a chart


@dataclass(frozen=True)
class PropertyBin:
    """The images whose value lies between `low` and `high`.

    Attributes:
        low: Lowest value.
        high: Highest value.
        images: Number of images.
        wrong: Number of mistakes.
    """

    low: float
    high: float
    images: int
    wrong: int

    @property
    def error(self) -> float:
        """Share of mistakes."""
        return self.wrong / self.images

    @property
    def interval(self) -> Interval:
        """95 % confidence interval of the error."""
        return wilson_interval(self.wrong, self.images)


@dataclass(frozen=True)
class ErrorByProperty:
    """The error by one image property.

    Attributes:
        name: Name of the property.
        unit: Its unit.
        how: How it is measured.
        bins: Bins with equally many images, ascending.
    """

    name: str
    unit: str
    how: str
    bins: tuple[PropertyBin, ...]


def errors_by_property(
    evaluation: Evaluation, read: Callable[[int], Pixels], threads: int
) -> tuple[ErrorByProperty, ...]:
    """Return the error by brightness, size and sharpness; a property that all images share is left out.

    Args:
        evaluation: The evaluation.
        read: Returns the image at an index in its own size, (H, W, 1 | 3) uint8; an image for which it raises
            ImageError is left out.
        threads: Threads for reading.
    """
    places = np.arange(len(evaluation.indices))
    if len(places) > MAX_IMAGES:
        places = np.sort(np.random.default_rng(0).choice(places, MAX_IMAGES, replace=False))

    def look(index: int) -> tuple[float, float, float] | None:
        try:
            return measure_image_properties(read(index))
        except ImageError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        looked = list(pool.map(look, evaluation.indices[places].tolist()))
    seen = [k for k, one in enumerate(looked) if one is not None]
    if not seen:
        return ()
    values = np.array([looked[k] for k in seen], dtype=np.float64)
    wrong = evaluation.wrong[places[seen]]
    kinds = (
        ("Brightness", "%", "mean of the gray picture, of full scale"),
        ("Size", "pixels", "the shorter side"),
        ("Sharpness", "gray levels", f"standard deviation of the Laplacian at {SIDE} pixels; blurred is low"),
    )
    found = (ErrorByProperty(*kind, _equal_bins(values[:, k], wrong)) for k, kind in enumerate(kinds))
    return tuple(one for one in found if len(one.bins) > 1)


def measure_image_properties(picture: Pixels) -> tuple[float, float, float]:
    """Return brightness (%), shorter side (pixels) and sharpness (gray levels) of an image (H, W, C) uint8."""
    gray = to_gray(picture)
    shorter = min(gray.size)
    brightness = 100 * float(np.asarray(gray).mean()) / 255
    if shorter > SIDE:
        scale = SIDE / shorter
        gray = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.BOX)
    levels = np.pad(np.asarray(gray, dtype=np.float32), 1, mode="edge")
    middle = levels[1:-1, 1:-1]
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * middle
    return brightness, float(shorter), float(laplacian.std())


def _equal_bins(values: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_]) -> tuple[PropertyBin, ...]:
    """Return bins with equally many images, as far as equal values allow."""
    number = min(MAX_BINS, len(values) // MIN_IMAGES_PER_BIN)
    if number < 2:
        return ()
    edges = np.unique(np.quantile(values, np.linspace(0, 1, number + 1)[1:-1], method="higher"))
    place = np.searchsorted(edges, values, side="right")
    return tuple(
        PropertyBin(float(values[here].min()), float(values[here].max()), int(here.sum()), int(wrong[here].sum()))
        for here in (place == k for k in range(len(edges) + 1))
        if here.any()
    )


def errors_by_property_html(found: Sequence[ErrorByProperty], images: int) -> Markup:
    """Return the section as HTML, empty without slices; `images` is the number of evaluated images."""
    if not found:
        return Markup()
    return render_template(
        "slices.html",
        slices=[_describe(one) for one in found],
        measured=sum(one.images for one in found[0].bins),
        images=images,
    )


def _describe(of_property: ErrorByProperty) -> dict[str, Any]:
    """Return what the template shows of one property."""
    bins, unit = of_property.bins, of_property.unit
    ranges = [f"{format_brief(round(one.low, 1))} to {format_brief(round(one.high, 1))}{NBSP}{unit}" for one in bins]
    x = [float(k) for k in range(1, len(bins) + 1)]
    low, high = zip(*(one.interval for one in bins), strict=True)
    lines = [
        Line("", x, low, "faint"),
        Line("", x, high, "faint"),
        Line("error", x, [one.error for one in bins], "solid"),
    ]
    title = f"{of_property.name}: {of_property.how}"
    panel = Panel(title, Scale("linear", 0.0, max(high)), lines, lambda share: f"{100 * share:g}{NBSP}%", HEIGHT)
    readings = [
        CursorReadout(place, name, [f"{format_percent(one.error)} of {count_with_noun(one.images, 'picture')} wrong"])
        for place, name, one in zip(x, ranges, bins, strict=True)
    ]
    axis = XAxis("group", Scale("linear", 0.5, len(bins) + 0.5), x)
    return {
        "name": of_property.name,
        "curves": render_curves([panel], axis, readings, None, ""),
        "bins": list(zip(ranges, bins, strict=True)),
    }
