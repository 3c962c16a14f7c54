"""Estimates of training time from timed steps, and the choices that depend on them: memory format, cache, epochs."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from svertka import distributed
from svertka.classifier import WEIGHTS
from svertka.data.loader import Batch, BatchLoader
from svertka.device import cpu_name, set_memory_format
from svertka.errors import StorageError, UsageError
from svertka.evaluation.evaluate import evaluate_network
from svertka.files import cache_folder, format_bytes, lock_file, read_json, write_json
from svertka.graph.network_copy import copy_network
from svertka.progress import format_duration
from svertka.tasks import SINGLE_LABEL, AnyTask
from svertka.tensor_files import write_tensors
from svertka.training.config import FeatureCacheSettings
from svertka.training.health import PROBED, find_constant_scores, list_measured_layers, measure_dead_units
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Loss, make_optimizer, take_step
from svertka.transfer.feature_cache import feature_batch_size
from svertka.transfer.freeze import PartiallyFrozen

REMEMBERED = "memory_formats.json"  # in the cache folder
TIMED_FOR = 0.4  # seconds at least, and
TIMED_STEPS = 4  # steps at least, after a warm-up step
TIMED_ENDS = 3  # ends of an epoch, after a first one
TIMED_IMAGES = 8  # images by which the frozen layers are timed
VAL_COST = 0.4  # time of a forward pass without gradients, relative to a training step


@dataclass(frozen=True)
class StepTiming:
    """The time of a training step.

    Attributes:
        step: Seconds per step.
        memory_format: The faster one, "channels_last" or "contiguous_format".
    """

    step: float
    memory_format: str


def time_training_steps(
    network: nn.Module, batch: Batch, recipe: Recipe, label: str, task: AnyTask = SINGLE_LABEL
) -> StepTiming:
    """Time steps on copies of a network and choose the memory format.

    On the CPU both formats are timed once and the faster one is stored in the cache folder, so that the same training
    computes the same numbers each time. GPUs use channels-last.

    Args:
        network: The network; it stays as it is.
        batch: A batch.
        recipe: The recipe.
        label: Name of the network, under which its memory format is stored.
        task: What the network predicts.

    Returns:
        The timing; the same in all processes.
    """
    both = batch.images.device.type == "cpu" and batch.images.dim() == 4  # vectors have no memory format
    formats = ["contiguous_format", "channels_last"] if both else ["channels_last"]
    shape = tuple(batch.images.shape)
    products = "bfloat16, " if recipe.bfloat16 else ""
    key = f"{label} {shape}, {products}{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _remembered().get(key)
    if known in formats:
        formats = [known]
    seconds = {layout: _time(network, batch, recipe, getattr(torch, layout), task) for layout in formats}
    best = min(seconds, key=seconds.__getitem__)
    best = ("contiguous_format", "channels_last")[round(distributed.broadcast(float(best == "channels_last")))]
    if len(formats) > 1:
        _remember(key, best)
    return StepTiming(distributed.broadcast(seconds.get(best, min(seconds.values()))), best)


def _remembered() -> dict[str, str]:
    try:
        known = read_json(cache_folder() / REMEMBERED)
    except (OSError, ValueError, StorageError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, layout: str) -> None:
    with suppress(StorageError):  # it is timed again next time
        path = cache_folder() / REMEMBERED
        with lock_file(path.with_suffix(".lock")):
            write_json(path, _remembered() | {key: layout})


def _time(network: nn.Module, batch: Batch, recipe: Recipe, layout: torch.memory_format, task: AnyTask) -> float:
    with torch.random.fork_rng(devices=[batch.images.device] if batch.images.device.type == "cuda" else []):
        scout = set_memory_format(copy_network(network).train(), layout)
        images = batch.images.contiguous(memory_format=layout) if batch.images.dim() == 4 else batch.images
        optimizer = make_optimizer(scout, recipe)
        loss_of = Loss(recipe, task)
        alone = Batch(images, batch.labels, batch.indices, len(batch.labels))
        times: list[float] = []
        while len(times) <= TIMED_STEPS or sum(times[1:]) < TIMED_FOR:
            began = time.perf_counter()
            with _explain_batch_norm_error(batch):
                take_step(scout, optimizer, alone, loss_of, recipe).tolist()
            times.append(time.perf_counter() - began)
    return median(times[1:])


def check_images_per_process(batch_size: int, images: int) -> None:
    """Raise UsageError if there are fewer training images, or images per batch, than processes."""
    world = distributed.world_size()
    if images < world:
        raise UsageError(f"{images} training images are too few for {world} processes; start fewer processes")
    if batch_size < world:
        raise UsageError(
            f"batch_size={batch_size} is less than the {world} processes, which share each batch; "
            f"use at least {world}, or start fewer processes"
        )


@contextmanager
def _explain_batch_norm_error(batch: Batch) -> Iterator[None]:
    """Turn PyTorch's error about a batch that is too small for batch norm into a UsageError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {len(batch.labels)} gives the batch norm of this network one value per channel, and it needs "
            "more; use --batch-size 2 or more for each process, a larger --size, or a --model without batch norm"
        ) from error


