"""Measurement of the peak memory of training on a folder, for `cats-dogs` and for ten times as many images.

    python bench/training_memory_by_dataset_size.py [--epochs 1] [--json]

The additional images are the same photographs at half size, with a pixel changed in each. Each training is a process of
its own, from decoding to the report; its peak is the one counted by the operating system. Needs SVERTKA_DATA.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from shared_data import data_folder

CHILD = """
import resource, sys
import svertka
svertka.train(sys.argv[1], output=sys.argv[2], model="resnet20", size=32, epochs=float(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def multiply(source: Path, target: Path, times: int) -> None:
    """Fill `target` with the images of `source` and `times` − 1 changed copies of each."""

    def copy(path: Path) -> None:
        folder = target / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        with Image.open(path) as file:
            image = file.convert("RGB").reduce(2)
        for number in range(1, times):
            image.putpixel((number, number), (255, 0, number))
            image.save(folder / f"{path.stem}-{number}.jpg", quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(copy, sorted(source.rglob("*.jpg"))))


def peak(source: Path, folder: Path, epochs: float) -> int:
    """Return the peak resident memory of one training, bytes."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / f"cache-{source.name}")}
    command = [sys.executable, "-c", CHILD, str(source), str(folder / f"run-{source.name}"), str(epochs)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Train twice and print both peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    photos = data_folder() / "cats-dogs"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        multiply(photos, folder / "many", times=10)
        few, many = (peak(source, folder, options.epochs) for source in (photos, folder / "many"))
        counts = [len(list(source.rglob("*.jpg"))) for source in (photos, folder / "many")]
    if options.json:
        print(json.dumps({"images": counts, "peak_bytes": [few, many], "ratio": many / few}))
        return
    for count, bytes_ in zip(counts, (few, many), strict=True):
        print(f"{count:>7,} images: peak {bytes_ / 1e6:,.0f} MB")
    print(f"ratio {many / few:.2f}")


if __name__ == "__main__":
    main()
