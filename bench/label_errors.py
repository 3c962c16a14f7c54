"""Benchmark of `svertka check --labels` on data sets with planted label errors, against cleanlab.

    python bench/label_errors.py ranking [--only NAME] [--seeds 3] [--json]
    python bench/label_errors.py speed [--images 10000] [--threads 2] [--json]

`ranking`: labels of 5 % or 20 % of the images are replaced by another class, drawn uniformly with a fixed seed. Both
sides get the same features and the same out-of-fold probabilities. Each ranks all images; the average precision of the
ranking is given, 1 if all planted errors come first. svertka ranks by `score_label_doubt`, cleanlab by
`get_label_quality_scores` with each of its three methods. `listed`, `precision` and `recall` describe the list that is
shown: `find_label_issues` of both, cleanlab's with its default filter.

- `cats-dogs`: 1,399 photographs of 2 classes.
- `cifar10`: 5,000 images of 10 classes, drawn with a fixed seed.
- `raccoons`: 196 raccoons, 200 cats and 200 dogs.

`speed`: the command `svertka check SOURCE --labels --output check.html` on photographs, made from those of cats-dogs by
crops that are no near-duplicates, with an empty cache: seconds, CPU seconds, peak memory and size of the page.

Needs SVERTKA_DATA. cleanlab is under AGPL; run `ranking` where it is installed beside svertka, else its columns are
empty.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.metrics import average_precision_score

from shared_data import data_folder
from svertka.curation.confident_learning import find_label_issues, score_label_doubt
from svertka.curation.feature_outliers import find_neighbors
from svertka.data.dataset import Dataset
from svertka.data.in_memory_sources import open_in_memory
from svertka.data.source_opener import open_source
from svertka.device import cpu_name
from svertka.transfer.backbone_features import compute_backbone_features
from svertka.transfer.logistic_and_nearest_mean_heads import predict_out_of_fold

SHARES = (0.05, 0.2)
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
CIFAR_IMAGES = 5000
OTHERS = 200  # cats, and dogs, beside the raccoons
CROP = 0.7  # side of a crop as a share of the photograph's


def cats_dogs() -> Dataset:
    """Return all cats and dogs."""
    return open_source(data_folder() / "cats-dogs")


def cifar10() -> Dataset:
    """Return 5,000 images of CIFAR-10."""
    dataset = open_source("cifar10")
    return dataset.take(np.sort(np.random.default_rng(0).choice(len(dataset), CIFAR_IMAGES, replace=False)))


def raccoons() -> Dataset:
    """Return raccoons, cats and dogs."""
    pairs = [(str(path), "raccoon") for path in sorted((data_folder() / "raccoons" / "images").iterdir())]
    for name in ("cat", "dog"):
        pairs += [(str(path), name) for path in sorted((data_folder() / "cats-dogs" / name).iterdir())[:OTHERS]]
    return open_in_memory(pairs)


SETS: dict[str, Callable[[], Dataset]] = {"cats-dogs": cats_dogs, "cifar10": cifar10, "raccoons": raccoons}


def plant(labels: npt.NDArray[np.int64], classes: int, share: float, seed: int) -> tuple[Any, Any]:
    """Return the labels, `share` of which are replaced by another class, and which those are."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < share
    shift = np.where(wrong, rng.integers(1, classes, len(labels)), 0)
    return (labels + shift) % classes, wrong


def ranking(name: str, seeds: int) -> list[dict[str, Any]]:
    """Return the results of both sides on one data set, a row for each share of planted errors."""
    dataset = SETS[name]()
    features = compute_backbone_features(dataset, np.arange(len(dataset)))
    clean, classes, apart = dataset.labels[features.indices], len(dataset.names), np.arange(len(features.indices))
    neighbors = find_neighbors(features.values, apart).places
    rows = []
    for share in SHARES:
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            labels, wrong = plant(clean, classes, share, seed)
            probabilities = predict_out_of_fold(features.values, labels, apart, classes)
            listed = find_label_issues(labels, probabilities, labels[neighbors]).places
            doubts = score_label_doubt(labels, probabilities, labels[neighbors])
            scores = {"svertka": average_precision_score(wrong, doubts)} | describe_list("svertka", listed, wrong)
            for key, value in (scores | of_cleanlab(labels, probabilities, wrong)).items():
                found.setdefault(key, []).append(float(value))
        rows.append({"data": name, "share": share} | {key: float(np.mean(some)) for key, some in found.items()})
    return rows


def describe_list(side: str, listed: Any, wrong: Any) -> dict[str, float]:
    """Return the length, precision and recall of a list of label errors."""
    hits = int(wrong[listed].sum())
    return {
        f"{side} listed": len(listed),
        f"{side} precision": hits / max(len(listed), 1),
        f"{side} recall": hits / int(wrong.sum()),
    }


def of_cleanlab(labels: Any, probabilities: Any, wrong: Any) -> dict[str, float]:
    """Return the same of cleanlab; nothing if it is not installed."""
    if find_spec("cleanlab") is None:
        return {}
    from cleanlab.filter import find_label_issues as find_theirs  # type: ignore[import-not-found, unused-ignore]
    from cleanlab.rank import get_label_quality_scores  # type: ignore[import-not-found, unused-ignore]

    probabilities = probabilities.astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    scores = {
        f"cleanlab {method}": average_precision_score(
            wrong, -get_label_quality_scores(labels, probabilities, method=method)
        )
        for method in METHODS
    }
    return scores | describe_list("cleanlab", np.flatnonzero(find_theirs(labels, probabilities, n_jobs=1)), wrong)


def speed(images: int, threads: int) -> dict[str, Any]:
    """Return what the command needs for so many photographs."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_photographs(root / "photos", images)
        words = [sys.executable, "-m", "svertka", "check", str(root / "photos"), "--labels", "--threads", str(threads)]
        environment = os.environ | {"XDG_CACHE_HOME": f"{scratch}/cache", "OMP_NUM_THREADS": str(threads)}
        began = time.perf_counter()
        done = subprocess.run(
            [*words, "--output", f"{scratch}/check.html", "--json"], env=environment, capture_output=True, check=True
        )
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(done.stdout)
        return {
            "images": images,
            "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "memory": used.ru_maxrss * 1024,
            "page": (root / "check.html").stat().st_size,
            "label_errors": len(found["label_errors"]),
            "near_duplicates": len(found["near_duplicates"]),
        }


def make_photographs(root: Path, count: int) -> None:
    """Write crops of cats and dogs, each from another place of its photograph and mirrored in turn."""
    rng = np.random.default_rng(0)
    paths = sorted((data_folder() / "cats-dogs").glob("*/*.jpg"))
    for number in range(count):
        path = paths[number % len(paths)]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = (round(CROP * side) for side in image.size)
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        crop = image.crop((left, top, left + width, top + height))
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        if number // len(paths) % 2:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop.save(folder / f"{number:05}.jpg", quality=90)


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ranking", "speed"))
    parser.add_argument("--only", choices=tuple(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.what == "speed":
        result: Any = speed(options.images, options.threads) | {"cpu": cpu_name()}
        print(json.dumps(result, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
        return
    rows = [row for name in ([options.only] if options.only else SETS) for row in ranking(name, options.seeds)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['data']}, {row['share']:.0%} planted")
        for key, value in row.items():
            if key not in ("data", "share"):
                print(f"  {key:42} {value:.4f}" if not key.endswith("listed") else f"  {key:42} {value:.0f}")


if __name__ == "__main__":
    main()