def time_frozen_layers(partial: PartiallyFrozen, batch: Batch, layout: torch.memory_format) -> tuple[float, Batch]:
    """Return the seconds per image of the frozen layers, and `batch` with features in place of images."""
    images = batch.images.contiguous(memory_format=layout)
    # Also chooses algorithms for batches of this size.
    features = torch.cat([partial.frozen(some) for some in torch.split(images, feature_batch_size(images.shape[-1]))])
    some = images[:TIMED_IMAGES]
    partial.frozen(some)
    began = time.perf_counter()
    partial.frozen(some)
    seconds = distributed.broadcast((time.perf_counter() - began) / max(len(some), 1))
    return seconds, Batch(features, batch.labels, batch.indices, batch.count)


def tile_batch(batch: Batch, times: int) -> Batch:
    """Return `batch` repeated `times` times as one batch, which takes as long as one of as many different images."""
    images = batch.images.repeat(times, *[1] * (batch.images.dim() - 1))
    return Batch(
        images,
        batch.labels.repeat(times, *[1] * (batch.labels.dim() - 1)),
        np.tile(batch.indices, times),
        times * batch.count,
    )


@dataclass(frozen=True)
class FrozenLayersCost:
    """The cost of the frozen layers.

    Attributes:
        seconds: Seconds per image.
        train: Number of training images.
        val: Number of validation images.
        feature_bytes: Bytes of the stored features of an image.
    """

    seconds: float
    train: int
    val: int
    feature_bytes: int

    def plan_cache(
        self, recipe: Recipe, one_epoch: float, asked: int | None, half: bool, limit: int, *, is_timed: bool = False
    ) -> tuple[FeatureCacheSettings | None, str]:
        """Decide whether and how features are stored.

        They are stored if that saves passes through the frozen layers and they fit. Without augmentation one variant of
        each image suffices. With augmentation as many are stored as can be computed in the time that training takes, at
        least 2 and at most one per epoch: fewer would save little of the whole time, more would dominate it.

        Args:
            recipe: The recipe.
            one_epoch: Seconds of an epoch of the trainable layers.
            asked: Requested number of variants. None: chosen here.
            half: Whether features are stored as float16.
            limit: Bytes that features may take.
            is_timed: Whether the number of epochs is the one that fits into a given time, not that of the recipe.

        Returns:
            The cache, or None, and the reason, a sentence.
        """
        if recipe.mixing:
            return None, "features are not stored: images are mixed before the frozen layers, which run in every step"
        passes = 1 if recipe.is_computed else math.ceil(recipe.epochs)
        once = self.seconds * self.train
        break_even = round(one_epoch * passes / max(once, 1e-9))
        variants = asked or (min(max(break_even, 2), passes) if recipe.augmentations else 1)
        size = self.feature_bytes * (self.train * variants + self.val)
        if variants >= passes and passes > 1:
            return None, f"features are not stored: {variants} variants of each image are as many as there are epochs"
        if size > limit:
            return None, (
                f"features are not stored: they take {format_bytes(size)}, and there is room for "
                f"{format_bytes(limit)}; the frozen layers run in every step"
            )
        each = f", {variants} variants of each image" if variants > 1 else ""
        repeated = f", and each of the {passes} epochs would repeat it" if passes > 1 else ""
        if is_timed and not recipe.is_computed:  # the number of epochs is not known yet
            repeated = ", and each epoch would repeat it"
        return FeatureCacheSettings(variants=variants, half=half), (
            f"features are computed once and stored, {format_bytes(size)}{each}: a pass through the frozen layers "
            f"takes {format_duration(once)}{repeated}"
        )

    @property
    def each_epoch(self) -> float:
        """Seconds that the frozen layers take in each epoch if features are not stored."""
        return self.seconds * (self.train + self.val)


