"""Images inlined in a page: small ones enlarged by whole factors, photographs reduced to the size shown."""

import base64
import io
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from svertka.pages.templates import render_template

Pixels = npt.NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)

PIXEL_DENSITY = 2  # pixels stored per CSS pixel, for high-density screens
PHOTO_QUALITY = 82  # WebP quality, 0 to 100


def show_bands(image: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return an image (…, C) of any number of bands as gray or RGB: three or more by the first three, else one.

    Returns:
        (…, 1 | 3), of the same dtype.
    """
    return image if image.shape[-1] in (1, 3) else image[..., : 3 if image.shape[-1] > 3 else 1]


def encode_webp(image: Pixels, *, exact: bool, quality: int = PHOTO_QUALITY) -> bytes:
    """Encode `image` (H, W, 1 | 3 | 4) uint8 as a WebP file; `exact` for lossless compression.

    WebP is supported by all browsers and has alpha, lossy and lossless compression, and small headers.
    """
    buffer = io.BytesIO()
    # In lossless mode `quality` is the effort: 100 takes five to ten times as long as 80 for the same size.
    _image(image).save(buffer, "WEBP", lossless=exact, quality=80 if exact else quality)
    return buffer.getvalue()


def to_data_uri(image: Pixels, *, exact: bool) -> str:
    """Return `image`, encoded by `encode_webp`, as a `data:` URI."""
    return "data:image/webp;base64," + base64.b64encode(encode_webp(image, exact=exact)).decode()


def render_image(image: Pixels, side: int, alt: str) -> Markup:
    """Return an `<img>` of `image` (H, W, C) uint8, at most `side` CSS pixels wide and high."""
    image = show_bands(image)
    height, width = image.shape[:2]
    scale = _enlargement(image, side) or side / max(height, width)
    crisp = scale > 1
    # The browser enlarges; reduction happens here.
    kept = image if crisp else shrink(image, side * PIXEL_DENSITY)
    return _img(
        to_data_uri(kept, exact=crisp), max(1, round(width * scale)), max(1, round(height * scale)), alt, crisp=crisp
    )


def render_strip(images: Sequence[Pixels], side: int, alt: str) -> Markup:
    """Return an `<img>` of `images` in a row, one pixel apart, each at most `side` CSS pixels wide and high.

    Larger images are cropped to their central squares.
    """
    images = [show_bands(image) for image in images]
    crisp = all(max(image.shape[:2]) <= side for image in images)
    density = 1 if crisp else PIXEL_DENSITY
    cells = [enlarge(one, side) if crisp else shrink(crop_central_square(one), side * density) for one in images]
    sheet = contact_sheet(cells, len(cells), gap=density)
    height, width = sheet.shape[:2]
    return _img(to_data_uri(sheet, exact=crisp), width // density, height // density, alt, crisp=crisp)


def enlarge(image: Pixels, side: int) -> Pixels:
    """Enlarge `image` (H, W, C) by the largest whole factor that keeps it within `side` pixels."""
    factor = max(1, _enlargement(image, side))
    return image.repeat(factor, 0).repeat(factor, 1)


def shrink(image: Pixels, side: int) -> Pixels:
    """Reduce `image` (H, W, C) to fit into a square of `side` pixels; unchanged if it fits already."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = _image(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(small).reshape(size[1], size[0], image.shape[2])


def crop_central_square(image: Pixels) -> Pixels:
    """Crop the largest central square of `image` (H, W, C)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def contact_sheet(images: Sequence[Pixels], columns: int, *, gap: int) -> Pixels:
    """Arrange images in a grid of squares, each as large as the largest image.

    Args:
        images: (h, w, 1 | 3 | 4) uint8, each centered in its square.
        columns: Columns of the grid.
        gap: Between the squares, pixels.

    Returns:
        (H, W, 4) uint8, transparent outside the images.
    """
    side = max(max(image.shape[:2]) for image in images)
    rows = math.ceil(len(images) / columns)
    sheet = np.zeros((rows * (side + gap) - gap, columns * (side + gap) - gap, 4), np.uint8)
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        top = number // columns * (side + gap) + (side - height) // 2
        left = number % columns * (side + gap) + (side - width) // 2
        sheet[top : top + height, left : left + width, :3] = image[..., :3]
        sheet[top : top + height, left : left + width, 3] = image[..., 3] if image.shape[2] == 4 else 255
    return sheet


def _enlargement(image: Pixels, side: int) -> int:
    """Return the largest whole factor with which `image` fits into `side`; 0 if it is larger."""
    return side // int(max(image.shape[:2]))


def _image(image: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))


def _img(uri: str, width: int, height: int, alt: str, *, crisp: bool) -> Markup:
    return render_template("image.html", uri=Markup(uri), width=width, height=height, alt=alt, crisp=crisp)
