"""Files of several bands, of either format: TIFF, or NumPy's .npy."""

from importlib.util import find_spec

from svertka.data import multiband_npy, multiband_tiff
from svertka.data.band_layout import BandLayout
from svertka.data.band_ranges import Values


def is_npy(data: bytes) -> bool:
    """Return whether a file that begins so is a NumPy array."""
    return data.startswith(multiband_npy.MAGIC)


def read_band_layout(data: bytes) -> BandLayout | None:
    """Return what the header of a TIFF or .npy file states; None if it is damaged, or another file."""
    return multiband_npy.read_npy_layout(data) if is_npy(data) else multiband_tiff.read_tiff_layout(data)


def decode_bands(data: bytes, layout: BandLayout) -> Values:
    """Return the values of a TIFF or .npy file, (H, W, C), as they are stored.

    Args:
        data: The file.
        layout: What `read_band_layout` returns of it.

    Raises:
        ImageError: Values are missing, or the decoder of the TIFF is not installed.
    """
    return multiband_npy.decode_npy_bands(data, layout) if is_npy(data) else multiband_tiff.decode_tiff(data, layout)


def describe_missing_decoder(data: bytes) -> str | None:
    """Return what to install to decode the bands of a file that begins so; None if nothing is missing."""
    return None if is_npy(data) or find_spec("tifffile") else multiband_tiff.NOT_INSTALLED
