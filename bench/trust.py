"""Benchmark of what svertka says about its own errors.

    python bench/trust.py small-sets [--only NAME] [--draws 50] [--per-class 20] [--json]
    python bench/trust.py faults [--output tests/training/faulty_histories.json]
    python bench/trust.py suggest [--only NAME] [--seeds 5] [--json]
    python bench/trust.py tasks [--only labels|count|angle] [--seeds 3] [--images 1500] [--json]
    python bench/trust.py unknown [--only NAME] [--images 1500] [--json]
    python bench/trust.py sets [--splits 100] [--images 1500] [--json]
    python bench/trust.py default [--only NAME] [--draws 10] [--json]
    python bench/trust.py all [--threads 2]

`small-sets`: of a large data set, 20 images of each class are drawn. A head is cross-validated on their features and
fitted to nine tenths of them, as `svertka.train` does by default; the others are its validation set. The true error is
that of the head on all other images of the data set. `covered` is the share of draws whose 95 % interval holds the true
error; `covered by validation`, that of the Wilson interval of the validation images alone. `deviation` is the root mean
square of the difference from the true error.

- `cats-dogs`: 1,399 photographs of 2 classes.
- `cifar10`: 5,000 images of 10 classes, drawn with a fixed seed.
- `raccoons`: 196 raccoons, 200 cats and 200 dogs.

`faults`: trainings of small networks on digits with planted faults (bench/planted_faults.py). Printed is what is said
of each; the histories are those of the test of the health advice.

`suggest`: the labels that `svertka suggest` needs to reach the accuracy of 200 random labels a class
(bench/labels_needed.py), on cats-dogs and cifar10.

`tasks`: several labels an image, and numbers, against plain PyTorch (bench/labels_and_numbers.py).

`unknown`: how well the unknown score separates images of none of the classes, against pytorch-ood; `sets`: coverage and
size of prediction sets. For both see bench/unknown_and_sets.py.

`default`: the default head against scikit-learn's logistic regression (bench/default_head.py).

`all`: the ranking and the speed of bench/label_errors.py, and everything above but `faults`, one after another, each
with its seconds.

All but `faults` need SVERTKA_DATA.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import unknown_and_sets
from default_head import DRAWS, fit_default_head
from default_head import SETS as UNTUNED
from default_head import report as report_default
from label_errors import SETS
from labels_and_numbers import TASKS
from labels_and_numbers import report as report_tasks
from labels_needed import SETS as POOLS
from labels_needed import report as report_labels_needed
from planted_faults import write_histories
from svertka.confidence_intervals import Interval, wilson_interval
from svertka.evaluation.cross_validation import cross_validate
from svertka.transfer.backbone_features import compute_backbone_features

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def draw(labels: Ints, per_class: int, seed: int) -> Ints:
    """Return the places of `per_class` images of each class, ascending."""
    rng = np.random.default_rng(seed)
    some = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
    return np.sort(np.concatenate(some))


def small_sets(name: str, draws: int, per_class: int, threads: int) -> dict[str, Any]:
    """Return how often the intervals of heads trained on small draws of a data set hold their true error."""
    dataset = SETS[name]()
    found = compute_backbone_features(dataset, np.arange(len(dataset)), threads=threads)
    heads = Heads(found.values, dataset.labels[found.indices], len(dataset.names))
    rows, began = [], time.process_time()
    for seed in range(draws):
        rows.append(heads.judge(draw(heads.labels, per_class, seed), seed))
        print(f"{name}: {seed + 1} of {draws}, {rows[-1]}", file=sys.stderr, flush=True)
    estimates, true, val = (np.array([row[key] for row in rows]) for key in ("error", "true", "val_error"))
    return {
        "data": name,
        "draws": draws,
        "images": per_class * len(dataset.names),
        "covered": float(np.mean([holds(row["interval"], row["true"]) for row in rows])),
        "true error above": float(np.mean([row["interval"][1] < row["true"] for row in rows])),
        "mean width": float(np.mean([row["interval"][1] - row["interval"][0] for row in rows])),
        "covered by validation": float(np.mean([holds(row["val_interval"], row["true"]) for row in rows])),
        "mean width of validation": float(np.mean([row["val_interval"][1] - row["val_interval"][0] for row in rows])),
        "cross-validated error": float(estimates.mean()),
        "true error": float(true.mean()),
        "deviation of the estimate": float(np.sqrt(np.mean((estimates - true) ** 2))),
        "deviation of validation": float(np.sqrt(np.mean((val - true) ** 2))),
        "cpu seconds of a draw": (time.process_time() - began) / draws,
    }


def holds(interval: Interval, value: float) -> bool:
    """Return whether `value` lies in `interval`."""
    return interval[0] <= value <= interval[1]


class Heads:
    """Heads on the features of a data set, fitted as `svertka.train` does by default.

    Args:
        values: Features (N, D) float32.
        labels: Classes (N,) int64.
        classes: Number of classes.
    """

    def __init__(self, values: Floats, labels: Ints, classes: int) -> None:
        self.values, self.labels, self.classes = values, labels, classes

    def judge(self, chosen: Ints, seed: int) -> dict[str, Any]:
        """Return what is said of a head that is trained on a draw, and its true error on all other images."""
        val = draw(self.labels[chosen], max(1, round(0.1 * len(chosen) / self.classes)), seed)
        train = np.delete(chosen, val)
        rest = np.setdiff1d(np.arange(len(self.labels)), chosen)
        found = cross_validate(
            lambda outside, inside: self.predict(chosen[outside], chosen[inside], seed),
            self.labels[chosen],
            np.arange(len(chosen)),
            self.classes,
            "train and val",
        )
        predicted = self.predict(train, np.concatenate([rest, chosen[val]]), seed)
        wrong = predicted != self.labels[np.concatenate([rest, chosen[val]])]
        return {
            "error": found.error,
            "interval": found.interval,
            "true": float(wrong[: len(rest)].mean()),
            "val_error": float(wrong[len(rest) :].mean()),
            "val_interval": wilson_interval(int(wrong[len(rest) :].sum()), len(val)),
        }

    def predict(self, train: Ints, others: Ints, seed: int) -> Ints:
        """Return the predictions for `others` of a head that is fitted to `train`."""
        return fit_default_head(self.values[train], self.labels[train], self.values[others], seed)


def run_all(threads: int) -> None:
    """Run every comparison in a process of its own, and print its seconds."""
    here, count = Path(__file__).parent, ("--threads", str(threads))
    commands = [
        ("label_errors.py", "ranking"),
        ("label_errors.py", "speed", *count),
        *(("trust.py", what) for what in ("unknown", "sets", "suggest")),
        *(("trust.py", what, *count) for what in ("tasks", "small-sets", "default")),
    ]
    for name, *words in commands:
        print(f"\n{name} {' '.join(words)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(here / name), *words], check=False)
        print(f"{time.monotonic() - began:.0f} s, exit status {done.returncode}", flush=True)


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = ("small-sets", "faults", "suggest", "tasks", "unknown", "sets", "default", "all")
    parser.add_argument("what", choices=what)
    parser.add_argument("--only")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("faulty_histories.json"))
    parser.add_argument("--splits", type=int, default=100)
    options = parser.parse_args()
    if options.what in ("unknown", "sets"):
        unknown_and_sets.run(options.what, options.only, options.images, options.splits, as_json=options.json)
        return
    if options.what == "all":
        run_all(options.threads)
        return
    if options.what == "default":
        if options.only not in (None, *UNTUNED):
            parser.error(f"--only {options.only} is none of {', '.join(UNTUNED)}")
        draws = DRAWS if options.draws is None else options.draws
        report_default(options.only, draws, options.threads, as_json=options.json)
        return
    if options.only not in (None, *SETS, *TASKS):
        parser.error(f"--only {options.only} is none of {', '.join((*SETS, *TASKS))}")
    if options.what == "faults":
        write_histories(options.output)
        return
    if options.what == "suggest":
        report_labels_needed([options.only] if options.only else list(POOLS), options.seeds, as_json=options.json)
        return
    if options.what == "tasks":
        tasks = [options.only] if options.only else TASKS
        report_tasks(tasks, options.seeds, options.images, options.threads, as_json=options.json)
        return
    rows = [
        small_sets(name, 50 if options.draws is None else options.draws, options.per_class, options.threads)
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
