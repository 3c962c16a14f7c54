"""Pictures with what was found in them drawn over: PNG files, and a page that shows them all.

FOLDER/index.html       opens offline
       overlays/        a PNG a picture, in order, at most `LONGEST` pixels a side
"""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from svertka.data.bounding_boxes import Annotation, Box
from svertka.data.dataset import Pixels
from svertka.files import storage_errors, write_atomic
from svertka.localization.heatmap import Heat, Region
from svertka.pages.html_page import bidi_isolate, render_page
from svertka.pages.inline_images import shrink
from svertka.pages.number_format import format_count, format_percent
from svertka.pages.templates import escape

PAGE = "index.html"
LONGEST = 1024
SHOWN = 288  # CSS pixels of a picture on the page
VEIL = 0.75  # how much of the cold parts the grey hides
GREY, WHITE, BLACK, MARK = (128, 128, 128), (255, 255, 255), (0, 0, 0), (11, 92, 173)


class Album:
    """A folder of overlays that grows picture by picture, and its page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: list[str] = []
        with storage_errors(folder):
            (folder / "overlays").mkdir(parents=True, exist_ok=True)

    def add(
        self, path: str, rgb: Pixels, hot: Heat, found: Region, score: float, annotation: Annotation | None
    ) -> Path:
        """Draw one picture (H, W, 3) uint8; the file that it was written into.

        Raises:
            StorageError: the disk is full.
        """
        stem = re.sub(r"[^\w.-]", "_", Path(path).stem)
        name = f"{len(self.figures):04}-{stem}.png"
        picture = overlay(rgb, hot, found, annotation.boxes if annotation else ())
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        file = self.folder / "overlays" / name
        write_atomic(file, buffer.getvalue())
        height, width = picture.shape[:2]
        scale = SHOWN / max(height, width)
        label = f"{found.box.name} in {Path(path).name}"
        self.figures.append(
            f'<figure><a href="overlays/{name}"><img width="{round(width * scale)}" height="{round(height * scale)}" '
            f'loading="lazy" alt="{escape(label)}" src="overlays/{name}"></a>'
            f"<figcaption>{bidi_isolate(found.box.name)} {score:.3f}<br>"
            f'<span class="quiet">{bidi_isolate(Path(path).name)}</span></figcaption></figure>'
        )
        return file

    def write_page(self, judgement: dict[str, Any] | None) -> Path:
        """Write the page, with the figures of `judgement` (of `Pointing.to_dict`) above the pictures; its file."""
        sentence = f"What was found in {format_count(len(self.figures), 'picture')}, and where"
        how = (
            "Grey hides what does not speak for the class. The ring is on the spot that speaks most, the blue box "
            "around what speaks half as much or more; boxes that were given are black and white."
        )
        said = in_words(judgement) if judgement else ""
        judged = f"<p>{escape(said[0].upper() + said[1:])}.</p>" if said else ""
        body = (
            f'<main><header><h1>{escape(sentence)}</h1><p class="how">{how}</p>{judged}</header>'
            f'<section class="plates">{"".join(self.figures)}</section></main>'
        )
        file = self.folder / PAGE
        write_atomic(file, render_page("locate – svertka", body, kind="overlays", beside=True).encode())
        return file


def in_words(judgement: dict[str, Any]) -> str:
    """One sentence of what `Pointing.to_dict` gave, and `Scope.to_dict`, where that is known."""
    training = judgement.get("training_images", 0)
    left_out = format_count(training, "picture") + " that trained the network left out (--include-training)"
    if not judgement["pictures"]:
        reason = left_out if training else "no picture has a box"
        return f"{reason}, so nothing was judged"
    small = judgement["small"]
    text = (
        f"the spot lies in a box in {format_percent(judgement['hits'])} of {judgement['pictures']} cases; "
        f"the centre of the picture would in {format_percent(judgement['centre_hits'])}"
    )
    if small["pictures"]:
        text += (
            f"; where boxes cover less than a quarter, in {format_percent(small['hits'])} of {small['pictures']}, with "
            f"{format_percent(small['covered'])} covered"
        )
    if training:
        trained = f"{format_count(training, 'picture')} of these trained the network: the figures are too good"
        text += f"; {trained if judgement['includes_training'] else left_out}"
    return text


def overlay(rgb: Pixels, hot: Heat, found: Region, boxes: tuple[Box, ...]) -> Pixels:
    """`rgb` (H, W, 3) uint8, at most `LONGEST` pixels a side, with grey over what is cold in `hot`, and `found` drawn.

    The box found is blue, its spot a ring; `boxes`, those that are known, are black and white.
    """
    small = shrink(rgb, LONGEST)
    height, width = small.shape[:2]
    share = np.asarray(
        Image.fromarray(hot / max(float(hot.max()), 1e-12)).resize((width, height), Image.Resampling.BILINEAR)
    )
    veil = VEIL * (1 - share.clip(0, 1))[..., None]
    image = Image.fromarray(np.rint(small * (1 - veil) + np.array(GREY) * veil).astype(np.uint8))
    scale = width / rgb.shape[1], height / rgb.shape[0]
    draw, line = ImageDraw.Draw(image), math.ceil(max(width, height) / SHOWN)  # a CSS pixel of the page or more
    for box in boxes:
        for inset, colour in ((0, BLACK), (line, WHITE)):
            draw.rectangle(_edges(box, scale, inset), outline=colour, width=line)
    draw.rectangle(_edges(found.box, scale), outline=WHITE, width=4 * line)
    draw.rectangle(_edges(found.box, scale, inset=line), outline=MARK, width=2 * line)
    x, y = found.peak[0] * scale[0], found.peak[1] * scale[1]
    for radius, colour, width_of in ((6 * line, WHITE, 4 * line), (5 * line, MARK, 2 * line)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width_of)
    return np.asarray(image)


def _edges(box: Box, scale: tuple[float, float], inset: int = 0) -> tuple[float, float, float, float]:
    left, top, right, bottom = box.left * scale[0], box.top * scale[1], box.right * scale[0], box.bottom * scale[1]
    return left + inset, top + inset, max(left + inset, right - 1 - inset), max(top + inset, bottom - 1 - inset)
