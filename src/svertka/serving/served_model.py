"""A run that is served: its network made fast, its names, and what may be read of its folder."""

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svertka.classifier import Classifier
from svertka.compiler.optimize import MIN_NUM_IMAGES
from svertka.data.dataset import Pixels
from svertka.device import get_device
from svertka.errors import RunError, UsageError
from svertka.inspection.atlas.image_data import encode_heatmap_overlay
from svertka.inspection.atlas.top_units import find_top_units, read_largest_activations
from svertka.inspection.saliency import grad_cam
from svertka.pages.inline_images import encode_webp
from svertka.run import Run, display_name
from svertka.serving.decoder_process import DecodingSettings

MAX_PIXELS = 50_000_000  # of a picture: what is decoded stays in memory beside others
BATCH_SIZES = (8, 4, 2, 1)  # pictures in a pass: few sizes, since for each memory is planned and kept
MAX_PIXELATED_SIZE = 64  # pixels a side up to which a picture is shown crisp


class ServedModel:
    """The network of `run`, a run folder or a network with weights; `key` is its name in addresses.

    `taken`: keys of others.
    """

    def __init__(self, run: str | PathLike[str], device: torch.device, taken: Collection[str] = ()) -> None:
        self.classifier, self.device = Classifier.load(run, device), device
        self.folder = Run(run).folder if Path(run).is_dir() else None
        self.name = display_name(run)
        self.key = _make_key(self.name, taken)
        self._fast = self.classifier.optimized_for(MIN_NUM_IMAGES).network
        self._best = read_largest_activations(self.folder / "atlas") if self.folder is not None else {}

    def warm_up(self) -> None:
        """Run once for each number of pictures, so that no request waits for what is found out only once.

        Raises:
            RunError: the network gives NaN.
        """
        for number in BATCH_SIZES:
            self.classifier.require_finite(self.probabilities([self._nothing()] * number))

    def _nothing(self) -> Tensor:
        preprocess = self.classifier.preprocess
        return torch.zeros(preprocess.channels, preprocess.size, preprocess.size)

    @property
    def decoding(self) -> DecodingSettings:
        """How pictures are decoded for it."""
        preprocess = self.classifier.preprocess
        return DecodingSettings(preprocess.resize, MAX_PIXELS, preprocess.fit == "crop", preprocess.intensity_range)

    def prepared(self, pixels: Pixels) -> Tensor:
        """What the network gets for a decoded picture (H, W, 3) uint8, (C, size, size) float32."""
        preprocess = self.classifier.preprocess
        return preprocess.normalise(torch.from_numpy(preprocess.square(pixels)).permute(2, 0, 1)[None])[0]

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Tensor]) -> Tensor:
        """Class probabilities (N, K) float32 of N prepared pictures; NaN in one row says nothing of the others."""
        rows, done = [], 0
        while done < len(pictures):
            number = next(size for size in BATCH_SIZES if size <= len(pictures) - done)
            images = torch.stack(list(pictures[done : done + number])).to(self.device)
            rows.append(self._fast(images).float().softmax(1).cpu())
            done += number
        return torch.cat(rows)

    def explain(self, pixels: Pixels, label: int | None) -> dict[str, Any]:
        """For people: the picture as the network sees it, where it looked for class `label`, which units fired.

        `pixels`: of the decoded picture, (H, W, 3) uint8. `label`: None is the most probable.

        Raises:
            RunError: the network gives NaN for it.
        """
        preprocess = self.classifier.preprocess
        square = preprocess.square(pixels)
        offset = (preprocess.side - preprocess.size) // 2
        seen = square[offset : offset + preprocess.size, offset : offset + preprocess.size]
        image = preprocess.normalise(torch.from_numpy(square).permute(2, 0, 1)[None])
        image = image.to(get_device(self.classifier.network) or self.device)
        probabilities = self.classifier.require_finite(self.classifier.probabilities([image[0]])[0])
        if label is None:
            label = int(probabilities.argmax())
        crisp = preprocess.size <= MAX_PIXELATED_SIZE
        result: dict[str, Any] = {
            "label": self.classifier.names[label],
            "size": preprocess.size,
            "pixelated": crisp,
            "image": _data_url(encode_webp(seen, exact=crisp)),
            "heatmap": None,
            "units": [],
        }
        try:
            heat = grad_cam(self.classifier.network, image, label)
            size = preprocess.size, preprocess.size
            places = F.interpolate(heat[:, None], size, mode="bilinear")[0, 0]
            result["heatmap"] = _data_url(encode_heatmap_overlay(places))
            result["units"] = [asdict(one) for one in find_top_units(self.classifier.network, image[0], self._best)]
        except UsageError:  # a network without maps looks nowhere in particular
            pass
        return result

    @property
    def sentence(self) -> str:
        """What it is, for people."""
        config = self.classifier.config
        known, size = len(config.names), config.preprocess.size
        try:
            source = Path(Run(self.folder).settings()["source"]).name if self.folder is not None else ""
        except RunError:
            source = ""
        trained = f", trained on {source}" if source else ""
        classes = "1 class" if known == 1 else f"{known:,} classes"
        return f"{config.model}{trained}: {classes}. It sees a picture at {size}×{size} pixels."

    def file(self, name: str) -> Path | None:
        """The file `name` of what people may see of the run: report.html and the atlas; None if there is none."""
        if self.folder is None:
            return None
        try:
            folder = self.folder.resolve(strict=True)
            path = (folder / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # no such file; a NUL in its name; a ring of links
            return None
        allowed = path == folder / "report.html" or path.is_relative_to(folder / "atlas")
        return path if allowed and path.is_file() else None


def _make_key(name: str, taken: Collection[str]) -> str:
    """`name` with letters that need no care in an address, and a number where another has it."""
    stem = re.sub(r"[^A-Za-z0-9_.:-]", "_", name).strip(".") or "run"
    return next(key for number in count(1) if (key := stem if number == 1 else f"{stem}-{number}") not in taken)


def _data_url(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
