"""Options that a training on several labels or on a number refuses."""

from torch import nn

from svertka.data.dataset import Dataset
from svertka.errors import UsageError
from svertka.models.lenet import RadialBasisOutput
from svertka.training.recipe import Recipe


def check_task_options(dataset: Dataset, recipe: Recipe, boxes: str | None, unknown: str | None) -> None:
    """Raise UsageError if an option needs one class an image, and the images have several labels or a number.

    Args:
        dataset: The images.
        recipe: The recipe with the options.
        boxes: The option boxes.
        unknown: The option unknown.
    """
    if dataset.task.is_single_label:
        return
    needing = {
        f"boxes={boxes}": boxes is not None,
        f"unknown={unknown}": unknown is not None,
        "class_weights": recipe.class_weights,
        f"head={recipe.head}": recipe.head in ("nearest-mean", "cosine"),
        "a recipe with a class for rubbish": recipe.rubbish is not None,
    }
    option = next((name for name, is_given in needing.items() if is_given), None)
    if option is not None:
        raise UsageError(
            f"{option} needs one class an image, and {dataset.source} has {dataset.task.phrase}; leave it out"
        )


def check_task_outputs(dataset: Dataset, network: nn.Module, name: str) -> None:
    """Raise UsageError if a network computes distances to classes, and the images have several labels or a number.

    Args:
        dataset: The images.
        network: The network.
        name: Its name.
    """
    computes_distances = any(isinstance(layer, RadialBasisOutput) for layer in network.modules())
    if computes_distances and not dataset.task.is_single_label:
        raise UsageError(
            f"{name} computes distances to the codes of classes, and {dataset.source} has {dataset.task.phrase}; use "
            "another network, such as resnet20"
        )
