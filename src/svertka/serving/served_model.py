"""A served run: its optimized network, its classes, and the files of its folder that clients may read."""

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
from torch import Tensor, nn

from svertka.classifier import Classifier, Config
from svertka.compiler.optimize import MANY_IMAGES
from svertka.data.dataset import Pixels
from svertka.device import network_device
from svertka.errors import RunError, UsageError
from svertka.inspection.atlas.image_data import encode_heatmap_overlay
from svertka.inspection.atlas.top_units import find_top_units, read_largest_activations_of_atlas
from svertka.inspection.saliency import grad_cam
from svertka.pages.inline_images import encode_webp, show_bands
from svertka.run import Run, display_name
from svertka.serving.decoder_process import DecodingSettings

Answer = tuple[Tensor, float | None]  # class probabilities (K,) of an image, and its unknown score

MAX_PIXELS = 50_000_000  # of an image, since several decoded images are in memory
BATCH_SIZES = (8, 4, 2, 1)  # few sizes, since each has a memory plan that is kept
MAX_PIXELATED_SIZE = 64  # side in pixels up to which a page shows the pixels


class ServedModel:
    """A network ready to serve; `key` is its name in URLs.

    Args:
        run: Run folder, or name of a network with weights.
        device: Where it computes.
        taken: Keys of other runs.
    """

    def __init__(
        self,
        run: str | PathLike[str] | Classifier | nn.Module,
        device: torch.device,
        taken: Collection[str] = (),
        *,
        trust_builder: bool = False,
        precision: str | None = None,
    ) -> None:
        self.classifier = Classifier.open(run, device, trust_builder=trust_builder, precision=precision)
        self.device = network_device(self.classifier.network) or device
        run = self.classifier.origin
        self.folder = Run(run).folder if Path(run).is_dir() else None
        self.name = display_name(run)
        self.key = _make_key(self.name, taken)
        self._fast = self.classifier.optimized_for(MANY_IMAGES)
        self._best = read_largest_activations_of_atlas(self.folder / "atlas") if self.folder is not None else {}

    def warm_up(self) -> None:
        """Run once for each batch size, so that no request waits for memory plans and timings.

        Raises:
            RunError: The network gives NaN.
        """
        for number in BATCH_SIZES:
            for row, _ in self.answer([self._nothing()] * number):
                self.classifier.require_finite(row)

    def _nothing(self) -> Tensor:
        preprocess = self.classifier.preprocess
        return torch.zeros(preprocess.channels, preprocess.size, preprocess.size)

    @property
    def decoding(self) -> DecodingSettings:
        """How to decode its images."""
        preprocess = self.classifier.preprocess
        bands = None if preprocess.bands is None else (preprocess.bands.dtype, preprocess.bands.bands)
        is_square = preprocess.fit == "crop"
        return DecodingSettings(preprocess.resize, MAX_PIXELS, is_square, preprocess.deep_range, bands)

    def prepared(self, pixels: Pixels) -> Tensor:
        """Preprocess a decoded image, (H, W, 3) uint8 or of bands, to (C, size, size) float32."""
        preprocess = self.classifier.preprocess
        return preprocess.normalize(torch.from_numpy(preprocess.square(pixels)).permute(2, 0, 1)[None])[0]

    @torch.inference_mode()
    def answer(self, pictures: Sequence[Tensor]) -> list[Answer]:
        """Return what `probabilities` of the classifier does of each image, (K,), and its unknown score; NaN stays."""
        answers: list[Answer] = []
        scored = self._fast.scored_network()
        while len(answers) < len(pictures):
            number = next(size for size in BATCH_SIZES if size <= len(pictures) - len(answers))
            images = torch.stack(list(pictures[len(answers) : len(answers) + number])).to(self.device)
            if scored is None:
                logits, scores = self._fast.network(images), None
            else:
                logits, scores = scored.logits_and_scores(images)
            rows = self.classifier.task.activate(logits.float()).cpu()
            answers += zip(rows, [None] * number if scores is None else scores.tolist(), strict=True)
        return answers

    def explain(self, pixels: Pixels, label: int | None) -> dict[str, Any]:
        """Return the input of the network, the Grad-CAM overlay for a class, and the most active units.

        Args:
            pixels: Decoded image, (H, W, 3) uint8, or of bands.
            label: Index of the class. None: the most probable.

        Returns:
            The fields of `schemas.Explanation`.

        Raises:
            RunError: The network computes NaN for it.
        """
        preprocess = self.classifier.preprocess
        square = preprocess.square(pixels)
        offset = (preprocess.side - preprocess.size) // 2
        seen = square[offset : offset + preprocess.size, offset : offset + preprocess.size]
        image = preprocess.normalize(torch.from_numpy(square).permute(2, 0, 1)[None])
        image = image.to(network_device(self.classifier.network) or self.device)
        probabilities = self.classifier.require_finite(self.classifier.probabilities([image[0]])[0])
        if label is None:
            label = int(probabilities.argmax())
        crisp = preprocess.size <= MAX_PIXELATED_SIZE
        result: dict[str, Any] = {
            "label": self.classifier.names[label],
            "size": preprocess.size,
            "pixelated": crisp,
            "image": _data_url(encode_webp(show_bands(seen), exact=crisp)),
            "heatmap": None,
            "units": [],
        }
        try:
            heat = grad_cam(self.classifier.network, image, label)
            size = preprocess.size, preprocess.size
            places = F.interpolate(heat[:, None], size, mode="bilinear")[0, 0]
            result["heatmap"] = _data_url(encode_heatmap_overlay(places))
            result["units"] = [asdict(one) for one in find_top_units(self.classifier.network, image[0], self._best)]
        except UsageError:  # a network without feature maps
            pass
        return result

    @property
    def sentence(self) -> str:
        """One or two sentences about the network, for a page."""
        optimized = None if self.classifier.optimized is None else self.classifier.precision
        return describe_network(self.classifier.config, self.folder, optimized)


def describe_network(config: Config, folder: Path | None, optimized: str | None = None) -> str:
    """Return one or two sentences about a network, for a page.

    Args:
        config: Its configuration.
        folder: The folder of its run; None if it has none.
        optimized: The precision of its optimized network; None if it has none.
    """
    known, size = len(config.names), config.preprocess.size
    try:
        source = Path(Run(folder).settings()["source"]).name if folder is not None else ""
    except RunError:
        source = ""
    trained = f", trained on {source}" if source else ""
    classes = "1 class" if known == 1 else f"{known:,} classes"
    if not config.task.is_single_label:
        classes = config.task.describe_names(config.names)
    computes = "" if optimized is None else f" It computes in {optimized}."
    return f"{config.model}{trained}: {classes}. It sees a picture at {size}×{size} pixels.{computes}"


def _make_key(name: str, taken: Collection[str]) -> str:
    """Return `name` with URL-safe characters, and with a number if the key is taken."""
    stem = re.sub(r"[^A-Za-z0-9_.:-]", "_", name).strip(".") or "run"
    return next(key for number in count(1) if (key := stem if number == 1 else f"{stem}-{number}") not in taken)


def _data_url(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
