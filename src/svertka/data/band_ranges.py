"""Ranges of the values of each band of multispectral images, by which they become bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from svertka.data.rgb_conversion import Pixels, Range

MAX_BANDS = 16
TAIL = 0.005  # of the values of a band may lie below its range, and as many above
MISMATCH = 0.5  # share of values outside of the ranges from which on a sentence says so
SAMPLED_PIXELS = 4096  # of an image, by which its values are measured

Values = npt.NDArray[np.generic]
BandType = Literal["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
BAND_TYPES: tuple[str, ...] = get_args(BandType)


@dataclass(frozen=True)
class BandRanges:
    """How the values of images with any number of bands become bytes; such images are not converted to RGB.

    Attributes:
        dtype: Type of the values.
        bands: For each band, the values that become 0 and 255; values outside are clipped.
    """

    dtype: BandType
    bands: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.bands) <= MAX_BANDS:
            raise ValueError(f"{len(self.bands)} bands must be 1 to {MAX_BANDS}")
        for low, high in self.bands:
            if not -np.inf < low < high < np.inf:
                raise ValueError(f"the range of a band, {low:g} to {high:g}, must be two values, the lower first")

    @classmethod
    def of_bytes(cls, count: int) -> "BandRanges":
        """Return the ranges of images of `count` bands of bytes, which stay as they are."""
        return cls("uint8", ((0.0, 255.0),) * count)

    def __len__(self) -> int:
        return len(self.bands)

    def describe(self) -> str:
        """Return number and type of the bands, as "10 bands, 16 bit"."""
        bits = np.dtype(self.dtype).itemsize * 8
        kind = {"u": "", "i": " signed", "f": " floating point"}[np.dtype(self.dtype).kind]
        return f"{len(self)} band{'' if len(self) == 1 else 's'}, {bits} bit{kind}"

    def to_bytes(self, values: Values, nodata: float | None = None) -> Pixels:
        """Map the values of an image to bytes, the nearest of 256 equal steps.

        Args:
            values: (H, W, C) of type `dtype`.
            nodata: The value of pixels without data, which become 0, as NaN does.

        Returns:
            (H, W, C) uint8.
        """
        pixels = np.empty(values.shape, np.uint8)
        for band, (low, high) in enumerate(self.bands):
            plane = values[..., band]
            if plane.dtype == np.uint8 and (low, high) == (0, 255):
                pixels[..., band] = plane
            else:
                with np.errstate(over="ignore", invalid="ignore"):
                    scaled = (plane.astype(np.float64) - low) * (255 / (high - low))
                pixels[..., band] = np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255))
            if nodata is not None:
                pixels[..., band][plane == nodata] = 0
        return pixels

    def measure_share_outside(self, sample: npt.NDArray[np.float64]) -> float:
        """Return the share of values (n, C), as `sample_band_values` returns them, that lie outside of the ranges."""
        low, high = np.array(self.bands, np.float64).T
        known = ~np.isnan(sample)
        return float(((sample < low) | (sample > high))[known].mean()) if known.any() else 0.0

    def to_values(self, pixels: Pixels) -> Values:
        """Return values (H, W, C) of type `dtype` that `to_bytes` maps to `pixels`, which it returned for others."""
        low, high = np.array(self.bands, np.float64).T
        values = low + pixels * (high - low) / 255
        stored: Values = (values if np.dtype(self.dtype).kind == "f" else np.rint(values)).astype(self.dtype)
        return stored


class HasIntensityRange:
    """What the `intensity_range` of a class says: the range of 16-bit values of RGB images, or those of bands."""

    if TYPE_CHECKING:  # at run time, pydantic would take it for the first field
        intensity_range: Range | BandRanges | None

    @property
    def bands(self) -> BandRanges | None:
        """The ranges of the bands; None if images are RGB."""
        return self.intensity_range if isinstance(self.intensity_range, BandRanges) else None

    @property
    def deep_range(self) -> Range | None:
        """The 16-bit values of RGB images that become 0 and 255; None: 0 and 65535."""
        return None if isinstance(self.intensity_range, BandRanges) else self.intensity_range


def sample_band_values(values: Values, nodata: float | None = None) -> npt.NDArray[np.float64]:
    """Return up to `SAMPLED_PIXELS` pixels of an image (H, W, C), evenly spread: (n, C) float64, NaN without data."""
    flat = values.reshape(-1, values.shape[2])
    some = flat[:: max(1, -(-len(flat) // SAMPLED_PIXELS))].astype(np.float64)
    missing = ~np.isfinite(some) if nodata is None else ~np.isfinite(some) | (some == nodata)
    return np.where(missing, np.nan, some)


def describe_band_mismatch(shares: Sequence[float]) -> str | None:
    """Return a sentence if most values of images lie outside of the ranges of the training images, else None.

    Args:
        shares: The share of the values of each image that lies outside.
    """
    if not shares or (share := float(np.median(shares))) <= MISMATCH:
        return None
    return (
        f"{share:.0%} of the values of the bands lie outside of the ranges of the training images, and become the "
        "lowest or highest byte; check the units and the order of the bands"
    )


def choose_band_ranges(dtype: BandType, samples: Sequence[npt.NDArray[np.float64]]) -> BandRanges:
    """Choose the range of each band, outside of which lies a share of `TAIL` of the values on either side.

    Args:
        dtype: Type of the values. Bytes stay as they are.
        samples: Pixels of the images, each (n, C) float64, as `sample_band_values` returns them.
    """
    pixels = np.concatenate(samples)
    if dtype == "uint8":
        return BandRanges.of_bytes(pixels.shape[1])
    ranges = []
    for band in pixels.T:
        known = band[~np.isnan(band)]
        low, high = (0.0, 0.0)
        if len(known):
            low = float(np.quantile(known, TAIL, method="lower"))
            high = float(np.quantile(known, 1 - TAIL, method="higher"))
        ranges.append((low, high if high > low else low + max(1.0, abs(low))))
    return BandRanges(dtype, tuple(ranges))
