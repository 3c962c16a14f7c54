"""Crops of an image for evaluation, as in the papers.

1      the center crop, as `predict` uses
10     four corners and the center of the central square, and their mirror images (Krizhevsky et al. 2012, §4.1)
144    4 scales × 3 squares × 6 crops × 2 mirror images (Szegedy et al. 2014, §7)
dense  all positions of the whole image and its mirror image at 3 scales (Simonyan & Zisserman 2014, §3.2): scores are
       averaged over positions, probabilities over the rest; He et al. 2015, §3.4, average scores over scales, too
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svertka.data.dataset import Pixels
from svertka.data.preprocessing import Preprocess, resize_image
from svertka.errors import UsageError

CROPS = ("1", "10", "144", "dense")
# Scales relative to the input size, for 224 pixels.
GOOGLENET_SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)
VGG_SCALES = (256 / 224, 384 / 224, 512 / 224)


@dataclass(frozen=True)
class CropProtocol:
    """How an image is cropped.

    Attributes:
        crops: "1", "10", "144" or "dense".
        scales: Lengths of the shorter side of the image, pixels.
    """

    crops: str
    scales: tuple[int, ...]

    @property
    def num_views(self) -> int:
        """Forward passes per image; for "dense" the whole image and its mirror image count as 2."""
        return {"1": 1, "10": 10, "144": 36, "dense": 2}[self.crops] * len(self.scales)

    @property
    def uses_whole_image(self) -> bool:
        """Whether crops are taken from the whole image rather than from its central square."""
        return self.crops in ("144", "dense")


def get_crop_protocol(crops: str | int, scales: Sequence[int] | None, preprocess: Preprocess) -> CropProtocol:
    """Return the protocol called `crops`.

    Args:
        crops: "1", "10", "144" or "dense".
        scales: Lengths of the shorter side, pixels. None: those of the paper, in proportion to the network's input.
        preprocess: Preprocessing of the network.

    Raises:
        UsageError: There is no such protocol, or a scale is smaller than the network's input, above 4096 or repeated.
    """
    crops, size, resize = str(crops), preprocess.size, preprocess.resize
    if crops not in CROPS:
        raise UsageError(f"crops={crops} is not known; use {', '.join(CROPS[:-1])} or {CROPS[-1]}")
    if scales is None:
        if crops == "1":
            return CropProtocol(crops, (resize,))
        if resize < size:
            raise UsageError(
                f"crops={crops} needs images larger than the network's input, and this run pads {resize} pixels to "
                f"{size}; use crops=1, or give scales of at least {size}"
            )
        if crops == "10":
            return CropProtocol(crops, (resize,))
        return CropProtocol(
            crops, tuple(round(size * share) for share in (GOOGLENET_SCALES if crops == "144" else VGG_SCALES))
        )
    if not scales:
        raise UsageError("scales are empty; give the lengths of the shorter side in pixels, such as 256,288")
    if min(scales) < size:
        raise UsageError(f"scales={min(scales)} is smaller than the network's input; use at least {size} pixels")
    if max(scales) > 4096:
        raise UsageError(f"scales={max(scales)} is too large; use at most 4096 pixels")
    if len(set(scales)) < len(scales):
        raise UsageError(f"scales={','.join(map(str, scales))} names a scale twice; give each once")
    return CropProtocol(crops, tuple(scales))


def make_1_or_10_crops(protocol: CropProtocol, preprocess: Preprocess, pictures: Sequence[Tensor]) -> Tensor:
    """Return the normalized crops of a batch, (B, V, C, size, size), for the protocols "1" and "10".

    Args:
        protocol: The protocol.
        preprocess: Preprocessing of the network.
        pictures: For each scale the central squares (B, C, S, S) uint8.
    """
    if protocol.crops == "1":
        return torch.stack([preprocess.normalize(squares) for squares in pictures], 1)
    return torch.cat([ten_crops(preprocess.standardize(squares), preprocess.size) for squares in pictures], 1)


def make_144_crops(preprocess: Preprocess, pictures: Sequence[Pixels]) -> Tensor:
    """Return the 144 normalized crops of one image, (144, C, size, size).

    Args:
        preprocess: Preprocessing of the network.
        pictures: For each scale the whole image (H, W, C) uint8.
    """
    size = preprocess.size
    shown = []
    for square in (square for picture in pictures for square in three_squares(picture)):
        # The resizing filter needs three channels.
        rgb = square.repeat(3, 2) if square.shape[2] == 1 else square
        small = resize_image(rgb, size, size, rgb.shape[2], preprocess.interpolation)[..., : square.shape[2]]
        large, little = (to_normalized_batch(preprocess, pixels) for pixels in (square, small))
        shown += [ten_crops(large, size)[0], little, little.flip(-1)]
    return torch.cat(shown)


def ten_crops(pictures: Tensor, size: int) -> Tensor:
    """Return the corners and center of images (B, C, H, W), then their mirror images, (B, 10, C, size, size)."""
    height, width = pictures.shape[-2:]
    down, right = height - size, width - size
    places = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    crops = torch.stack([pictures[..., y : y + size, x : x + size] for y, x in places], 1)
    return torch.cat([crops, crops.flip(-1)], 1)


def three_squares(picture: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Return the largest squares at both ends and in the middle of an image (H, W, C)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    first, middle, last = (
        picture[(height - side) * k // 2 :, (width - side) * k // 2 :][:side, :side] for k in (0, 1, 2)
    )
    return first, middle, last


def to_normalized_batch(preprocess: Preprocess, pixels: Pixels) -> Tensor:
    """Return one image (H, W, C) uint8 as a normalized batch (1, C, H, W)."""
    return preprocess.standardize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
