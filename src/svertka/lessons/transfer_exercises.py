"""Exercises of the notebook "Transfer and freezing"."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.lessons.answer_checks import check_array, check_function, check_number


def check_nearest_mean(answer: Any) -> str | None:
    """9.1: a function (features, labels, queries) that returns the class with the nearest mean."""
    if reason := check_function(answer, "features, labels and queries"):
        return reason
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])
    features = torch.randn(10, 4, generator=generator, dtype=torch.float64) + 2 * labels[:, None]
    queries = 3 * torch.randn(50, 4, generator=generator, dtype=torch.float64) + 2
    means = torch.stack([features[labels == one].mean(0) for one in range(3)])
    expected = torch.cdist(queries, means).argmin(1)
    result = answer(features, labels, queries)
    nearest = torch.cdist(queries, features).argmin(1)
    hints = (
        (torch.cdist(queries, means).argmax(1), "It returns the farthest mean."),
        (labels[nearest], "It returns the class of the nearest image. Average each class first."),
        ((queries @ means.T).argmax(1), "It returns the largest product with a mean. Take the distance."),
        (nearest, "It returns the number of the nearest image."),
        (torch.cdist(queries, means * labels.bincount()[:, None]).argmin(1), "It sums the features. Take their mean."),
        (
            (F.normalize(queries) @ F.normalize(means).T).argmax(1),
            "It returns the mean in the most similar direction. Take the distance.",
        ),
        (torch.cdist(queries, means, p=1).argmin(1), "It sums absolute differences. Take the Euclidean distance."),
        (torch.cdist(queries, means), "These are the distances. The number of the smallest one is asked for."),
        (torch.cdist(queries, means).argmin(0), "These are the nearest queries of the means, not the other way round."),
    )
    return check_array(result, expected, "The list of classes", hints)


def check_head_parameters(answer: Any) -> str | None:
    """9.2: parameters of a dense layer from 1280 features to 2 classes."""
    hints = {
        2560.0: "Each class has a bias, too.",
        1281.0: "There are two classes, each with its weights and its bias.",
        1280.0: "There are two classes, each with its weights and its bias.",
        1281000.0: "This is the old last layer, of 1000 classes.",
        1282.0: "Each of the two classes has a weight for each feature.",
        2561.0: "Each of the two classes has a bias.",
    }
    return check_number(answer, 2562, hints)


def check_saving(answer: Any) -> str | None:
    """9.3: the work of training all layers for 20 epochs, relative to computing features once."""
    hints = {
        20.0: "In each epoch there is a backward pass, too.",
        40.0: "In each epoch there is a forward pass, too.",
        3.0: "This is for one epoch.",
        80.0: "A backward pass costs two forward passes, so a step costs three.",
        59.0: "59 is how much more it is. How many times as much is it?",
        61.0: "The pass that computes the features is what the others are compared with.",
    }
    return check_number(answer, 60, hints)


def check_freeze(answer: Any) -> str | None:
    """9.4: a function that prepares a network for training its last layer only."""
    if reason := check_function(answer, "a network"):
        return reason
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
        )
        images, labels = torch.rand(8, 3, 8, 8), torch.tensor([0, 1] * 4)
        answer(network)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        first, second = (network[:-1](images) for _ in range(2))
        _take_step(network, images, labels)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    head = {"5.weight", "5.bias"}
    if any(name in changed for name in ("0.weight", "0.bias")):
        return "The weights of the convolution have changed."
    if any(name in changed for name in ("1.weight", "1.bias")):
        return "The scale and shift of the batch normalization have changed. They are parameters, too."
    if changed - head:
        return f"{sorted(changed - head)[-1]} has changed: the batch normalization is still in training mode."
    if changed != head:
        return "The last layer has not changed. It is the one to be trained."
    if not torch.equal(first, second):
        return "The same images get other features every time: dropout is still in training mode."
    if any(parameter.requires_grad for parameter in network[:-1].parameters()):
        return "Nothing has changed in this step, but frozen parameters still ask for gradients."
    return None


def _take_step(network: nn.Sequential, images: Tensor, labels: Tensor) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        return
    optimizer = torch.optim.SGD(trained, lr=0.1)
    F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def check_order(answer: Any) -> str | None:
    """9.5: the order of three ways to train on 60 images."""
    words = ["head", "all", "scratch"]
    found = list(answer) if isinstance(answer, list | tuple | np.ndarray) else []
    if not all(isinstance(one, str) for one in found) or sorted(found) != sorted(words):
        return f"A list of the three words {', '.join(sorted(words))} is asked for."
    if found[0] == "scratch" or found.index("scratch") < found.index("all"):
        return "From random weights, 60 images are far too few: even a clumsy start from pretrained weights is better."
    if found[0] == "all":
        return (
            "Millions of weights and 60 images: a high learning rate destroys the features before the head is of use."
        )
    return None if found == words else "Not in this order."


EXERCISES = {
    "9.1": check_nearest_mean, "9.2": check_head_parameters, "9.3": check_saving, "9.4": check_freeze,
    "9.5": check_order,
}  # fmt: skip
