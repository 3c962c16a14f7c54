"""Real pictures with real mistakes, without any training."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.evaluation.metrics import Evaluation, MetricAccumulator


@pytest.fixture(scope="session")
def digit_pictures() -> npt.NDArray[np.uint8]:
    """(1797, 8, 8, 1)."""
    return (load_digits().images * 255 / 16).astype(np.uint8)[..., None]


@pytest.fixture(scope="session")
def nearest_centre(digit_pictures: npt.NDArray[np.uint8]) -> Callable[[Sequence[str]], Evaluation]:
    """Tells digits apart by their distance to the classes' means; beyond ten classes, by the place in the set too."""
    target = load_digits().target
    flat = torch.from_numpy(digit_pictures.reshape(len(digit_pictures), -1) / 255.0)

    def evaluate(names: Sequence[str]) -> Evaluation:
        classes = len(names)
        labels = torch.from_numpy((target + 10 * (np.arange(len(target)) % math.ceil(classes / 10))) % classes)
        centers = torch.stack([flat[labels == k].mean(0) for k in range(classes)])
        tally = MetricAccumulator(classes)
        tally.update(-(torch.cdist(flat, centers) ** 2), labels, torch.arange(len(labels)))
        return tally.result(names)

    return evaluate


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 rectangles out of two real photographs, upright and lying, in folders "china" and "flower"."""
    generator = np.random.default_rng(5)
    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        photograph = load_sample_image(f"{name}.jpg")
        (root / name).mkdir()
        for number in range(6):
            height, width = generator.integers(90, 200, 2)
            top, left = generator.integers(photograph.shape[0] - height), generator.integers(400)
            cut = photograph[top : top + height, left : left + width]
            Image.fromarray(cut).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def fresh_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`fresh_run(model, size, resize, seed, names)`: a run folder with weights as they were drawn."""

    def make(model: str, size: int, resize: int, seed: int, names: Sequence[str] = ("china", "flower")) -> Path:
        torch.manual_seed(seed)
        preprocess = Preprocess(size=size, resize=resize, mean=(0.5, 0.45, 0.4), std=(0.2, 0.25, 0.3))
        config = Config(model=model, names=tuple(names), preprocess=preprocess)
        network = config.build()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # so that it is not the identity
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        folder = tmp_path_factory.mktemp("runs") / f"{model}-{seed}"
        Classifier(network, config).save(folder)
        return folder

    return make
