"""Benchmark of fine-tuning with cached features against the usual loop, which runs all layers in each epoch.

    python bench/finetune.py [head] [half] [last] [first] [--images 100] [--json]

EfficientNet-Lite0 with the bundled weights on `cats-dogs`, with 100 training images of each class. All other images are
held out and scored once at the end. Both sides use the same network, weights, images and threads.

- `head`: everything but the head is frozen, 30 epochs. The loop uses SGD with momentum and batches of 64; two
  persistent workers decode, crop to 224 pixels and normalize. svertka runs the command `svertka train`.
- `half`: svertka with features stored as float16.
- `last`: the last stage is trained, too, 10 epochs, with random mirroring.
- `first`: svertka on all 1,400 photographs, from the command to the validation error, with an empty cache.

`learning` is the time from the first batch to trained weights, for svertka with stored features. `seconds` is the time
from the start of the command, with imports, decoding, planning and an empty cache; for the loop it equals `learning`.
`in all` includes scoring. `memory` is the peak of the process, `disk` the size of stored features. Needs SVERTKA_DATA.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shared_data import data_folder
from svertka.device import cpu_name, describe_device
from svertka.models import weights
from svertka.models.registry import MODELS

WORKERS = 2
EPOCHS = {"head": 30, "last": 10}


class Photos(TorchDataset[tuple[torch.Tensor, int]]):
    """A data set of one folder per class, resized to 256, cropped to 224 and normalized; mirrored for training."""

    def __init__(self, root: Path, *, mirrored: bool) -> None:
        classes = sorted(root.iterdir())
        self.items = [(path, label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())]
        self.mirrored = mirrored

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[index]
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
        if self.mirrored and torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        return (pixels.float() - 127) / 128, label


def tutorial(folder: Path, what: str) -> dict[str, Any]:
    """Train with the usual loop."""
    facts = MODELS["efficientnet_lite0"]
    network = facts.build(classes=2)
    start = weights.read_pretrained_weights(facts, "bundled")
    start.load_into(network, ("cat", "dog"))
    learning: list[nn.Module] = [network.get_submodule("fc")]
    if what == "last":
        learning += [network.get_submodule(name) for name in ("conv_head", "bn1")]
    for parameter in network.parameters():
        parameter.requires_grad = False
    parameters = [parameter for module in learning for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad = True
    loader = DataLoader(
        Photos(folder / "train", mirrored=what == "last"),
        batch_size=64 if what == "head" else 32,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    optimizer = torch.optim.SGD(parameters, lr=0.02 if what == "head" else 0.005, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    began = time.perf_counter()
    for _ in range(EPOCHS[what]):
        network.eval()
        for module in learning:
            module.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss_of(network(images), labels).backward()
            optimizer.step()
    trained = time.perf_counter()
    network.eval()
    right = 0
    judged = DataLoader(Photos(folder / "test", mirrored=False), batch_size=64, num_workers=WORKERS)
    with torch.no_grad():
        for images, labels in judged:
            right += int((network(images).argmax(1) == labels).sum())
    accuracy = right / len(judged.dataset)  # type: ignore[arg-type]
    return {
        "learning": trained - began,
        "seconds": trained - began,
        "in_all": time.perf_counter() - began,
        "accuracy": accuracy,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def command(source: Path, options: list[str], threads: int) -> dict[str, Any]:
    """Run `svertka train SOURCE OPTIONS` with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"XDG_CACHE_HOME": f"{scratch}/cache"}
        run = Path(scratch) / "run"
        words = [sys.executable, "-m", "svertka", "train", str(source), *options, "--output", str(run), "--json"]
        began, clock = time.perf_counter(), time.time()
        done = subprocess.run([*words, "--threads", str(threads)], env=environment, capture_output=True, check=True)
        in_all = time.perf_counter() - began
        result = json.loads(done.stdout)
        error = result["val_error"] if result["test_error"] is None else result["test_error"]
        planned = (run / "training.json").stat().st_mtime  # written before training begins
        trained = (run / "checkpoint").stat().st_mtime  # written when training ends, before scoring
        features = sum(path.stat().st_size for path in Path(scratch, "cache").rglob("features/*/*") if path.is_file())
    return {
        "learning": trained - planned,
        "seconds": trained - clock,
        "in_all": in_all,
        "accuracy": 1 - error,
        "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "disk": features,
    }


def divided(data: Path, pictures: int, root: Path) -> None:
    """Create `root`/train with as many images of each class of `data`, and `root`/test with the others."""
    for folder in (data / "cat", data / "dog"):
        paths = sorted(folder.iterdir())
        chosen = set(np.random.default_rng(0).choice(len(paths), pictures, replace=False).tolist())
        for number, path in enumerate(paths):
            place = root / ("train" if number in chosen else "test") / folder.name
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path)


OURS = {
    "head": ["--val", "0"],
    "half": ["--val", "0", "--half-features"],
    "last": ["--val", "0", "--unfreeze", "last"],
    "first": [],
}


def one(what: str, side: str, folder: Path, data: Path, threads: int) -> dict[str, Any]:
    """Return the results of one side, from its own process so that peaks of memory are separate."""
    words = [sys.executable, __file__, what, "--side", side, "--folder", str(folder), "--data", str(data)]
    done = subprocess.run([*words, "--threads", str(threads)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], choices=[*OURS, []], metavar="WHAT", help="what (default: all)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="folder (default: cats-dogs of SVERTKA_DATA)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = (options.data or data_folder() / "cats-dogs").resolve()
    if options.side is not None:
        what, source = options.what[0], options.folder
        if options.side == "theirs":
            print(json.dumps(tutorial(source, what)))
        else:
            print(json.dumps(command(data if what == "first" else source, OURS[what], options.threads)))
        return
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        divided(data, options.images, folder)
        for what in options.what or list(OURS):
            for side in ("theirs", "ours") if what in EPOCHS else ("ours",):
                rows[f"{what}, {side}"] = one(what, side, folder, data, options.threads)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{cpu_name()}, {describe_device(torch.device('cpu'))}")
    times = ("learning", "seconds", "in_all")
    header = "".join(f"{name:>9}" for name in ("learning", "seconds", "in all"))
    print(f"{'':<14}{header}{'accuracy':>10}{'memory':>10}{'disk':>10}{'times as fast':>24}")
    for name, row in rows.items():
        theirs = rows.get(name.replace("ours", "theirs"), row)
        ratios = "" if theirs is row else "".join(f"{theirs[key] / row[key]:>8.1f}" for key in times)
        disk = f"{row['disk'] / 1e6:>7.1f} MB" if "disk" in row else f"{'':>10}"
        seconds = "".join(f"{row[key]:>9.1f}" for key in times)
        print(f"{name:<14}{seconds}{row['accuracy']:>10.2%}{row['memory'] / 1e6:>7,.0f} MB{disk}{ratios}")


if __name__ == "__main__":
    main()
