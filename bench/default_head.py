"""Benchmark of the default head against a logistic regression of scikit-learn, on few images of each class.

    python bench/trust.py default [--only NAME] [--draws 10] [--json]

Both sides get the same frozen features and the same training images: 5, 20 or 50 of each class, drawn with a fixed
seed; all others are the test images. svertka's head is fitted, or above 4,000 images trained in steps, as
`svertka.train` does by default from bundled weights; `in steps` is the error of one that is trained in steps, as with
`--head linear`. The peer is scikit-learn's multinomial logistic regression on standardized features, its C chosen
among ten by 5-fold cross-validation. `difference` is the mean over the draws of the difference of the two errors on the
same test images, with a 95 % interval (t over the draws); below 0 svertka is better.

- `textures`: 12 random textures (gratings, noise of several spectra, cells, bricks, dots), drawn by a program.
- `flowers`: 12 drawings of flowers that differ in the number, shape and color of their petals.
- `tiles`: from which of 20 photographs of imagenet-samples a tile of 64×64 pixels is.
- `digits`: scikit-learn's 1,797 handwritten digits, 8×8 pixels.
- `mnist`: 2,500 images of MNIST, drawn with a fixed seed.
- `cats-dogs`, `cifar10` and `raccoons`: those of bench/label_errors.py.

All but the first two and `digits` need SVERTKA_DATA.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from label_errors import SETS as LABELED
from shared_data import data_folder
from svertka.data.dataset import ArrayImages, Dataset
from svertka.data.in_memory_sources import ARRAYS
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.data.source_opener import open_source
from svertka.training.builtin_recipes import find_recipe_by_name
from svertka.training.computed_initial_head import FITTED_IMAGES
from svertka.training.head_cross_validation import train_and_score
from svertka.training.lr_finder import find_stable_rate
from svertka.transfer.backbone_features import compute_backbone_features
from svertka.transfer.logistic_and_nearest_mean_heads import fit_logistic_regression

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SIDE = 64  # pixels
IMAGES = 50  # of each class
SIZES = (5, 20, 50)  # training images of each class
TILED = 20  # photographs
MNIST_IMAGES = 2500
DRAWS = 10


def draw_texture(kind: int, rng: np.random.Generator) -> Pixels:
    """Return one image (SIDE, SIDE, 3) of a kind of texture, 0 to 11."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    noise = rng.standard_normal((SIDE, SIDE))
    if kind < 3:  # gratings of three widths
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
        values = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * (0.3, 0.6, 1.2)[kind] + phase)
    elif kind < 6:  # noise of three scales
        values = gaussian_filter(noise, (1, 2, 4)[kind - 3], mode="wrap")
    elif kind < 8:  # noise along one direction, narrow or wide
        values = gaussian_filter(noise, ((0.5, 4), (1.5, 10))[kind - 6], mode="wrap")
    elif kind < 10:  # cells, and their borders
        distances, _ = cKDTree(rng.uniform(0, SIDE, (40, 2))).query(np.stack([rows, columns], -1).reshape(-1, 2), k=2)
        values = (distances[:, 0] if kind == 8 else np.minimum(distances[:, 1] - distances[:, 0], 3)).reshape(
            SIDE, SIDE
        )
    elif kind == 10:  # bricks
        height, shift = rng.integers(6, 12), rng.integers(0, 20)
        moved = columns + shift + (rows // height % 2) * height
        values = ((rows % height > 1) & (moved % (2 * height) > 1)).astype(np.float64)
    else:  # dots
        step, (down, right) = rng.integers(7, 13), rng.uniform(0, 7, 2).tolist()
        values = np.hypot((rows + down) % step - step / 2, (columns + right) % step - step / 2) < step / 4
    values = (values - values.mean()) / (np.std(values) + 1e-9) + 0.3 * noise
    colors = rng.uniform(40, 215, (2, 3))
    share = np.clip(values / 4 + 0.5, 0, 1)[..., None]
    return np.asarray(colors[0] * share + colors[1] * (1 - share), np.uint8)


def draw_flower(kind: int, rng: np.random.Generator) -> Pixels:
    """Return one image (SIDE, SIDE, 3) of a kind of flower, 0 to 11."""
    petals, is_round, hue = (4, 5, 6, 8, 13, 21)[kind % 6], kind < 6, (kind * 5 % 12) / 12
    background = gaussian_filter(rng.uniform(0, 1, (SIDE, SIDE)), 2)[..., None] * rng.uniform(
        [40, 80, 20], [120, 200, 90]
    )
    image = Image.fromarray(np.clip(1.5 * background, 0, 255).astype(np.uint8)).resize((4 * SIDE, 4 * SIDE))
    pen, center = ImageDraw.Draw(image), rng.uniform(1.5, 2.5, 2) * SIDE
    length, turn = float(rng.uniform(0.9, 1.5)) * SIDE, float(rng.uniform(0, 6))
    tint = int(255 * (hue + float(rng.normal(0, 0.06)))) % 256
    fill = Image.new("HSV", (1, 1), (tint, int(rng.integers(90, 220)), 230)).convert("RGB").getpixel((0, 0))
    for petal in range(petals):
        angle = turn + 2 * np.pi * petal / petals
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        width = min(2.2 * length / petals, 0.5 * length) / 2
        path = np.linspace(0, np.pi, 20)
        wide = np.sin(path) if is_round else 1 - np.abs(2 * path / np.pi - 1)
        outline = [*zip(path / np.pi, wide, strict=True), *zip(path[::-1] / np.pi, -wide[::-1], strict=True)]
        pen.polygon([tuple(center + length * a * along + width * b * across) for a, b in outline], fill, "black")
    middle = 0.2 * length
    pen.ellipse([*(center - middle), *(center + middle)], (230, 190, 40))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def make_dataset(name: str, images: Sequence[Pixels], labels: Sequence[int]) -> Dataset:
    """Return images of one size with their classes."""
    classes = np.asarray(labels, np.int64)
    names = tuple(f"{number}" for number in range(classes.max() + 1))
    return Dataset(ARRAYS, names, ArrayImages(np.stack(images), name), classes, np.full(len(classes), "", "<U5"))


def drawn(name: str, draw: Callable[[int, np.random.Generator], Pixels]) -> Dataset:
    """Return 50 images of each of 12 kinds."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(12), IMAGES).tolist()
    return make_dataset(name, [draw(kind, rng) for kind in labels], labels)


def tiles() -> Dataset:
    """Return 50 tiles of each of 20 photographs."""
    files = sorted((data_folder() / "imagenet-samples").glob("*.JPEG"))[::3][:TILED]
    rng, images, labels = np.random.default_rng(0), [], []
    for label, file in enumerate(files):
        photograph = Image.open(file).convert("RGB")
        photograph = photograph.resize((10 * SIDE, 10 * SIDE))
        for place in rng.choice(100, IMAGES, replace=False).tolist():
            left, top = SIDE * (place % 10), SIDE * (place // 10)
            images.append(np.asarray(photograph.crop((left, top, left + SIDE, top + SIDE))))
            labels.append(label)
    return make_dataset("tiles", images, labels)


def digits() -> Dataset:
    """Return all of scikit-learn's digits."""
    found = load_digits()
    gray = (found.images * 15.9).astype(np.uint8)[..., None]
    return make_dataset("digits", list(gray.repeat(3, -1)), found.target.tolist())


def mnist() -> Dataset:
    """Return 2,500 images of MNIST."""
    dataset = open_source("mnist")
    return dataset.take(np.sort(np.random.default_rng(0).choice(len(dataset), MNIST_IMAGES, replace=False)))


SETS: dict[str, Callable[[], Dataset]] = {
    "textures": lambda: drawn("textures", draw_texture),
    "flowers": lambda: drawn("flowers", draw_flower),
    "tiles": tiles,
    "digits": digits,
    "mnist": mnist,
    **LABELED,
}


def fit_default_head(features: Floats, labels: Ints, others: Floats, seed: int) -> Ints:
    """Return the classes of `others` by a head that is fitted or trained as `svertka.train` does by default."""
    if len(labels) > FITTED_IMAGES:
        return train_in_steps(features, labels, others, seed)
    weight, bias = fit_logistic_regression(features, labels, int(labels.max()) + 1)
    found: Ints = (others @ weight.T + bias).argmax(1)
    return found


def train_in_steps(features: Floats, labels: Ints, others: Floats, seed: int) -> Ints:
    """Return the classes of `others` by a head that is trained as `svertka.train` does with `--head linear`."""
    recipe, classes = find_recipe_by_name("frozen"), int(labels.max()) + 1
    values = torch.from_numpy(features)
    recipe = recipe.with_changes(
        batch_size=min(recipe.batch_size, len(labels)), lr=find_stable_rate(values[: recipe.batch_size], recipe)
    )
    batches = BatchLoader(
        np.empty((len(labels), 1, 1, 1), np.uint8),
        labels,
        np.arange(len(labels)),
        Preprocess(size=1, resize=1, mean=(0.0,), std=(1.0,)),
        batch_size=recipe.batch_size,
        seed=seed,
        shuffle=True,
    ).with_images(lambda indices, _: values[torch.from_numpy(indices)])
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    found: Ints = train_and_score(head, batches, recipe, torch.from_numpy(others)).argmax(1)
    return found


def fit_by_scikit_learn(features: Floats, labels: Ints, others: Floats, seed: int) -> Ints:
    """Return the classes of `others` by scikit-learn's logistic regression."""
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=10, cv=5, max_iter=1000, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False
        ),
    )
    found: Ints = model.fit(features, labels).predict(others)
    return found


