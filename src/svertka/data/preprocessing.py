"""From an image to what a network is given: the deterministic part, written once and read by every verb."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from svertka.data.dataset import Pixels
from svertka.data.image_io import DEFAULT, Decoding, check_pixel_count, read_file, read_image, to_rgb
from svertka.errors import UsageError

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]
Fit = Literal["crop", "pad", "squeeze"]
FITS: tuple[Fit, ...] = ("crop", "pad", "squeeze")


class Preprocess(BaseModel):
    """An image made square, `resize` pixels a side, cropped or zero-padded to `size`, normalised.

    `fit` says how it becomes square: "crop" takes the central square and discards the rest; "pad" takes all of it and
    puts black above and below, or left and right; "squeeze" takes all of it and changes its proportions. The network
    gets (x / 255 − mean) / std. Grey is ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(ge=1, le=4096, description="side of the network's input, pixels")
    resize: int = Field(ge=1, le=4096, description="side to which the central square is resized, pixels")
    mean: tuple[float, ...] = Field(description="one a channel, in units of full scale")
    std: tuple[float, ...] = Field(description="one a channel, in units of full scale")
    fit: Fit = Field(default="crop", description="how an image becomes square")
    intensity_range: tuple[int, int] | None = Field(
        default=None, description="16-bit values that become 0 and 255; None: 0 and 65535"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}; both need 1 or both 3")
        if min(self.std) <= 0:
            raise ValueError(f"std={min(self.std)} must be above 0")
        low, high = self.intensity_range or (0, 1)
        if not 0 <= low < high <= 65535:
            raise ValueError(
                f"intensity_range={self.intensity_range} must be two values of 0 to 65535, the lower first"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_ever(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later, where it changes nothing: so that earlier versions read the file, too."""
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if (name, value) not in _AS_EVER}

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one image as the network takes it, (1, C, H, W)."""
        return 1, self.channels, self.size, self.size

    @property
    def side(self) -> int:
        """Side of the square that `square` gives."""
        return max(self.resize, self.size)

    def square(self, rgb: Pixels) -> Pixels:
        """`rgb` (H, W, 3) made square, (side, side, channels) uint8: resized, and padded where smaller."""
        return resize_to_square(crop_region(rgb, self.fit), self.resize, self.channels, pad_to=self.size, fit=self.fit)

    def resize_whole(self, rgb: Pixels, resize: int) -> Pixels:
        """All of `rgb` (H, W, 3) that crops are taken from, (H', W', channels) uint8: its shorter side is `resize`.

        Of images that are padded or squeezed it is their square.
        """
        if self.fit == "crop":
            return resize_whole(rgb, resize, self.channels)
        return resize_to_square(rgb, resize, self.channels, fit=self.fit)

    def describe(self) -> str:
        """What becomes of an image before it is normalised, for people."""
        resized = {
            "crop": f"the central square, resized to {self.resize} pixels a side",
            "pad": f"the whole image, its longer side resized to {self.resize} pixels, in a black square",
            "squeeze": f"the whole image, resized to {self.resize} pixels on both sides",
        }[self.fit]
        if self.resize == self.size:
            return resized
        return f"{resized}, " + (f"its middle {self.size}" if self.resize > self.size else f"zeros up to {self.size}")

    def read(self, data: bytes, decoding: Decoding = DEFAULT) -> Pixels:
        """The image in the bytes of a file, as `square` takes it: (H, W, 3) uint8, RGB.

        Raises:
            ImageError: it cannot be read within the limits of `decoding`.
        """
        return read_image(data, self.resize, decoding.with_intensity_range(self.intensity_range))

    def normalise(self, squares: torch.Tensor) -> torch.Tensor:
        """What the network gets, (B, C, size, size) float32, of (B, C, S, S) uint8 or float32 in 0 to 255, S ≥ size."""
        offset = (squares.shape[-1] - self.size) // 2
        return self.standardise(squares[..., offset : offset + self.size, offset : offset + self.size])

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """(x / 255 − mean) / std of `images`, (B, C, H, W) uint8 or float32 in 0 to 255: nothing is cropped."""
        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).mul_(255).view(shape)
        scale = torch.tensor(self.std, device=images.device).mul_(255).reciprocal_().view(shape)
        if images.dtype == torch.uint8:
            return images.to(torch.float32).sub_(mean).mul_(scale)
        return (images - mean) * scale

    def __call__(self, image: ImageLike, decoding: Decoding = DEFAULT) -> torch.Tensor:
        """What the network gets for one image, (C, size, size) float32: a path, a PIL image, or an array.

        Arrays are (H, W[, 3]) uint8, or uint16.

        Raises:
            ImageError: it cannot be read within the limits of `decoding`.
        """
        rgb = load_image(image, self.resize, decoding.with_intensity_range(self.intensity_range))
        return self.normalise(torch.from_numpy(self.square(rgb)).permute(2, 0, 1)[None])[0]


_AS_EVER = (("fit", "crop"), ("intensity_range", None))


def check_fit(fit: str | None, boxed: bool) -> Fit | None:
    """`fit` if it is one of FITS, None for None; `boxed`: whether patches are learnt from, which need no square.

    Raises:
        UsageError: it is another; or it is asked for with boxes.
    """
    known = next((one for one in FITS if one == fit), None)
    if fit is not None and known is None:
        raise UsageError(f"fit={fit} is not known; use crop, pad or squeeze")
    if boxed and known not in (None, "crop"):
        raise UsageError(f"fit={fit} goes without --boxes, which learn from patches of whole images; leave out one")
    return known


def load_image(image: ImageLike, min_side: int | None = None, decoding: Decoding = DEFAULT) -> Pixels:
    """`image` as (H, W, 3) uint8, RGB; `min_side` as for `image_io.read_image`, where it is a path.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, str | Path):
        return read_file(image, min_side, decoding)
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else (*image.shape, 0, 0)[:2]
    check_pixel_count(height, width, decoding.max_pixels)
    return to_rgb(image, decoding.intensity_range)


def crop_region(rgb: Pixels, fit: Fit) -> Pixels:
    """What is used of `rgb` (H, W, 3): its central square, or all of it."""
    if fit != "crop":
        return rgb
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]


def resize_to_square(used: Pixels, resize: int, channels: int, pad_to: int = 0, fit: Fit = "crop") -> Pixels:
    """A `region` (H, W, 3) uint8 as a square of `resize` pixels a side, (S, S, channels) uint8.

    Reduced with a triangle filter as wide as the reduction, enlarged bilinearly; nothing outside it is looked at. Grey
    is made of the result. S is `resize`, or `pad_to` where that is larger: zeros then surround the image.
    """
    height, width = padded_size(used.shape[0], used.shape[1], resize) if fit == "pad" else (resize, resize)
    square = resize_image(used, height, width, channels)
    return _centred(_centred(square, resize), max(resize, pad_to))


def padded_size(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width of an image whose longer side is brought to `resize`; halves are rounded up."""
    longer = max(height, width)
    shrunk = [max((2 * side * resize + longer) // (2 * longer), 1) for side in (height, width)]
    return shrunk[0], shrunk[1]


def discarded_share(height: int, width: int, seen: float = 1.0) -> float:
    """The share of an image, 0 to 1, that its central square leaves out; `seen`: the share of a side that is used."""
    side = min(height, width)
    return 1 - (side * seen) ** 2 / (height * width)


def resize_central_square(rgb: Pixels, resize: int, channels: int, pad_to: int = 0) -> Pixels:
    """The central square of `rgb` (H, W, 3) uint8, resized and padded as `squared` says, (S, S, channels) uint8."""
    return resize_to_square(crop_region(rgb, "crop"), resize, channels, pad_to)


def _centred(pixels: Pixels, side: int) -> Pixels:
    """`pixels` (H, W, C) in the middle of a square of zeros, (side, side, C)."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(pixels, ((top, side - height - top), (left, side - width - left), (0, 0)))


def resize_whole(rgb: Pixels, resize: int, channels: int) -> Pixels:
    """All of `rgb` (H, W, 3) uint8 with its shorter side at `resize` pixels, (H', W', channels) uint8."""
    height, width = rgb.shape[:2]
    scale = resize / min(height, width)
    return resize_image(rgb, max(resize, round(height * scale)), max(resize, round(width * scale)), channels)


def resize_image(rgb: Pixels, height: int, width: int, channels: int) -> Pixels:
    """`rgb` (H, W, 3) uint8 at another size, (height, width, channels) uint8, filtered as `resize_to_square` says."""
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
