"""Carrying features over, against the loop that everybody copies: frozen layers, a DataLoader, forward in each epoch.

    python bench/finetune.py [head] [half] [last] [first] [--images 100] [--json]

EfficientNet-Lite0 with the bundled weights on `cats-dogs`, 100 images of each class to learn from, all others held
out and judged once at the end; both sides have the same network, weights, images and threads, and judge as they are.

- `head`: everything frozen but the head, 30 epochs. Theirs: SGD with momentum at batch 64, images decoded, cut to
  224 pixels and normalized by two workers, which are kept between epochs. Ours: `svertka train`, as the command.
- `half`: ours with features stored as float16.
- `last`: the last stage learns too, 10 epochs, mirrored at random.
- `first`: ours on all 1,400 photographs, from the command to the error on val, with an empty cache.

`learning`: from the first batch to trained weights; ours with the features. `seconds`: ours from the start of the
command, with imports, decoding and planning, and an empty cache each time; theirs as before. `in all`: with judging.
`memory`: peak of the process; `disk`: of the stored features.
Real data: SVERTKA_DATA.
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

from svertka.device import cpu_name, describe_device
from svertka.models import weights
from svertka.models.registry import MODELS

WORKERS = 2
EPOCHS = {"head": 30, "last": 10}


class Photos(TorchDataset[tuple[torch.Tensor, int]]):
    """A folder a class, resized to 256, the middle 224, normalized; mirrored at random where they are learned from."""

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
    """Theirs."""
    facts = MODELS["efficientnet_lite0"]
    network = facts.build(classes=2)
    start = weights.load_pretrained(facts, "bundled")
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
    """Ours: `svertka train SOURCE OPTIONS` with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"XDG_CACHE_HOME": f"{scratch}/cache"}
        run = Path(scratch) / "run"
        words = [sys.executable, "-m", "svertka", "train", str(source), *options, "--output", str(run), "--json"]
        began, clock = time.perf_counter(), time.time()
        done = subprocess.run([*words, "--threads", str(threads)], env=environment, capture_output=True, check=True)
        in_all = time.perf_counter() - began
        result = json.loads(done.stdout)
        error = result["val_error"] if result["test_error"] is None else result["test_error"]
        planned = (run / "training.json").stat().st_mtime  # written before learning begins
        trained = (run / "checkpoint").stat().st_mtime  # written when it ends, before judging
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
    """`root`/train with so many images of each class of `data`, and `root`/test with the others."""
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
    """The figures of one side, from a process of its own, so that peaks of memory are its own."""
    words = [sys.executable, __file__, what, "--side", side, "--folder", str(folder), "--data", str(data)]
    done = subprocess.run([*words, "--threads", str(threads)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=list(OURS), choices=[*OURS, []])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SVERTKA_DATA", ".")) / "cats-dogs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side is not None:
        what, source = options.what[0], options.folder
        if options.side == "theirs":
            print(json.dumps(tutorial(source, what)))
        else:
            print(json.dumps(command(options.data if what == "first" else source, OURS[what], options.threads)))
        return
    data = options.data.resolve()
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