def compare(name: str, dataset: Dataset, per_class: int, draws: int) -> dict[str, Any]:
    """Return the errors of the three heads on one set, and the difference of the default one from scikit-learn's."""
    sides = fit_default_head, train_in_steps, fit_by_scikit_learn
    found = compute_backbone_features(dataset, np.arange(len(dataset)), threads=torch.get_num_threads())
    labels, errors = dataset.labels[found.indices], []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        chosen = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
        train = np.sort(np.concatenate(chosen))
        others = np.setdiff1d(np.arange(len(labels)), train)
        given = found.values[train], labels[train], found.values[others], seed
        errors.append([float((side(*given) != labels[others]).mean()) for side in sides])
        print(f"{name}, {per_class} a class, draw {seed + 1} of {draws}: {errors[-1]}", file=sys.stderr, flush=True)
    own, in_steps, peer = np.array(errors).T
    difference = own - peer
    half = float(student.ppf(0.975, draws - 1) * difference.std(ddof=1) / np.sqrt(draws)) if draws > 1 else float("nan")
    return {
        "data": name,
        "per class": per_class,
        "draws": draws,
        "svertka": float(own.mean()),
        "in steps": float(in_steps.mean()),
        "scikit-learn": float(peer.mean()),
        "difference": float(difference.mean()),
        "interval": [float(difference.mean()) - half, float(difference.mean()) + half],
    }


def report(only: str | None, draws: int, threads: int, *, as_json: bool) -> None:
    """Print the comparison on each set, at each size that leaves half as many images to test on."""
    torch.set_num_threads(threads)
    rows = []
    with threadpool_limits(threads):
        for name in [only] if only else SETS:
            dataset = SETS[name]()
            smallest = int(np.bincount(dataset.labels).min())
            for per_class in (size for size in SIZES if smallest > 1.5 * size):
                rows.append(row := compare(name, dataset, per_class, draws))
                if not as_json:
                    low, high = row["interval"]
                    shares = ", ".join(f"{side} {row[side]:.2%}" for side in ("svertka", "in steps", "scikit-learn"))
                    print(
                        f"{name:9} {per_class:3} a class: {shares}, difference {row['difference']:+.2%} "
                        f"({low:+.2%} to {high:+.2%})",
                        flush=True,
                    )
    if as_json:
        print(json.dumps(rows, indent=2))
