"""JPEG decoding and resizing on a GPU, by torchvision, for images that are decoded whenever they are read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F

from svertka.data.dataset import Ints
from svertka.data.image_io import DecodingOptions, read_header
from svertka.data.packed_image import SquareSettings
from svertka.data.pixel_statistics import SquareImages
from svertka.data.rgb_conversion import Pixels
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import ImageError, UsageError

SUPPORTED_FITS = ("crop", "squeeze")  # of `Preprocess`; others are left to the CPU


def check_gpu_decoding(device: torch.device) -> None:
    """Raise UsageError unless JPEGs can be decoded on `device`."""
    if device.type != "cuda":
        raise UsageError(f"--gpu-decode needs a GPU, and device={device}; leave it out")
    if find_spec("torchvision") is None:
        raise UsageError(
            "--gpu-decode needs torchvision; install it (pip install 'svertka[torchvision]'), or leave it out"
        )


class GpuDecodedSquares:
    """Square images whose JPEGs are decoded and resized on a GPU.

    Pixels differ by a few levels from those of the CPU, which decodes large JPEGs at reduced size. Other formats, and
    JPEGs that are rotated, CMYK or damaged, are left to the CPU.

    Args:
        squares: The same squares, decoded on the CPU.
        read_bytes: Returns the file of an image, by its index.
        layout: How images become squares.
        decoding: Limits of the CPU's decoder, to which JPEGs of more pixels are left: it may decode them reduced.
        pool: Threads that read files.
        device: The GPU.
    """

    def __init__(
        self,
        squares: SquareImages,
        read_bytes: Callable[[int], bytes],
        layout: SquareSettings,
        decoding: DecodingOptions,
        pool: ThreadPoolExecutor,
        device: torch.device,
    ) -> None:
        self.squares, self.read_bytes, self.layout, self.decoding = squares, read_bytes, layout, decoding
        self.pool, self.device = pool, device

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, indices: Ints) -> Pixels:
        return self.squares[indices]

    @property
    def pixel_settings(self) -> str:
        """What decides which pixels a file has: a GPU decodes a few levels otherwise than the CPU."""
        return f"{getattr(self.squares, 'pixel_settings', '')}, decoded on a GPU"

    def on_device(self, indices: Ints) -> torch.Tensor:
        """Return the squares at `indices` (n,) as (n, S, S, C) uint8 on the GPU.

        Raises:
            UnreadableRowsError: An image cannot be read.
        """
        rows = torch.empty(len(indices), *self.layout.shape, dtype=torch.uint8, device=self.device)
        contents = list(self.pool.map(self._read_plain_jpeg, indices.tolist()))
        places = [place for place, content in enumerate(contents) if content is not None]
        decoded = self._decode([content for content in contents if content is not None])
        for place, pixels in zip(places, decoded, strict=False):
            rows[place] = self._square(pixels)
        left = np.setdiff1d(np.arange(len(indices)), places[: len(decoded)])
        if len(left):
            try:
                rows[torch.from_numpy(left)] = torch.from_numpy(self.squares[indices[left]]).to(self.device)
            except UnreadableRowsError as error:
                raise UnreadableRowsError(left[error.places], error.images) from error
        return rows

    def _read_plain_jpeg(self, index: int) -> bytes | None:
        """Return the file of an image if it is an upright JPEG in color or gray, within the limits; else None."""
        if self.layout.fit not in SUPPORTED_FITS or self.layout.side != self.layout.resize or self.layout.channels != 3:
            return None
        with suppress(ImageError):  # which the CPU's decoder explains
            content = self.read_bytes(index)
            header = read_header(content, self.decoding)
            is_small = header.size[0] * header.size[1] <= self.decoding.max_pixels
            if header.format == "JPEG" and header.mode in ("RGB", "L") and header.orientation == 1 and is_small:
                return content
        return None

    def _decode(self, contents: Sequence[bytes]) -> list[torch.Tensor]:
        """Return the images (3, H, W) uint8 on the GPU; none of them if one cannot be decoded."""
        from torchvision.io import ImageReadMode, decode_jpeg

        if not contents:
            return []
        encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        try:
            decoded: list[torch.Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError:  # damaged: torchvision does not say which
            return []
        return decoded

    def _square(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return an image (3, H, W) uint8 as a square (S, S, 3) uint8."""
        if self.layout.fit == "crop":
            height, width = pixels.shape[1:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[:, top : top + side, left : left + side]
        size = (self.layout.resize, self.layout.resize)
        resized = F.interpolate(pixels[None].float(), size, mode=self.layout.interpolation, antialias=True)
        return resized[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
