"""Preprocessing from an image to the network's input: the deterministic part, stored with the run."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from svertka.conv import native_byte_normalization
from svertka.data.band_ranges import BandRanges, HasIntensityRange
from svertka.data.dataset import IndexedImage, Pixels
from svertka.data.image_io import DEFAULT, DecodingOptions, check_pixel_count, decode_to_pixels, read_image_file, to_rgb
from svertka.data.rgb_conversion import shades_to_16_bit
from svertka.errors import ImageError, UsageError

LARGEST_SIZE = 4096  # pixels
AT_ONCE = 2**18  # values that are normalized at a time: 1 MB
ImageLike = str | Path | Image.Image | npt.NDArray[np.generic]
Fit = Literal["crop", "pad", "squeeze"]
FITS: tuple[Fit, ...] = ("crop", "pad", "squeeze")
Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


class Preprocess(HasIntensityRange, BaseModel):
    """Preprocessing of images: make square, resize to `resize`, crop or zero-pad to `size`, normalize.

    The network gets (x / 255 − mean) / std. Grayscale is ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B.

    Attributes:
        size: Side of the network's input, pixels.
        resize: Side to which the square is resized, pixels.
        mean, std: One value per channel, in units of full scale.
        fit: How an image becomes square: "crop" takes the central square; "pad" adds black above and below, or left and
            right; "squeeze" changes the proportions.
        interpolation: The filter that resizes, with antialiasing.
        intensity_range: 16-bit values that become 0 and 255. None: 0 and 65535. BandRanges: images have these bands,
            which are the channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(ge=1, le=LARGEST_SIZE, description="side of the network's input, pixels")
    resize: int = Field(ge=1, le=LARGEST_SIZE, description="side to which the square is resized, pixels")
    mean: tuple[float, ...] = Field(description="one value per channel, in units of full scale")
    std: tuple[float, ...] = Field(description="one value per channel, in units of full scale")
    fit: Fit = Field(default="crop", description="how an image becomes square")
    interpolation: Interpolation = Field(default="bilinear", description="the filter that resizes, with antialiasing")
    intensity_range: tuple[int, int] | BandRanges | None = Field(
        default=None, description="16-bit values that become 0 and 255, or those of each band; None: 0 and 65535"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        bands = self.bands
        if len(self.std) != len(self.mean) or len(self.mean) not in ((1, 3) if bands is None else (len(bands),)):
            needed = "both need 1 or both 3" if bands is None else f"both need the {len(bands)} of the bands"
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}; {needed}")
        if min(self.std) <= 0:
            raise ValueError(f"std={min(self.std)} must be above 0")
        low, high = self.deep_range or (0, 1)
        if not 0 <= low < high <= 65535:
            raise ValueError(
                f"intensity_range={self.intensity_range} must be two values of 0 to 65535, the lower first"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_ever(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that have their default, so that earlier versions can read the file."""
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if (name, value) not in _AS_EVER}

    @property
    def channels(self) -> int:
        """Number of channels: 1 (grayscale), 3 (RGB), or that of the bands."""
        return len(self.mean)

    @property
    def color(self) -> str:
        """What the channels are: gray, RGB, or the number and type of the bands."""
        return self.bands.describe() if self.bands is not None else "gray" if self.channels == 1 else "RGB"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the network's input for one image, (1, C, H, W)."""
        return 1, self.channels, self.size, self.size

    @property
    def side(self) -> int:
        """Side of the square that `square` returns, pixels."""
        return max(self.resize, self.size)

    def square(self, rgb: Pixels) -> Pixels:
        """Make `rgb` (H, W, 3) square, resized and padded: (side, side, channels) uint8."""
        used = select_used_region(rgb, self.fit)
        return resize_to_square(used, self.resize, self.channels, self.size, self.fit, self.interpolation)

    def resize_whole(self, rgb: Pixels, resize: int) -> Pixels:
        """Resize all of `rgb` (H, W, 3) so that crops can be taken from it.

        Returns:
            (H', W', channels) uint8, the shorter side being `resize`; the square, if `fit` pads or squeezes.
        """
        if self.fit == "crop":
            return resize_shorter_side(rgb, resize, self.channels, self.interpolation)
        return resize_to_square(rgb, resize, self.channels, fit=self.fit, interpolation=self.interpolation)

    def describe(self) -> str:
        """Return what happens to an image before normalization, as a phrase for people."""
        resized = {
            "crop": f"the central square, resized to {self.resize} pixels a side",
            "pad": f"the whole image, its longer side resized to {self.resize} pixels, in a black square",
            "squeeze": f"the whole image, resized to {self.resize} pixels on both sides",
        }[self.fit]
        if self.resize == self.size:
            return resized
        return f"{resized}, " + (f"its middle {self.size}" if self.resize > self.size else f"zeros up to {self.size}")

    def read(self, data: bytes, decoding: DecodingOptions = DEFAULT) -> Pixels:
        """Decode the bytes of a file to (H, W, 3) uint8, RGB, or to its bands, as `square` takes it.

        Raises:
            ImageError: The image cannot be read within the limits of `decoding`.
        """
        return decode_to_pixels(data, self.resize, decoding.with_intensity_range(self.intensity_range))

    def to_file_values(self, pixels: Pixels) -> npt.NDArray[np.generic]:
        """Return values as files have them that become `pixels`, (H, W, 3) or of bands: `pixels` if those are bytes."""
        return shades_to_16_bit(pixels, self.deep_range) if self.bands is None else self.bands.to_values(pixels)

    def normalize(
        self, squares: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        """Crop squares to `size` and normalize them.

        Args:
            squares: (B, C, S, S) uint8, or float32 in 0 to 255; S ≥ size.
            memory_format: Memory format of the result.

        Returns:
            The network's input, (B, C, size, size) float32.
        """
        offset = (squares.shape[-1] - self.size) // 2
        return self.standardize(squares[..., offset : offset + self.size, offset : offset + self.size], memory_format)

    def standardize(
        self, images: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        """Return (x / 255 − mean) / std without cropping.

        Args:
            images: (B, C, H, W) uint8, or float32 in 0 to 255.
            memory_format: Memory format of the result.
        """
        mean = torch.tensor(self.mean, device=images.device).mul_(255)
        scale = torch.tensor(self.std, device=images.device).mul_(255).reciprocal_()
        result = torch.empty_like(images, dtype=torch.float32, memory_format=memory_format)
        if native_byte_normalization.can_normalize(images, result):
            native_byte_normalization.normalize(images, mean, scale, result)
            return result
        values, targets = images, result
        if result.is_contiguous(memory_format=torch.channels_last):
            # Rows of pixels: PyTorch broadcasts along them 3 times as fast as along the channels of a pixel.
            values, targets = (one.permute(0, 2, 3, 1).flatten(2) for one in (images, result))
            mean, scale = (one.repeat(images.shape[3]) for one in (mean, scale))
        else:
            mean, scale = (one.view(1, self.channels, 1, 1) for one in (mean, scale))
        # On the CPU, values stay in its cache from one operation to the next.
        at_once = AT_ONCE if images.device.type == "cpu" else images.numel()
        step = max(at_once * len(images) // max(images.numel(), 1), 1)
        for some, target in zip(torch.split(values, step), torch.split(targets, step), strict=True):
            target.copy_(some).sub_(mean).mul_(scale)
        return result

    def __call__(self, image: ImageLike | IndexedImage, decoding: DecodingOptions = DEFAULT) -> torch.Tensor:
        """Prepare one image for the network.

        Args:
            image: A path, a PIL image, an array (H, W) or (H, W, 3) of uint8 or uint16, or an image in a shard.
            decoding: Limits of decoding.

        Returns:
            The network's input, (C, size, size) float32.

        Raises:
            ImageError: The image cannot be read within the limits of `decoding`.
        """
        rgb = load_rgb_image(image, self.resize, decoding.with_intensity_range(self.intensity_range))
        return self.normalize(torch.from_numpy(self.square(rgb)).permute(2, 0, 1)[None])[0]


_AS_EVER = (("fit", "crop"), ("interpolation", "bilinear"), ("intensity_range", None))


def parse_fit_mode(fit: str | None, boxed: bool) -> Fit | None:
    """Return `fit` if it is one of FITS; None for None.

    Args:
        fit: How images become square.
        boxed: Whether training uses patches, which need no square.

    Raises:
        UsageError: `fit` is unknown, or is combined with boxes.
    """
    known = next((one for one in FITS if one == fit), None)
    if fit is not None and known is None:
        raise UsageError(f"fit={fit} is not known; use crop, pad or squeeze")
    if boxed and known not in (None, "crop"):
        raise UsageError(
            f"fit={fit} cannot be combined with --boxes, which takes patches of whole images; leave out one"
        )
    return known


def load_rgb_image(
    image: ImageLike | IndexedImage, min_side: int | None = None, decoding: DecodingOptions = DEFAULT
) -> Pixels:
    """Return an image as (H, W, 3) uint8, RGB, or (H, W, C) of the bands of `decoding`.

    Args:
        image: A path, a PIL image, an array or an image in a shard.
        min_side: As for `image_io.decode_to_pixels`, for a path or an image in a shard.
        decoding: How files are decoded.

    Raises:
        ImageError: The image cannot be read.
    """
    if isinstance(image, IndexedImage):
        return image.read(min_side, decoding)
    if isinstance(image, str | Path):
        return read_image_file(image, min_side, decoding)
    if not isinstance(image, Image.Image | np.ndarray):  # of a sequence, beartype checks some items only
        raise ImageError(f"a {type(image).__name__}, which is no image; give a path, a PIL image or an array")
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else (*image.shape, 0, 0)[:2]
    check_pixel_count(height, width, decoding.max_pixels)
    return to_rgb(image, decoding.intensity_range)


def select_used_region(rgb: Pixels, fit: Fit) -> Pixels:
    """Return the part of `rgb` (H, W, 3) that is used: the central square for "crop", else all of it."""
    if fit != "crop":
        return rgb
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[top : top + side, left : left + side]


def resize_to_square(
    used: Pixels,
    resize: int,
    channels: int,
    pad_to: int = 0,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
) -> Pixels:
    """Resize a region (H, W, 3) uint8, or one of bands, to a square, with antialiasing.

    Pixels outside the region have no influence. Grayscale is computed after resizing.

    Args:
        used: The region, as `select_used_region` returns it.
        resize: Side of the square, pixels.
        channels: 1 to make RGB gray; else those of the region.
        pad_to: Pad with zeros to this side, pixels.
        fit: "pad" keeps the proportions, in a black square.
        interpolation: The filter.

    Returns:
        (S, S, channels) uint8, S being the larger of `resize` and `pad_to`.
    """
    height, width = letterboxed_size(used.shape[0], used.shape[1], resize) if fit == "pad" else (resize, resize)
    square = resize_image(used, height, width, channels, interpolation)
    return _center(_center(square, resize), max(resize, pad_to))


def letterboxed_size(height: int, width: int, resize: int) -> tuple[int, int]:
    """Return the height and width of an image whose longer side is resized to `resize`; halves round up."""
    longer = max(height, width)
    shrunk = [max((2 * side * resize + longer) // (2 * longer), 1) for side in (height, width)]
    return shrunk[0], shrunk[1]


def discarded_share(height: int, width: int, seen: float = 1.0) -> float:
    """Return the share of an image that its central square leaves out, 0 to 1.

    Args:
        height, width: Size of the image, pixels.
        seen: Share of the square's side that is used.
    """
    side = min(height, width)
    return 1 - (side * seen) ** 2 / (height * width)


def resize_central_square(rgb: Pixels, resize: int, channels: int, pad_to: int = 0) -> Pixels:
    """Resize the central square of `rgb` (H, W, 3) uint8, as `resize_to_square` does: (S, S, channels) uint8."""
    return resize_to_square(select_used_region(rgb, "crop"), resize, channels, pad_to)


def _center(pixels: Pixels, side: int) -> Pixels:
    """Return `pixels` (H, W, C) in the middle of a square of zeros, (side, side, C)."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(pixels, ((top, side - height - top), (left, side - width - left), (0, 0)))


def resize_shorter_side(rgb: Pixels, resize: int, channels: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize all of `rgb` (H, W, 3) uint8 so that its shorter side has `resize` pixels: (H', W', channels) uint8."""
    height, width = rgb.shape[:2]
    scale = resize / min(height, width)
    height, width = (max(resize, round(side * scale)) for side in (height, width))
    return resize_image(rgb, height, width, channels, interpolation)


def resize_image(
    rgb: Pixels, height: int, width: int, channels: int, interpolation: Interpolation = "bilinear"
) -> Pixels:
    """Resize `rgb` (H, W, 3) uint8 to (height, width, channels) uint8, as `resize_to_square` does."""
    pixels = np.require(rgb, requirements=["C", "W"])
    if pixels.shape[:2] != (height, width):
        # PyTorch's filter on bytes is 5 to 9 times as fast as Pillow's with AVX2. With channels last it copies nothing
        # and starts no threads, which the caller does.
        batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        filtered = functional.interpolate(batch, (height, width), mode=interpolation, antialias=True)
        pixels = filtered.permute(0, 2, 3, 1)[0].numpy()
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    return pixels
