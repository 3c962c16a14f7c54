"""Five trainings of one network, of which four have a fault: the notebook "Is it learning?"."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.lessons.lesson_data import load_small_digits

RIGHT, HIGH, LOW, FEW, SHUFFLED = "right", "high rate", "low rate", "few images", "shuffled labels"
WHO_DID_WHAT = {"A": SHUFFLED, "B": LOW, "C": RIGHT, "D": FEW, "E": HIGH}
EPOCHS = 40
RATES = {HIGH: 4.0, LOW: 2e-5}
FEW_IMAGES, BATCH = 40, 50


@dataclass
class Training:
    """The curves of a training.

    Attributes:
        train_losses: Mean loss of the training images of each epoch, nats.
        val_losses: Loss of the validation images after each epoch, nats.
    """

    train_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)


def run_five_trainings() -> dict[str, Training]:
    """Train the network once as it should be and four times with a fault; return the curves, A to E."""
    return {name: _train(kind) for name, kind in WHO_DID_WHAT.items()}


def _train(kind: str) -> Training:
    generator = torch.Generator().manual_seed(1)
    images, labels = load_small_digits()
    images, val_images, labels, val_labels = images[:1000], images[1000:], labels[:1000], labels[1000:]
    if kind == FEW:
        images, labels = images[:FEW_IMAGES], labels[:FEW_IMAGES]
    if kind == SHUFFLED:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    optimizer = torch.optim.SGD(network.parameters(), lr=RATES.get(kind, 0.05), momentum=0.9)
    training = Training()
    for _ in range(EPOCHS):
        training.train_losses.append(_run_epoch(network, optimizer, images, labels, generator))
        with torch.no_grad():
            training.val_losses.append(float(F.cross_entropy(network(val_images), val_labels)))
    return training


def _run_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, generator: torch.Generator
) -> float:
    """Train for one epoch; return the mean loss."""
    total = 0.0
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images), BATCH):
        batch = order[start : start + BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(images)
