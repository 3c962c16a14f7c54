"""Options of a training on several labels or on a number: what it refuses, and which augmentations it leaves out."""

from collections.abc import Sequence

from torch import nn

from svertka.data.augmentation import Augmentation
from svertka.data.dataset import Dataset
from svertka.errors import UsageError
from svertka.models.lenet import RadialBasisOutput
from svertka.tasks import AnyTask
from svertka.training.recipe import Recipe

# Augmentations that leave the labels of an image as they are: others may move what is labeled out of the image. A
# number may depend on position, size, orientation and color.
KEPT_AUGMENTATIONS = {"multi-label": ("flip", "pad_crop", "pca_colour"), "regression": ()}


def keep_targets(task: AnyTask, augmentations: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """Return those of the `augmentations` of a recipe that do not change the target of an image."""
    if task.is_single_label:
        return tuple(augmentations)
    return tuple(one for one in augmentations if one.kind in KEPT_AUGMENTATIONS[task.kind])


def describe_left_out(task: AnyTask, before: Recipe, after: Recipe, name: str) -> list[str]:
    """Return a sentence on what of a recipe is left out because it may change the targets; [] if nothing is.

    Args:
        task: What the network predicts.
        before: The recipe called `name`.
        after: The recipe that is used.
        name: Its name.
    """
    lost = [one.kind.replace("_", " ") for one in before.augmentations if one not in after.augmentations]
    lost += [key for key in ("mixup", "cutmix") if getattr(before, key) and not getattr(after, key)]
    if task.is_single_label or not lost:
        return []
    listed = ", ".join(lost)
    return [f"left out of the recipe {name}, since they may change {task.targets}: {listed}; --recipe {name} uses them"]


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
