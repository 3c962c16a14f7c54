"""Bootstrap confidence intervals of metrics that are no shares of images."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from svertka.confidence_intervals import Interval

Floats = npt.NDArray[np.float64]

SAMPLES = 1000
MIN_SAMPLES = 200  # for many images, whose intervals are narrow anyway
NUMBERS = 4e7  # of all samples together, which limits the time
AT_ONCE = 2e6  # numbers in memory
SEED = 0


def bootstrap_intervals(
    metric: Callable[[Floats], Floats], images: int, metrics: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the 95 % percentile intervals of metrics over samples of the images with replacement.

    Args:
        metric: Returns the metrics (S, M) for S samples, given how often each image is in each of them, (S, N).
        images: N, the number of images.
        metrics: M.

    Returns:
        The lower and the upper ends, (M,); NaN where a metric is NaN in more than a tenth of the samples, as it is
        with fewer than two images.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", §13.3.
    """
    if images < 2:
        return np.full(metrics, np.nan), np.full(metrics, np.nan)
    samples = int(np.clip(NUMBERS / (images * metrics), MIN_SAMPLES, SAMPLES))
    rng = np.random.default_rng(SEED)
    share = max(1, int(AT_ONCE / images))
    found = []
    for start in range(0, samples, share):
        count = min(share, samples - start)
        found.append(metric(rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)))
    values = np.concatenate(found)
    unknown = np.isnan(values).mean(0) > 0.1
    low, high = np.full(metrics, np.nan), np.full(metrics, np.nan)
    if not unknown.all():
        low[~unknown], high[~unknown] = np.nanquantile(values[:, ~unknown], (0.025, 0.975), axis=0)
    return low, high


def as_interval(low: float, high: float) -> Interval:
    """Return two ends as an Interval of plain numbers."""
    return float(low), float(high)