def estimate_validation_seconds(timing: StepTiming, batch_size: int, val_images: int) -> float:
    """Estimate the seconds that the network takes for the validation set."""
    return timing.step * VAL_COST * val_images / batch_size


def time_head_validation(
    head: nn.Module, features: torch.Tensor, val: BatchLoader, names: tuple[str, ...], task: AnyTask = SINGLE_LABEL
) -> float:
    """Return the seconds of a validation on stored features, measured with features of other images.

    Args:
        head: The trainable part of the network.
        features: Features of some images, (B, …).
        val: The validation set, images.
        names: The class names.
        task: What the network predicts.
    """
    head.eval()
    stand_ins = val.with_images(lambda indices, _: features[torch.from_numpy(indices % len(features))])
    seconds = _median_seconds(lambda: evaluate_network(head, stand_ins, names, "timing", task))
    head.train()
    return seconds


def time_epoch_end(network: nn.Module, trained: nn.Module, batch: Batch, folder: Path) -> float:
    """Return the seconds that the end of an epoch takes besides the validation: saving weights and looking for faults.

    Args:
        network: The whole network.
        trained: Its trainable part.
        batch: A batch of images, or of features.
        folder: An existing folder on the disk of the run.
    """
    some = batch.images[:PROBED]
    known = list_measured_layers(trained, some)

    def end_epoch() -> None:
        with tempfile.TemporaryDirectory(prefix=".svertka.", dir=folder) as scratch:
            write_tensors(Path(scratch) / WEIGHTS, network.state_dict())
        measure_dead_units(trained, some, known)
        find_constant_scores(trained, some)

    return _median_seconds(end_epoch)


def _median_seconds(function: Callable[[], object]) -> float:
    """Return the median time of `TIMED_ENDS` calls after a first one, the same in all processes."""
    times = []
    for _ in range(1 + TIMED_ENDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return distributed.broadcast(median(times[1:]))


def estimate_forward_seconds(timing: StepTiming, images: int) -> float:
    """Estimate the seconds of a forward pass per image, given the timing of a step with `images` images."""
    return VAL_COST * timing.step / max(images, 1)


def count_epochs_within_time(budget: float, spent: float, around: float, one_epoch: float) -> float:
    """Return the number of epochs that fit into a time, less a tenth for what was not timed.

    Args:
        budget: The time, seconds.
        spent: Seconds that the preparation took.
        around: Seconds needed before the first epoch and after the last.
        one_epoch: Seconds of an epoch.

    Raises:
        UsageError: Less than a twentieth of an epoch fits.
    """
    epochs = 0.9 * (budget - spent - around) / one_epoch
    if epochs < 0.05:
        needed, asked = spent + around + one_epoch / 0.9, format_duration(budget) if budget >= 1 else f"{budget:g} s"
        raise UsageError(
            f"time={asked} is too short: the preparation took {format_duration(spent)}, an epoch takes "
            f"{format_duration(one_epoch)} and the rest {format_duration(around)}; allow "
            f"{format_duration(math.ceil(needed))} or more, or choose a smaller --model"
        )
    return round(epochs, 2)


def parse_time(time: str | float) -> float:
    """Return the seconds in "90", "90s", "10m" or "1.5h"; a number is in seconds.

    Raises:
        UsageError: It is none of these, or not between 0 and a billion seconds.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    text = str(time)
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"time={text} is not a length of time; write 90s, 10m or 1.5h")
    return seconds


def parse_learning_rate(lr: float | str | None) -> float | None:
    """Return the option `lr` if it is a number; None for None and "find".

    Raises:
        UsageError: It is other text.
    """
    if isinstance(lr, str) and lr != "find":
        try:
            return float(lr)
        except ValueError:
            raise UsageError(f"lr={lr} is neither a number nor find; write --lr 0.01 or --lr find") from None
    return lr if isinstance(lr, float | int) else None
