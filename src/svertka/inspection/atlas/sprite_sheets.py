"""Many small pictures in a file: what a page loads instead of thousands of files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from svertka.data.dataset import Pixels
from svertka.pages.inline_images import encode_webp, shrink

TILE_SIDE = 48  # CSS pixels of a tile, about
MAX_CRISP_IMAGE = 64  # pixels: pictures up to this side are enlarged by whole factors and keep every pixel
MAX_CRISP_PATCH = 24  # pixels: parts of larger pictures do so up to this side
UNITS_PER_SHEET = 32  # units in a file
IMAGE_SHEET_SIDE = 640  # pixels: about the side of a file of whole pictures


@dataclass(frozen=True)
class Tile:
    """How the parts of a picture that a layer sees are kept and shown.

    `window`: pixels of the picture along each side; `kept`: pixels in the file; `shown`: CSS pixels. `crisp`: every
    pixel is kept and shown as a square.
    """

    window: int
    kept: int
    shown: int
    crisp: bool

    @property
    def reduced(self) -> "Tile":
        """The same for parts that have the scale of the file already."""
        return replace(self, window=self.kept)

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return asdict(self)


def choose_tile(extent: int, picture: int, *, side: int = TILE_SIDE) -> Tile:
    """That of a layer which sees `extent` pixels of pictures with `picture` a side; photographs are kept at `side`."""
    window = min(extent, picture)
    if picture > MAX_CRISP_IMAGE and window > MAX_CRISP_PATCH:
        return Tile(window, min(window, side), TILE_SIDE, crisp=False)
    return Tile(window, window, window * max(1, round(TILE_SIDE / window)), crisp=True)


def place_in_tile(part: Pixels, box: Sequence[int], tile: Tile) -> Pixels:
    """`part` (h, w, 1 | 3) of a picture in a tile, (kept, kept, 4) uint8; clear where it ends at the picture's border.

    `box`: where it was, top, left, bottom, right, the last two excluded; at most as large as the tile's window.
    """
    window = np.zeros((tile.window, tile.window, 4), np.uint8)
    height, width = part.shape[:2]
    # What a box lacks, it lacks at the side where it meets the border of the picture.
    y = tile.window - height if box[0] == 0 else 0
    x = tile.window - width if box[1] == 0 else 0
    window[y : y + height, x : x + width, :3] = part
    window[y : y + height, x : x + width, 3] = 255
    return shrink(window, tile.kept)


def to_rgb(pictures: Pixels) -> Pixels:
    """`pictures` (…, 1 | 3) with three channels: what is grey has all of them alike."""
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def assemble_sheet(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """`tiles` (h, w, C) row by row, without gaps, in one picture; clear or black where there is none."""
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    whole = np.zeros((rows, columns, height, width, channels), np.uint8)
    whole.reshape(rows * columns, height, width, channels)[: len(tiles)] = tiles
    return whole.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def encode_sheet(tiles: Sequence[Pixels], columns: int, *, crisp: bool, quality: int) -> bytes:
    """`sheet` as a WebP file: every pixel where `crisp`, else as a photograph of `quality`; with alpha where needed."""
    whole = assemble_sheet(tiles, columns)
    if whole.shape[2] == 4 and whole[..., 3].min() == 255:
        whole = whole[..., :3]
    return encode_webp(whole, exact=crisp, quality=quality)


def images_per_row(picture: int) -> int:
    """Whole pictures in a row, and rows, of a file of them; `picture`: pixels a side."""
    return max(1, IMAGE_SHEET_SIDE // picture)
