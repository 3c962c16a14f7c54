"""Labels that `svertka suggest` needs to reach the accuracy of random labels; `bench/trust.py suggest` runs it.

What is to be reached is the accuracy with 200 random labels a class. The features of all images are computed once. A
logistic regression is fitted to 10 random labels of each class; then images for as many further labels are chosen from
the rest, at random or by `choose_uncertain_and_diverse`, and it is fitted again, and so on. All labels are right.
Accuracy is that on test images, the mean over the seeds.

- `cats-dogs`: 1,399 photographs of 2 classes, 400 of them, drawn for each seed, for the test.
- `cifar10`: the first 8,000 training images and the first 2,000 test images.

Needs SVERTKA_DATA.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from shared_data import data_folder
from svertka.curation.active_learning import choose_uncertain_and_diverse, score_uncertainty
from svertka.data.source_opener import open_source
from svertka.transfer.backbone_features import compute_backbone_features

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Choice = Callable[[Floats, Floats, int, int], Ints]

PER_CLASS = 200  # random labels whose accuracy is to be reached
STEP = 10  # labels of each class before the first choice, and on average of each further one
STRENGTH = 1e-3  # inverse L2 penalty of every fit
CIFAR_POOL, CIFAR_TEST, CATS_DOGS_TEST = 8000, 2000, 400


def choose_by_uncertainty(features: Floats, probabilities: Floats, count: int, seed: int) -> Ints:
    """Return the places of the images that `svertka suggest` chooses."""
    return choose_uncertain_and_diverse(features, score_uncertainty(probabilities), count, seed)


def choose_at_random(features: Floats, probabilities: Floats, count: int, seed: int) -> Ints:
    """Return the places of `count` images drawn at random."""
    return np.random.default_rng(seed).choice(len(features), count, replace=False)


@cache
def cats_dogs() -> tuple[Floats, Ints, Ints | None]:
    """Return features and labels; the test images are drawn anew for each seed."""
    dataset = open_source(data_folder() / "cats-dogs")
    found = compute_backbone_features(dataset, np.arange(len(dataset)))
    return found.values, dataset.labels[found.indices], None


@cache
def cifar10() -> tuple[Floats, Ints, Ints | None]:
    """Return features, labels and the places of the test images."""
    dataset = open_source("cifar10")
    pool, test = np.flatnonzero(dataset.parts != "test"), np.flatnonzero(dataset.parts == "test")
    found = compute_backbone_features(dataset, np.concatenate([pool[:CIFAR_POOL], test[:CIFAR_TEST]]))
    return found.values, dataset.labels[found.indices], np.flatnonzero(dataset.parts[found.indices] == "test")


SETS: dict[str, Callable[[], tuple[Floats, Ints, Ints | None]]] = {"cats-dogs": cats_dogs, "cifar10": cifar10}


def learning_curve(features: Floats, labels: Ints, tested: Ints, choice: Choice, most: int, seed: int) -> list[float]:
    """Return the accuracy on the images at `tested` with STEP, 2 STEP, … labels a class, up to `most` labels."""
    classes = int(labels.max()) + 1
    pool = np.setdiff1d(np.arange(len(labels)), tested)
    rng = np.random.default_rng(seed)
    first = [rng.choice(pool[labels[pool] == label], STEP, replace=False) for label in range(classes)]
    labeled, curve = np.concatenate(first), []
    while True:
        model = LogisticRegression(C=STRENGTH, max_iter=300).fit(features[labeled], labels[labeled])
        curve.append(float(model.score(features[tested], labels[tested])))
        if len(labeled) >= most:
            return curve
        rest = np.setdiff1d(pool, labeled)
        chosen = choice(features[rest], model.predict_proba(features[rest]), STEP * classes, seed + len(labeled))
        labeled = np.concatenate([labeled, rest[chosen]])


def labels_needed(name: str, seeds: int) -> dict[str, Any]:
    """Return the labels that random and suggested labeling need on one data set, and both curves."""
    curves: dict[str, list[list[float]]] = {"random": [], "suggest": []}
    began = time.process_time()
    for seed in range(seeds):
        values, labels, given = SETS[name]()
        drawn = np.random.default_rng(1000 + seed).choice(len(labels), CATS_DOGS_TEST, replace=False)
        tested = np.sort(drawn) if given is None else given
        features = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
        most = PER_CLASS * (int(labels.max()) + 1)
        for kind, choice in (("random", choose_at_random), ("suggest", choose_by_uncertainty)):
            curves[kind].append(learning_curve(features, labels, tested, choice, most, seed))
    means = {kind: np.mean(some, 0) for kind, some in curves.items()}
    target, step = float(means["random"][-1]), most // len(means["random"])
    reached = np.flatnonzero(means["suggest"] >= target)
    needed = int((reached[0] + 1) * step) if len(reached) else None
    return {
        "data": name,
        "seeds": seeds,
        "pool": len(labels) - len(tested),
        "random labels": most,
        "accuracy": target,
        "suggested labels": needed,
        "share": None if needed is None else needed / most,
        "random": dict(zip(range(step, most + 1, step), means["random"].tolist(), strict=True)),
        "suggest": dict(zip(range(step, most + 1, step), means["suggest"].tolist(), strict=True)),
        "cpu_seconds": time.process_time() - began,
    }


def report(names: Sequence[str], seeds: int, *, as_json: bool) -> None:
    """Measure and print."""
    rows = [labels_needed(name, seeds) for name in names]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['data']}: {row['seeds']} seeds, {row['pool']:,} images to choose from")
        print(f"  accuracy with {row['random labels']:,} random labels: {row['accuracy']:.2%}")
        if row["suggested labels"] is None:
            print("  not reached with as many suggested labels")
        else:
            print(f"  reached with {row['suggested labels']:,} suggested labels, {row['share']:.0%}")
        for count, accuracy in row["suggest"].items():
            print(f"  {count:6,}  random {row['random'][count]:.2%}  suggest {accuracy:.2%}")
