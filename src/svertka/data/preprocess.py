"""From a picture to what a network is given: the deterministic part, written once and read by every verb."""

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from svertka.data.dataset import Pixels, read_file
from svertka.data.images import as_rgb, read_picture

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]


class Preprocess(BaseModel):
    """The central square of a picture, `resize` pixels a side, cropped or zero-padded to `size`, normalised.

    The network gets (x / 255 − mean) / std. Grey is ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(ge=1, le=4096, description="side of the network's input, pixels")
    resize: int = Field(ge=1, le=4096, description="side to which the central square is resized, pixels")
    mean: tuple[float, ...] = Field(description="one a channel, in units of full scale")
    std: tuple[float, ...] = Field(description="one a channel, in units of full scale")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}; both need 1 or both 3")
        if min(self.std) <= 0:
            raise ValueError(f"std={min(self.std)} must be above 0")
        return self

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one picture as the network takes it, (1, C, H, W)."""
        return 1, self.channels, self.size, self.size

    @property
    def side(self) -> int:
        """Side of the square that `square` gives."""
        return max(self.resize, self.size)

    def square(self, rgb: Pixels) -> Pixels:
        """The central square of `rgb` (H, W, 3) as (side, side, channels) uint8: resized, and padded where smaller."""
        return central_square(rgb, self.resize, self.channels, pad_to=self.size)

    def normalise(self, squares: torch.Tensor) -> torch.Tensor:
        """What the network gets, (B, C, size, size) float32, of (B, C, S, S) uint8 or float32 in 0 to 255, S ≥ size."""
        offset = (squares.shape[-1] - self.size) // 2
        return self.standardise(squares[..., offset : offset + self.size, offset : offset + self.size])

    def standardise(self, pictures: torch.Tensor) -> torch.Tensor:
        """(x / 255 − mean) / std of `pictures`, (B, C, H, W) uint8 or float32 in 0 to 255: nothing is cropped."""
        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, device=pictures.device).mul_(255).view(shape)
        scale = torch.tensor(self.std, device=pictures.device).mul_(255).reciprocal_().view(shape)
        if pictures.dtype == torch.uint8:
            return pictures.to(torch.float32).sub_(mean).mul_(scale)
        return (pictures - mean) * scale

    def __call__(self, picture: Picture) -> torch.Tensor:
        """What the network gets for one picture, (C, size, size) float32: a path, a PIL image, or (H, W[, 3]) uint8.

        Raises:
            PictureError: it cannot be read.
        """
        rgb = opened(picture, min_side=self.resize)
        return self.normalise(torch.from_numpy(self.square(rgb)).permute(2, 0, 1)[None])[0]


def opened(picture: Picture, min_side: int | None = None) -> Pixels:
    """`picture` as (H, W, 3) uint8, RGB; `min_side` as for `images.read_picture`, where it is a path.

    Raises:
        PictureError: it cannot be read.
    """
    if not isinstance(picture, str | Path):
        return as_rgb(picture)
    return read_picture(read_file(Path(picture)), min_side=min_side)


def central_square(rgb: Pixels, resize: int, channels: int, pad_to: int = 0) -> Pixels:
    """The central square of `rgb` (H, W, 3) uint8 at `resize` pixels a side, (S, S, channels) uint8.

    Reduced with a triangle filter as wide as the reduction, enlarged bilinearly; nothing outside the square is looked
    at. Grey is made of the result. S is `resize`, or `pad_to` where that is larger: zeros then surround the picture.
    """
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = resized(rgb[top : top + side, left : left + side], resize, resize, channels)
    if pad_to > resize:
        before = (pad_to - resize) // 2
        after = pad_to - resize - before
        square = np.pad(square, ((before, after), (before, after), (0, 0)))
    return square


def whole_picture(rgb: Pixels, resize: int, channels: int) -> Pixels:
    """All of `rgb` (H, W, 3) uint8 with its shorter side at `resize` pixels, (H', W', channels) uint8."""
    height, width = rgb.shape[:2]
    scale = resize / min(height, width)
    return resized(rgb, max(resize, round(height * scale)), max(resize, round(width * scale)), channels)


def resized(rgb: Pixels, height: int, width: int, channels: int) -> Pixels:
    """`rgb` (H, W, 3) uint8 at another size, (height, width, channels) uint8, filtered as `central_square` says."""
    pixels = np.require(rgb, requirements=["C", "W"])
    if pixels.shape[:2] != (height, width):
        # PyTorch's filter on bytes is 5 to 9 times as fast as Pillow's where there is AVX2. In this layout, channels
        # last from end to end, it copies nothing and starts no threads: the caller has threads of its own.
        batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        filtered = functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
        pixels = filtered.permute(0, 2, 3, 1)[0].numpy()
    if channels == 1:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    return pixels
