"""Benchmark of what svertka says about its own errors.

    python bench/trust.py small-sets [--only NAME] [--draws 50] [--per-class 20] [--json]
    python bench/trust.py faults [--output tests/training/faulty_histories.json]
    python bench/trust.py suggest [--only NAME] [--seeds 5] [--json]

`small-sets`: of a large data set, 20 images of each class are drawn and trained on with `svertka.train`, which
cross-validates the head. The true error is that of the network on all other images of the data set. Given are the share
of draws whose 95 % interval holds the true error, both of the interval that training prints and of one from the
validation images alone, and the mean cross-validated and true error. The default network trains on frozen features.

- `cats-dogs`: 1,399 photographs of 2 classes.
- `cifar10`: 5,000 images of 10 classes, drawn with a fixed seed.
- `raccoons`: 196 raccoons, 200 cats and 200 dogs.

`faults`: trainings of small networks on digits with planted faults (bench/planted_faults.py). Printed is what is said
of each; the histories are those of the test of the health advice.

`suggest`: the labels that `svertka suggest` needs to reach the accuracy of 200 random labels a class
(bench/labels_needed.py), on cats-dogs and cifar10.

`small-sets` and `suggest` need SVERTKA_DATA.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

import svertka
from label_errors import SETS
from labels_needed import SETS as POOLS
from labels_needed import report as report_labels_needed
from planted_faults import write_histories
from svertka.confidence_intervals import Interval, wilson_interval
from svertka.data.dataset import Dataset
from svertka.models.head_kinds import head_path
from svertka.transfer.backbone_features import compute_backbone_features

Ints = npt.NDArray[np.int64]


def draw(labels: Ints, per_class: int, seed: int) -> Ints:
    """Return the places of `per_class` images of each class, ascending."""
    rng = np.random.default_rng(seed)
    some = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
    return np.sort(np.concatenate(some))


def small_sets(name: str, draws: int, per_class: int, threads: int) -> dict[str, Any]:
    """Return how often the intervals of trainings on small draws of a data set hold the true error."""
    dataset = SETS[name]()
    features = compute_backbone_features(dataset, np.arange(len(dataset)), threads=threads)
    labels = dataset.labels[features.indices]
    rows, began = [], time.process_time()
    for seed in range(draws):
        chosen = draw(labels, per_class, seed)
        found = train(dataset.take(features.indices[chosen]), seed, threads)
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        scores = features.values[rest] @ found["weight"].T + found["bias"]
        rows.append(found | {"true": float((scores.argmax(1) != labels[rest]).mean())})
    estimates, true = (np.array([row[key] for row in rows]) for key in ("error", "true"))
    widths = np.array([row["interval"][1] - row["interval"][0] for row in rows])
    return {
        "data": name,
        "draws": draws,
        "images": per_class * len(dataset.names),
        "covered": float(np.mean([holds(row["interval"], row["true"]) for row in rows])),
        "covered by validation": float(np.mean([holds(row["val_interval"], row["true"]) for row in rows])),
        "too low": int(sum(row["interval"][1] < row["true"] for row in rows)),
        "width": float(widths.mean()),
        "cross-validated error": float(estimates.mean()),
        "true error": float(true.mean()),
        "deviation of the estimate": float(np.sqrt(np.mean((estimates - true) ** 2))),
        "deviation of validation": float(np.sqrt(np.mean([(row["val_error"] - row["true"]) ** 2 for row in rows]))),
        "cpu_seconds": (time.process_time() - began) / draws,
    }


def holds(interval: Interval, value: float) -> bool:
    """Return whether `value` lies in `interval`."""
    return interval[0] <= value <= interval[1]


def train(source: Dataset, seed: int, threads: int) -> dict[str, Any]:
    """Train on `source` and return the cross-validated error, the validation error and the head."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        run = svertka.train(source, output=Path(scratch) / "run", seed=seed, split_seed=seed, threads=threads)
        settings, result = run.settings(), run.result()
        classifier = run.classifier()
        head = classifier.network.get_submodule(head_path(classifier.model))
        assert isinstance(head, nn.Linear)
        images = settings["parts"]["val"]
        found = settings["cross_validation"]
        return {
            "error": found["error"],
            "interval": found["interval"],
            "val_error": result["val_error"],
            "val_interval": wilson_interval(round(result["val_error"] * images), images),
            "weight": head.weight.detach().numpy(),
            "bias": head.bias.detach().numpy(),
        }


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("small-sets", "faults", "suggest"))
    parser.add_argument("--only", choices=tuple(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("faulty_histories.json"))
    options = parser.parse_args()
    if options.what == "faults":
        write_histories(options.output)
        return
    if options.what == "suggest":
        report_labels_needed([options.only] if options.only else list(POOLS), options.seeds, as_json=options.json)
        return
    rows = [
        small_sets(name, options.draws, options.per_class, options.threads)
        for name in ([options.only] if options.only else SETS)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['data']}: {row['draws']} draws of {row['images']} images")
        for key, value in row.items():
            if isinstance(value, float):
                print(f"  {key:28} {value:.4f}")


if __name__ == "__main__":
    main()
