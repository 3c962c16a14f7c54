"""Pictures inside a page: small ones crisp, enlarged by whole factors; photographs smooth, no larger than shown."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from svertka.pages.html_page import escape

Pixels = npt.NDArray[np.uint8]

PIXEL_DENSITY = 2  # pixels kept for each that CSS counts, for screens that have them
PHOTO_QUALITY = 82  # of photographs, on the scale of WebP encoders to 100


def encode_webp(picture: Pixels, *, exact: bool, quality: int = PHOTO_QUALITY) -> bytes:
    """`picture` (H, W, 1 | 3 | 4) uint8 as a WebP file; `exact` keeps every pixel, as a photograph need not.

    WebP because it is the one format of all browsers that has alpha, both kinds of compression and small headers.
    """
    buffer = io.BytesIO()
    # Lossless, `quality` is the effort: 100 takes five to ten times as long as 80 for the same size.
    _image(picture).save(buffer, "WEBP", lossless=exact, quality=80 if exact else quality)
    return buffer.getvalue()


def to_data_uri(picture: Pixels, *, exact: bool) -> str:
    """`picture` as `encoded` makes it, as a `data:` address."""
    return "data:image/webp;base64," + base64.b64encode(encode_webp(picture, exact=exact)).decode()


def render_image(picture: Pixels, side: int, alt: str) -> str:
    """An `<img>` of `picture` (H, W, 1 | 3) uint8, at most `side` CSS pixels wide and high."""
    height, width = picture.shape[:2]
    scale = _enlargement(picture, side) or side / max(height, width)
    crisp = scale > 1
    # Enlarged by the browser, reduced here.
    kept = picture if crisp else shrink(picture, side * PIXEL_DENSITY)
    return _img(
        to_data_uri(kept, exact=crisp), max(1, round(width * scale)), max(1, round(height * scale)), alt, crisp=crisp
    )


def render_figure(picture: Pixels | None, side: int, alt: str, lines: Sequence[str]) -> str:
    """A `<figure>` of `picture` as `image` shows it, None where it cannot be read any more, over `lines` (HTML)."""
    unreadable = f'<span class="unreadable" role="img" aria-label="{escape(alt)}">cannot be read</span>'
    drawn = unreadable if picture is None else render_image(picture, side, alt)
    return f'<figure><div class="frame">{drawn}</div><figcaption>{"".join(lines)}</figcaption></figure>'


def render_strip(pictures: Sequence[Pixels], side: int, alt: str) -> str:
    """An `<img>` of `pictures` in a row, one pixel apart, each at most `side` CSS pixels a side.

    Of pictures that are larger it shows the central squares.
    """
    crisp = all(max(picture.shape[:2]) <= side for picture in pictures)
    density = 1 if crisp else PIXEL_DENSITY
    cells = [enlarge(one, side) if crisp else shrink(crop_central_square(one), side * density) for one in pictures]
    sheet = contact_sheet(cells, len(cells), gap=density)
    height, width = sheet.shape[:2]
    return _img(to_data_uri(sheet, exact=crisp), width // density, height // density, alt, crisp=crisp)


def enlarge(picture: Pixels, side: int) -> Pixels:
    """`picture` (H, W, C) enlarged by the largest whole factor with which it stays within `side`."""
    factor = max(1, _enlargement(picture, side))
    return picture.repeat(factor, 0).repeat(factor, 1)


def shrink(picture: Pixels, side: int) -> Pixels:
    """`picture` (H, W, C) reduced until it fits into a square of `side` pixels; as it is where it fits already."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = _image(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(small).reshape(size[1], size[0], picture.shape[2])


def crop_central_square(picture: Pixels) -> Pixels:
    """The largest square in the middle of `picture` (H, W, C)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def contact_sheet(pictures: Sequence[Pixels], columns: int, *, gap: int) -> Pixels:
    """A contact sheet, (H, W, 4) uint8, of squares as large as the largest picture, clear where there is none.

    `pictures`: (h, w, 1 | 3 | 4) uint8; `gap`: pixels between the squares.
    """
    side = max(max(picture.shape[:2]) for picture in pictures)
    rows = math.ceil(len(pictures) / columns)
    sheet = np.zeros((rows * (side + gap) - gap, columns * (side + gap) - gap, 4), np.uint8)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        top = number // columns * (side + gap) + (side - height) // 2
        left = number % columns * (side + gap) + (side - width) // 2
        sheet[top : top + height, left : left + width, :3] = picture[..., :3]
        sheet[top : top + height, left : left + width, 3] = picture[..., 3] if picture.shape[2] == 4 else 255
    return sheet


def _enlargement(picture: Pixels, side: int) -> int:
    """The largest whole factor with which `picture` fits into `side`; 0 where it does not as it is."""
    return side // int(max(picture.shape[:2]))


def _image(picture: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture))


def _img(source: str, width: int, height: int, alt: str, *, crisp: bool) -> str:
    kind = "crisp" if crisp else "smooth"
    return f'<img class="{kind}" width="{width}" height="{height}" alt="{escape(alt)}" decoding="async" src="{source}">'
