"""Sprite sheets: files that hold many small images each, so that a page loads few files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from svertka.data.dataset import Pixels
from svertka.pages.inline_images import encode_webp, shrink

TILE_SIDE = 48  # CSS pixels, approximately
MAX_CRISP_IMAGE = 64  # pixels; smaller images keep every pixel and are enlarged by whole factors
MAX_CRISP_PATCH = 24  # pixels; so are patches of this side in larger images
UNITS_PER_SHEET = 32
IMAGE_SHEET_SIDE = 640  # pixels, approximately


@dataclass(frozen=True)
class TileSizes:
    """How the patches of a layer are stored and shown.

    Attributes:
        window: Side of a patch in the image, pixels.
        kept: Side in the file, pixels.
        shown: Side on the page, CSS pixels.
        crisp: Every pixel is stored and shown as a square.
    """

    window: int
    kept: int
    shown: int
    crisp: bool

    @property
    def reduced(self) -> "TileSizes":
        """The same tile, for patches that already have the scale of the file."""
        return replace(self, window=self.kept)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def choose_tile_sizes(extent: int, image_size: int, *, side: int = TILE_SIDE) -> TileSizes:
    """Return the tile for a receptive field of `extent` pixels in images of side `image_size`.

    Patches too large to be crisp are stored with at most `side` pixels.
    """
    window = min(extent, image_size)
    if image_size > MAX_CRISP_IMAGE and window > MAX_CRISP_PATCH:
        return TileSizes(window, min(window, side), TILE_SIDE, crisp=False)
    return TileSizes(window, window, window * max(1, round(TILE_SIDE / window)), crisp=True)


def align_patch_in_tile(patch: Pixels, box: Sequence[int], tile: TileSizes) -> Pixels:
    """Draw a patch into a tile, transparent where the receptive field exceeds the image.

    Args:
        patch: (h, w, 1 | 3) uint8.
        box: Position of the patch in the image: top, left, bottom, right, the last two excluded. At most the tile's
            window.
        tile: How the patch is stored.

    Returns:
        (kept, kept, 4) uint8.
    """
    window = np.zeros((tile.window, tile.window, 4), np.uint8)
    height, width = patch.shape[:2]
    # A clipped patch lacks pixels at the border of the image that it touches.
    y = tile.window - height if box[0] == 0 else 0
    x = tile.window - width if box[1] == 0 else 0
    window[y : y + height, x : x + width, :3] = patch
    window[y : y + height, x : x + width, 3] = 255
    return shrink(window, tile.kept)


def to_rgb(images: Pixels) -> Pixels:
    """Return `images` (…, 1 | 3) with three channels."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def assemble_sheet(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Join `tiles` (h, w, C) row by row without gaps; missing tiles are transparent or black."""
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows, columns, height, width, channels), np.uint8)
    sheet.reshape(rows * columns, height, width, channels)[: len(tiles)] = tiles
    return sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def encode_sheet(tiles: Sequence[Pixels], columns: int, *, crisp: bool, quality: int) -> bytes:
    """Encode `tiles` as one WebP file: lossless if `crisp`, else with `quality`; with alpha only where needed."""
    sheet = assemble_sheet(tiles, columns)
    if sheet.shape[2] == 4 and sheet[..., 3].min() == 255:
        sheet = sheet[..., :3]
    return encode_webp(sheet, exact=crisp, quality=quality)


def images_per_row(image_size: int) -> int:
    """Return how many images of side `image_size` fit in a row of a sheet, which has as many rows."""
    return max(1, IMAGE_SHEET_SIDE // image_size)
