"""Overlays: images with a heat map and boxes drawn over them, as PNG files and a page that shows them all.

FOLDER/index.html       opens offline
       overlays/        a PNG file per image, in order, at most 1024 pixels a side
"""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from svertka.data.box_annotations import Annotation, Box
from svertka.data.dataset import Pixels
from svertka.files import os_error_to_storage_error, write_atomic
from svertka.localization.heatmap import HeatMap, Region
from svertka.pages.html_page import render_page
from svertka.pages.inline_images import show_bands, shrink
from svertka.pages.number_format import count_with_noun, format_percent
from svertka.pages.templates import render_template

PAGE = "index.html"
MAX_SIDE = 1024  # pixels of an overlay
SHOWN_SIDE = 288  # CSS pixels of an overlay on the page
VEIL = 0.75  # opacity of the gray over the coldest parts
GRAY, WHITE, BLACK, BLUE = (128, 128, 128), (255, 255, 255), (0, 0, 0), (11, 92, 173)


class OverlayFolder:
    """A folder of overlays, to which images are added, and its page.

    Args:
        folder: The folder; created if needed.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown: list[dict[str, Any]] = []
        with os_error_to_storage_error(folder):
            (folder / "overlays").mkdir(parents=True, exist_ok=True)

    def add(
        self, path: str, image: Pixels, heat: HeatMap, found: Region, score: float, annotation: Annotation | None
    ) -> Path:
        """Write the overlay of one image and return its file.

        Args:
            path: Path of the image.
            image: The image, (H, W, 3) uint8.
            heat: Heat map of the class found, (h, w).
            found: Where the class was found.
            score: Score of the class, 0 to 1.
            annotation: Known boxes.

        Raises:
            StorageError: The disk is full.
        """
        stem = re.sub(r"[^\w.-]", "_", Path(path).stem)
        address = f"overlays/{len(self._shown):04}-{stem}.png"
        overlay = draw_overlay(image, heat, found, annotation.boxes if annotation else ())
        buffer = io.BytesIO()
        Image.fromarray(overlay).save(buffer, "PNG")
        write_atomic(self.folder / address, buffer.getvalue())
        height, width = overlay.shape[:2]
        scale = SHOWN_SIDE / max(height, width)
        is_small = scale >= 2
        if is_small:
            scale = int(scale)
        self._shown.append(
            {
                "address": address,
                "width": round(width * scale),
                "height": round(height * scale),
                "scaling": "crisp" if is_small else "smooth",
                "name": found.box.name,
                "score": score,
                "file": Path(path).name,
            }
        )
        return self.folder / address

    def write_page(self, judgement: dict[str, Any] | None) -> Path:
        """Write the page, with the result of the pointing game if there is one, and return its file."""
        verdict = describe_pointing_result(judgement) if judgement else ""
        body = render_template("overlays.html", overlays=self._shown, verdict=verdict[:1].upper() + verdict[1:])
        file = self.folder / PAGE
        write_atomic(file, render_page("locate – svertka", body, kind="overlays", beside=True).encode())
        return file


def describe_pointing_result(judgement: dict[str, Any]) -> str:
    """Return a judgement of `LocatedImages` as a sentence without a capital letter and a period."""
    training = judgement.get("training_images", 0)
    left_out = count_with_noun(training, "picture") + " that trained the network left out (--include-training)"
    if not judgement["images"]:
        reason = left_out if training else "no picture has a box"
        return f"{reason}, so nothing was evaluated"
    small = judgement["small"]
    text = (
        f"the point lies in a box in {format_percent(judgement['hits'])} of {judgement['images']} cases; "
        f"the center of the picture would in {format_percent(judgement['centre_hits'])}"
    )
    if small["images"]:
        text += (
            f"; where boxes cover less than a quarter, in {format_percent(small['hits'])} of {small['images']}, with "
            f"{format_percent(small['covered'])} covered"
        )
    if training:
        trained = f"{count_with_noun(training, 'picture')} of these trained the network, so these shares are too high"
        text += f"; {trained if judgement['includes_training'] else left_out}"
    return text


def draw_overlay(image: Pixels, heat: HeatMap, found: Region, boxes: tuple[Box, ...]) -> Pixels:
    """Draw gray over the cold parts of `image`, and the region found.

    Args:
        image: The image, (H, W, 3) uint8.
        heat: Heat map, (h, w).
        found: The region, drawn as a blue box with a ring around its peak.
        boxes: Known boxes, drawn in black and white.

    Returns:
        The overlay, (H, W, 3) uint8, reduced to at most 1024 pixels a side.
    """
    small = shrink(show_bands(image), MAX_SIDE)
    height, width = small.shape[:2]
    share = np.asarray(
        Image.fromarray(heat / max(float(heat.max()), 1e-12)).resize((width, height), Image.Resampling.BILINEAR)
    )
    veil = VEIL * (1 - share.clip(0, 1))[..., None]
    canvas = Image.fromarray(np.rint(small * (1 - veil) + np.array(GRAY) * veil).astype(np.uint8))
    scale = width / image.shape[1], height / image.shape[0]
    draw, line = ImageDraw.Draw(canvas), math.ceil(max(width, height) / SHOWN_SIDE)  # at least one CSS pixel
    for box in boxes:
        for inset, color in ((0, BLACK), (line, WHITE)):
            draw.rectangle(_edges(box, scale, inset), outline=color, width=line)
    draw.rectangle(_edges(found.box, scale), outline=WHITE, width=4 * line)
    draw.rectangle(_edges(found.box, scale, inset=line), outline=BLUE, width=2 * line)
    x, y = found.peak[0] * scale[0], found.peak[1] * scale[1]
    for radius, color, line_width in ((6 * line, WHITE, 4 * line), (5 * line, BLUE, 2 * line)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=line_width)
    return np.asarray(canvas)


def _edges(box: Box, scale: tuple[float, float], inset: int = 0) -> tuple[float, float, float, float]:
    left, top, right, bottom = box.left * scale[0], box.top * scale[1], box.right * scale[0], box.bottom * scale[1]
    return left + inset, top + inset, max(left + inset, right - 1 - inset), max(top + inset, bottom - 1 - inset)
