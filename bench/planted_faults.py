"""Trainings with planted faults, for `python bench/trust.py faults`: what is said of them, and their histories."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import svertka
from svertka.errors import TrainingError

IMAGES, SIDE, CLASSES = 600, 24, 10
OPTIONS: dict[str, Any] = {"recipe": "plain", "epochs": 8, "lr": 0.05, "size": SIDE, "threads": 1, "accelerate": False}
KEPT = ("step", "train_loss", "train_error", "val_loss", "val_error", "learning_rate", "gradients")
KEPT_IF_ANY = ("dead", "constant_scores")


def small_network(*, normalized: bool = False) -> nn.Sequential:
    """Return two convolutions and two linear layers."""

    def convolution(channels: int, units: int) -> list[nn.Module]:
        norm: list[nn.Module] = [nn.BatchNorm2d(units)] if normalized else []
        return [nn.Conv2d(channels, units, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, 32), nn.ReLU(), nn.Linear(32, CLASSES)]
    return nn.Sequential(*convolution(1, 8), *convolution(8, 16), *head)


def deep_sigmoid_network() -> nn.Sequential:
    """Return 17 linear layers with sigmoids between them, through which no gradient passes."""
    hidden = [layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    first = [nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(SIDE**2, 32), nn.Sigmoid()]
    return nn.Sequential(*first, *hidden, nn.Linear(32, CLASSES))


def network_with_dead_units(count: int) -> nn.Sequential:
    """Return a network in which the first `count` of 8 units of the first layer are dead."""
    network = small_network()
    with torch.no_grad():
        network.get_parameter("0.bias")[:count] = -20.0
    return network


class ReluOutput(nn.Module):
    """A network with a ReLU after its class scores, three of which it sets to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_network()
        with torch.no_grad():
            self.net.get_parameter("9.bias")[:3] = -30.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores (B, K) of images (B, 1, H, W)."""
        return torch.relu(self.net(images))


class Unnormalized(nn.Module):
    """A network that undoes the normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores (B, K) of images (B, 1, H, W)."""
        scores: torch.Tensor = self.net(images * 255)
        return scores


def digits() -> tuple[Any, Any]:
    """Return 600 digits, (N, 24, 24) uint8, and their labels."""
    found = load_digits()
    chosen = np.random.default_rng(0).permutation(len(found.target))[:IMAGES]
    return (found.images[chosen] * 15.9).astype(np.uint8).repeat(3, 1).repeat(3, 2), found.target[chosen]


def faults() -> dict[str, dict[str, Any]]:
    """Return the options of each training, with `network` and `source` if they are not the usual ones."""
    images, labels = digits()
    shuffled = np.random.default_rng(1).permutation(labels)
    batch_norm: Callable[[], nn.Module] = lambda: small_network(normalized=True)  # noqa: E731
    return {
        "healthy": {},
        "healthy_bn": {"network": batch_norm},
        "dark": {"source": (images // 128, labels)},
        "rate_x10": {"lr": 0.5},
        "rate_x100": {"lr": 5.0},
        "rate_x100_bn": {"lr": 5.0, "network": batch_norm},
        "rate_1000th": {"lr": 5e-5},
        "rate_1000th_bn": {"lr": 5e-5, "network": batch_norm},
        "shuffled": {"source": (images, shuffled)},
        "shuffled_few_bn": {"source": (images[:200], shuffled[:200]), "epochs": 30, "network": batch_norm},
        "dead_all": {"network": lambda: network_with_dead_units(8)},
        "dead_half": {"network": lambda: network_with_dead_units(4)},
        "relu_out": {"network": ReluOutput},
        "overfit": {"source": (images[:60], labels[:60]), "epochs": 40, "val": 0.3, "batch_size": 16},
        "weight_decay": {"weight_decay": 1.0},
        "weight_decay_bn": {"weight_decay": 1.0, "network": batch_norm},
        "clip": {"clip": 1e-5},
        "constant_high": {"lr": 0.15, "schedule": "constant", "epochs": 20},
        "adamw_high": {"optimizer": "adamw", "lr": 0.3},
        "vanish_sigmoid": {"network": deep_sigmoid_network},
        "unnormalized": {"network": Unnormalized},
    }


def train_with_fault(options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Train and return settings and history, as tests/training/faulty_histories.json holds them, and the advice."""
    build, source = options.pop("network", small_network), options.pop("source", digits())
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        run = svertka.Run(Path(scratch) / "run")
        with contextlib.suppress(TrainingError):  # a finding, too
            svertka.train(source, model=build(), output=run, **OPTIONS | options)
        lines = run.history()
    epochs = [shorten(line) for line in lines if line["kind"] == "epoch"]
    settings = {name: value for name, value in (OPTIONS | options).items() if name not in ("recipe", "size", "threads")}
    settings = {name: value for name, value in settings.items() if name not in ("accelerate", "val")}
    return {"settings": settings, "epochs": epochs}, [line["sentence"] for line in lines if line["kind"] == "health"]


def shorten(line: dict[str, Any]) -> dict[str, Any]:
    """Return what `find_problems` reads of an epoch, with three digits."""
    kept = {name: line[name] for name in KEPT} | {name: line[name] for name in KEPT_IF_ANY if line[name]}
    gradients = list(kept["gradients"].items())
    kept["gradients"] = dict([gradients[0], gradients[-1]])
    return {name: round_value(value) for name, value in kept.items()}


def round_value(value: Any) -> Any:
    """Return `value` with three digits; also inside a dict."""
    if isinstance(value, dict):
        return {name: round_value(inside) for name, inside in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def write_histories(path: Path) -> None:
    """Train with each fault, print what is said, and write the histories to `path`, an epoch a line."""
    blocks = []
    for name, options in faults().items():
        found, said = train_with_fault(options)
        print(name, *said, sep="\n  ")
        epochs = ",\n".join(map(json.dumps, found["epochs"]))
        blocks.append(f'"{name}": {{"settings": {json.dumps(found["settings"])}, "epochs": [\n{epochs}\n]}}')
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
