"""Benchmark of decoding and resizing photographs: svertka against Pillow, with the same threads.

Three ways turn the bytes of a JPEG file into a square of `--side` pixels:

    plain    Pillow: open, convert to RGB, resize the central square with BILINEAR, which antialiases
    draft    the same after Image.draft, with which the decoder reduces the image
    svertka  decode_to_pixels and resize_central_square, as in training and prediction

Each round runs all three in changing order. Quality is the PSNR relative to the image decoded at full size and resized
with a Lanczos filter in floating point. Needs SVERTKA_DATA or `--images FOLDER`.

    python bench/decode.py --rounds 20 --threads 2
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shared_data import data_folder
from svertka.data.image_io import decode_to_pixels
from svertka.data.preprocessing import resize_central_square

Pixels = npt.NDArray[np.uint8]
Rounds = dict[str, list[float]]


class Way(Protocol):
    """One of the three ways."""

    def __call__(self, data: bytes, side: int) -> Pixels:
        """Return the square, (side, side, 3), for the bytes of a file."""
        ...


def plain(data: bytes, side: int) -> Pixels:
    """Pillow, with the image decoded at full size."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=center(image.size)))


def draft(data: bytes, side: int) -> Pixels:
    """Pillow, with the image reduced by the decoder."""
    file = Image.open(io.BytesIO(data))
    file.draft("RGB", (side, side))
    image = file.convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=center(image.size)))


def svertka(data: bytes, side: int) -> Pixels:
    """svertka's functions."""
    return resize_central_square(decode_to_pixels(data, min_side=side), side, 3)


WAYS: dict[str, Way] = {"plain": plain, "draft": draft, "svertka": svertka}


def center(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the central square of an image of `size` (width, height) as a Pillow box."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def reference(data: bytes, side: int) -> npt.NDArray[np.float64]:
    """Return the central square resized with a Lanczos filter, not rounded, (side, side, 3)."""
    rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    planes = [
        Image.fromarray(rgb[:, :, c]).resize((side, side), Image.Resampling.LANCZOS, box=center(rgb.shape[1::-1]))
        for c in range(3)
    ]
    return np.stack([np.asarray(plane, np.float64) for plane in planes], axis=2).clip(0, 255)


def psnr(square: Pixels, truth: npt.NDArray[np.float64]) -> float:
    """Return the PSNR in decibels; higher is closer."""
    return float(10 * np.log10(255**2 / np.mean((square - truth) ** 2)))


def measure(images: list[bytes], side: int, threads: int, rounds: int) -> tuple[Rounds, Rounds]:
    """Return images per second and CPU milliseconds per image of each way, one number per round."""
    speeds: Rounds = {name: [] for name in WAYS}
    loads: Rounds = {name: [] for name in WAYS}
    names = list(WAYS)
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began, worked = time.perf_counter(), time.process_time()
                deque(pool.map(partial(WAYS[name], side=side), images), maxlen=0)
                if number:  # the first round is a warm-up
                    speeds[name].append(len(images) / (time.perf_counter() - began))
                    loads[name].append((time.process_time() - worked) / len(images) * 1000)
    return speeds, loads


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: imagenet-samples of SVERTKA_DATA)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each way (default: 2)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    options = parser.parse_args()
    folder = options.images or data_folder() / "imagenet-samples"
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"no JPEG files in {folder}; give --images FOLDER")
    torch.set_num_threads(1)  # each way uses its own `--threads` threads
    images = [path.read_bytes() for path in files]
    truths = [reference(data, options.side) for data in images]
    speeds, loads = measure(images, options.side, options.threads, options.rounds)
    slowest = {name: min(values) for name, values in speeds.items()}
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    against = [ours / theirs for ours, theirs in zip(speeds["svertka"], speeds["plain"], strict=True)]
    quality = {
        name: [psnr(way(data, options.side), truth) for data, truth in zip(images, truths, strict=True)]
        for name, way in WAYS.items()
    }
    result = {
        "images": len(images),
        "side": options.side,
        "threads": options.threads,
        "rounds": options.rounds,
        "images_per_second": {name: {"min": slowest[name], "median": middle[name]} for name in WAYS},
        "processor_ms_per_image": {name: statistics.median(loads[name]) for name in WAYS},
        "ratio_to_plain": {"min": min(against), "median": statistics.median(against)},
        "psnr": {name: {"mean": statistics.mean(values), "min": min(values)} for name, values in quality.items()},
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{len(images)} images to {options.side} pixels, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':10}{'images/s, min':>16}{'median':>10}{'× plain':>10}{'CPU ms':>10}{'PSNR mean':>12}{'min':>10}")
    for name in WAYS:
        ratio = statistics.median(mine / theirs for mine, theirs in zip(speeds[name], speeds["plain"], strict=True))
        print(
            f"{name:10}{slowest[name]:16.0f}{middle[name]:10.0f}{ratio:10.2f}{statistics.median(loads[name]):10.2f}"
            f"{statistics.mean(quality[name]):9.2f} dB{min(quality[name]):7.2f} dB"
        )


if __name__ == "__main__":
    main()
