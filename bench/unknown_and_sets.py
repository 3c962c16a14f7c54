"""The parts of bench/trust.py about unknown images, against pytorch-ood, and about prediction sets.

Both use features of the frozen backbone that the package contains, and a logistic regression on them (C = 0.1).

`unknown`: the area under the ROC curve (AUROC) with which a score separates held-out images of the classes from images
of none. svertka's score is `fit_unknown_score`, with a sixth of the training images as validation images; pytorch-ood's
detectors get the same features, and all training images to fit on.

- `cats-dogs/raccoons`: trained on 980 cats and dogs; near.
- `cats-dogs/imagenet`: the same, against 56 photographs, one each of ImageNet classes that are no cats or dogs; far.
- `cifar10/CLASS`: trained on nine classes of CIFAR-10, against the tenth; near.
- `cifar10/mnist`: trained on all ten; far.

The score was chosen on the sets of cats-dogs; those of CIFAR-10 were kept back.

`sets`: over random splits of held-out images into halves, the coverage and the mean size of prediction sets for 95 %,
calibrated on one half and measured on the other. LAC, which svertka uses, APS and RAPS (k = 2, lambda = 0.01), both
without randomization.

Needs SVERTKA_DATA; `unknown` leaves the columns of pytorch-ood empty where it is not installed.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from shared_data import data_folder
from svertka.conformal_sets import conformal_quantile, nonconformity_scores
from svertka.data.source_opener import Source, open_source
from svertka.transfer.backbone_features import compute_backbone_features
from svertka.unknown_score import fit_unknown_score

COVERAGE = 0.95
DOGS = ("afghan_hound", "saluki", "cairn", "labrador_retriever", "groenendael", "appenzeller", "newfoundland")
RAPS_K, RAPS_LAMBDA = 2, 0.01

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Features:
    """Features (N, D) float32 of images, and their labels (N,)."""

    values: Floats
    labels: Ints

    def __getitem__(self, chosen: Any) -> "Features":
        return Features(self.values[chosen], self.labels[chosen])


def compute(source: Source, part: str | None = None, images: int | None = None) -> Features:
    """Return the features of the images of `source`, or of a part of it; `images`: of so many, drawn."""
    dataset = open_source(source)
    indices = np.flatnonzero((dataset.parts == part) if part else np.ones(len(dataset), bool))
    if images is not None and len(indices) > images:
        indices = np.sort(np.random.default_rng(0).permutation(indices)[:images])
    found = compute_backbone_features(dataset, indices)
    return Features(found.values, dataset.labels[found.indices])


def compute_unlabeled(folder: Path, is_shown: Callable[[str], bool] = lambda name: True) -> Features:
    """Return the features of the images in `folder`; a source needs two labels, which mean nothing here."""
    paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    shown = [path for path in paths if is_shown(path.stem.lower())]
    return compute([(path, "ab"[number % 2]) for number, path in enumerate(shown)])


@dataclass(frozen=True, eq=False)
class UnknownCase:
    """Features of training images, of held-out images of the same classes, and of images of none."""

    name: str
    kind: str
    train: Features
    known: Features
    unknown: Features


def unknown_cases(only: str | None, images: int) -> Iterator[UnknownCase]:
    """Yield the cases whose names contain `only`, with `images` training images of CIFAR-10 and half as many others."""

    def is_wanted(name: str) -> bool:
        return only is None or only in name

    def is_any_wanted(group: str) -> bool:
        return only is None or only.startswith(group) or only in group

    if is_any_wanted("cats-dogs"):
        pets = compute(data_folder() / "cats-dogs")
        order = np.random.default_rng(0).permutation(len(pets.labels))
        train, known = pets[order[:980]], pets[order[980:]]
        if is_wanted("cats-dogs/raccoons"):
            raccoons = compute_unlabeled(data_folder() / "raccoons" / "images")
            yield UnknownCase("cats-dogs/raccoons", "near", train, known, raccoons)
        if is_wanted("cats-dogs/imagenet"):
            others = compute_unlabeled(data_folder() / "imagenet-samples", lambda name: not name.endswith(DOGS))
            yield UnknownCase("cats-dogs/imagenet", "far", train, known, others)
    if is_any_wanted("cifar10"):
        names = open_source("cifar10").names
        train, known = compute("cifar10", "train", images), compute("cifar10", "test", images // 2)
        for number, name in enumerate(names):
            if is_wanted(f"cifar10/{name}"):
                kept, held = train.labels != number, known.labels != number
                yield UnknownCase(f"cifar10/{name}", "near", train[kept], known[held], known[~held])
        if is_wanted("cifar10/mnist"):
            yield UnknownCase("cifar10/mnist", "far", train, known, compute("mnist", "test", 300))


def fit_head(train: Features) -> tuple[Tensor, Tensor]:
    """Return weights (K, D) and biases (K,) of a logistic regression on the features."""
    fitted = LogisticRegression(C=0.1, max_iter=100).fit(train.values, train.labels)
    weights, biases = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # of two classes, the difference
        weights, biases = np.concatenate([-weights / 2, weights / 2]), np.concatenate([-biases / 2, biases / 2])
    return torch.from_numpy(weights).float(), torch.from_numpy(biases).float()


def score_with_svertka(train: Features, values: Tensor) -> Tensor:
    """Return svertka's scores for features (N, D)."""
    order = np.random.default_rng(0).permutation(len(train.labels))
    val, rest = train[order[: len(order) // 6]], train[order[len(order) // 6 :]]
    weights, biases = fit_head(rest)
    known = torch.from_numpy(val.values)
    score = fit_unknown_score(rest.values, rest.labels, known, known @ weights.T + biases)
    scores: Tensor = score(values, values @ weights.T + biases)
    return scores


def score_with_pytorch_ood(train: Features, values: Tensor) -> dict[str, Tensor]:
    """Return the scores of pytorch-ood's detectors for features (N, D)."""
    from pytorch_ood import detector as peers

    weights, biases = fit_head(train)
    head = torch.nn.Linear(weights.shape[1], len(weights))
    head.load_state_dict({"weight": weights, "bias": biases})
    known, labels = torch.from_numpy(train.values), torch.from_numpy(np.unique(train.labels, return_inverse=True)[1])
    logits, known_logits = values @ weights.T + biases, known @ weights.T + biases
    on_features = {
        "KNN, k = 10": peers.KNN(None, k=10),
        "KNN": peers.KNN(None),
        "Mahalanobis": peers.Mahalanobis(None),
        "RMD": peers.RMD(None),
        "ViM": peers.ViM(None, d=256, w=weights, b=biases),
        "SHE": peers.SHE(None, head),
        "NCI": peers.NCI(None, head),
        "fDBD": peers.fDBD(None, head),
        "NNGuide": peers.NNGuide(None, head),
    }
    with torch.no_grad():
        found = {name: one.fit_features(known, labels).predict_features(values) for name, one in on_features.items()}
        found |= {
            "Energy": peers.EnergyBased.score(logits),
            "MaxSoftmax": peers.MaxSoftmax.score(logits),
            "MaxLogit": peers.MaxLogit.score(logits),
            "GEN": peers.GEN.score(logits),
            "KLMatching": peers.KLMatching(None).fit_logits(known_logits, labels).predict_logits(logits),
        }
    return found


def measure_unknown(only: str | None, images: int) -> Iterator[dict[str, Any]]:
    """Yield the AUROC of svertka and of the best detector of pytorch-ood for each case."""
    for case in unknown_cases(only, images):
        values = torch.from_numpy(np.concatenate([case.known.values, case.unknown.values]))
        is_unknown = np.arange(len(values)) >= len(case.known.labels)
        with torch.no_grad():
            own = score_with_svertka(case.train, values)
        row = {
            "case": case.name,
            "kind": case.kind,
            "known": len(case.known.labels),
            "unknown": len(case.unknown.labels),
            "svertka": float(roc_auc_score(is_unknown, own.numpy())),
        }
        if find_spec("pytorch_ood"):
            peers = {
                name: float(roc_auc_score(is_unknown, np.nan_to_num(scores.detach().double().numpy())))
                for name, scores in score_with_pytorch_ood(case.train, values).items()
            }
            best = max(peers, key=peers.__getitem__)
            row |= {"best_peer": best, "best_peer_auroc": peers[best], "peers": peers}
        yield row


def adaptive_scores(probabilities: Tensor, *, is_regularized: bool) -> Tensor:
    """Return the nonconformity score of every class, (N, K): of APS, or of RAPS.

    Source: Romano et al. 2020, arXiv 2006.02544; Angelopoulos et al. 2021, arXiv 2009.14193; not randomized here.
    """
    ordered, order = probabilities.sort(1, descending=True)
    scores = ordered.cumsum(1)
    if is_regularized:
        ranks = torch.arange(1, probabilities.shape[1] + 1)
        scores = scores + RAPS_LAMBDA * (ranks - RAPS_K).clamp(min=0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def measure_sets(splits: int, images: int) -> Iterator[dict[str, Any]]:
    """Yield coverage and mean size of the prediction sets of each method on two data sets."""
    pets = compute(data_folder() / "cats-dogs")
    order = np.random.default_rng(0).permutation(len(pets.labels))
    cifar = compute("cifar10", "train", images), compute("cifar10", "test", images)
    for name, train, held in (("cats-dogs", pets[order[:400]], pets[order[400:]]), ("cifar10", *cifar)):
        weights, biases = fit_head(train)
        probabilities = (torch.from_numpy(held.values) @ weights.T + biases).softmax(1).double()
        labels = torch.from_numpy(held.labels)
        methods = {
            "LAC": 1 - probabilities,
            "APS": adaptive_scores(probabilities, is_regularized=False),
            "RAPS": adaptive_scores(probabilities, is_regularized=True),
        }
        error = float((probabilities.argmax(1) != labels).double().mean())
        for method, scores in methods.items():
            coverages, sizes = [], []
            for seed in range(splits):
                shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
                calibration, test = shuffled.chunk(2)
                own = nonconformity_scores(1 - scores[calibration], labels[calibration])
                inside = scores[test] <= conformal_quantile(own, COVERAGE) + 1e-12
                coverages.append(float(inside.gather(1, labels[test, None]).double().mean()))
                sizes.append(float(inside.sum(1).double().mean()))
            yield {
                "data": name,
                "method": method,
                "top1_error": error,
                "calibration": len(calibration),
                "coverage": float(np.mean(coverages)),
                "coverage_std": float(np.std(coverages)),
                "size": float(np.mean(sizes)),
            }


def run(what: str, only: str | None, images: int, splits: int, *, as_json: bool) -> None:
    """Measure and print "unknown" or "sets"."""
    for row in measure_unknown(only, images) if what == "unknown" else measure_sets(splits, images):
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items() if name != "peers"), flush=True)
