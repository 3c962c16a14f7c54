"""What will be trained on what, where and how long: timed on the real network, and said before it starts."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn

from svertka import distributed
from svertka.data.loader import Batch
from svertka.device import cpu_name, set_memory_format
from svertka.errors import StorageError, UsageError
from svertka.files import cache_folder, format_bytes, lock_file, read_json, write_json
from svertka.progress import duration
from svertka.training.config import Cache
from svertka.training.recipe import Recipe
from svertka.training.training_loop import Loss, make_optimizer, take_step
from svertka.transfer.feature_cache import computed_at_once
from svertka.transfer.freeze import PartiallyFrozen

REMEMBERED = "memory_formats.json"  # in the cache folder
TIMED_FOR = 0.4  # seconds at least, and
TIMED_STEPS = 4  # steps at least, after one that warms up
TIMED_PICTURES = 8  # by which the frozen part of a network is timed
EPOCH_END = 0.04  # seconds, for the weights that are written and synced
VAL_COST = 0.4  # of a training step's time, a picture: a forward pass without gradients


@dataclass(frozen=True)
class Timing:
    """`step`: seconds of one training step. `memory_format`: "channels_last" or "contiguous_format"."""

    step: float
    memory_format: str


def time_steps(network: nn.Module, batch: Batch, recipe: Recipe, label: str) -> Timing:
    """How long a step takes, in the memory format that suits the network: timed on copies, so that nothing changes.

    On the CPU both formats are timed once and the better one is remembered under `label`, so that the same training
    started twice computes the same numbers; graphics cards get channels-last. All processes get the first one's answer.
    """
    both = batch.images.device.type == "cpu" and batch.images.dim() == 4  # features of one number a unit have no order
    formats = ["contiguous_format", "channels_last"] if both else ["channels_last"]
    shape = tuple(batch.images.shape)
    products = "bfloat16, " if recipe.bfloat16 else ""
    key = f"{label} {shape}, {products}{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _remembered().get(key)
    if known in formats:
        formats = [known]
    seconds = {layout: _time(network, batch, recipe, getattr(torch, layout)) for layout in formats}
    best = min(seconds, key=seconds.__getitem__)
    best = ("contiguous_format", "channels_last")[round(distributed.broadcast(float(best == "channels_last")))]
    if len(formats) > 1:
        _remember(key, best)
    return Timing(distributed.broadcast(seconds.get(best, min(seconds.values()))), best)


def _remembered() -> dict[str, str]:
    try:
        known = read_json(cache_folder() / REMEMBERED)
    except (OSError, ValueError, StorageError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, layout: str) -> None:
    with suppress(StorageError):  # then it is timed again
        path = cache_folder() / REMEMBERED
        with lock_file(path.with_suffix(".lock")):
            write_json(path, _remembered() | {key: layout})


def _time(network: nn.Module, batch: Batch, recipe: Recipe, layout: torch.memory_format) -> float:
    with torch.random.fork_rng(devices=[batch.images.device] if batch.images.device.type == "cuda" else []):
        scout = set_memory_format(copy.deepcopy(network).train(), layout)
        images = batch.images.contiguous(memory_format=layout) if batch.images.dim() == 4 else batch.images
        optimizer = make_optimizer(scout, recipe)
        loss_of = Loss(recipe)
        alone = Batch(images, batch.labels, batch.indices, len(batch.labels))
        times: list[float] = []
        while len(times) <= TIMED_STEPS or sum(times[1:]) < TIMED_FOR:
            began = time.perf_counter()
            with _enough_for_batch_norm(batch):
                take_step(scout, optimizer, alone, loss_of, recipe).tolist()
            times.append(time.perf_counter() - began)
    return median(times[1:])


def need_pictures_for_all(batch_size: int, pictures: int) -> None:
    """Raise UsageError if a batch, or all training pictures, leave a process without any."""
    world = distributed.world_size()
    if pictures < world:
        raise UsageError(f"{pictures} training pictures are too few for {world} processes; start fewer of them")
    if batch_size < world:
        raise UsageError(
            f"batch_size={batch_size} is less than the {world} processes, which share each batch; "
            f"use at least {world}, or start fewer processes"
        )


@contextmanager
def _enough_for_batch_norm(batch: Batch) -> Iterator[None]:
    """Say of a step in the body that fails for want of pictures in `batch` how many it takes."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {len(batch.labels)} gives the batch norm of this network one value per channel, which is no "
            "batch; use --batch-size 2 or more for each process, a larger --size, or a --model without batch norm"
        ) from error


def time_frozen(made: PartiallyFrozen, batch: Batch, layout: torch.memory_format) -> tuple[float, Batch]:
    """Seconds a picture that the frozen part of a network takes, and `batch` with the features in place of pictures."""
    images = batch.images.contiguous(memory_format=layout)
    # Chooses algorithms too, for batches of this size.
    features = torch.cat([made.frozen(some) for some in torch.split(images, computed_at_once(images.shape[-1]))])
    some = images[:TIMED_PICTURES]
    made.frozen(some)
    began = time.perf_counter()
    made.frozen(some)
    seconds = distributed.broadcast((time.perf_counter() - began) / max(len(some), 1))
    return seconds, Batch(features, batch.labels, batch.indices, batch.count)


def repeated(batch: Batch, times: int) -> Batch:
    """`batch` so many times over, as one: a step with it takes as long as one with as many other pictures."""
    images = batch.images.repeat(times, *[1] * (batch.images.dim() - 1))
    return Batch(images, batch.labels.repeat(times), np.tile(batch.indices, times), times * batch.count)


@dataclass(frozen=True)
class Passes:
    """What the frozen part costs: `seconds` a picture; so many pictures learnt from and for val, and their features."""

    seconds: float
    train: int
    val: int
    feature_bytes: int

    def cache(
        self, recipe: Recipe, one_epoch: float, asked: int | None, half: bool, limit: int, *, is_timed: bool = False
    ) -> tuple[Cache | None, str]:
        """How features are stored (None: not at all), and why, a sentence.

        They are where that saves passes and there is room within `limit`, bytes. Without augmentation one variant of
        each picture does. With it as many as are computed in the time that learning itself takes, `one_epoch` seconds a
        pass, from 2 to one for each pass: fewer would save time that is not much of the whole, more would cost it.
        `asked`: another number. `is_timed`: the epochs are not those of `recipe`, but those that fit into a time.
        """
        passes = 1 if recipe.is_computed else math.ceil(recipe.epochs)
        once = self.seconds * self.train
        break_even = round(one_epoch * passes / max(once, 1e-9))
        variants = asked or (min(max(break_even, 2), passes) if recipe.augmentations else 1)
        size = self.feature_bytes * (self.train * variants + self.val)
        if variants >= passes and passes > 1:
            return None, f"features are not stored: {variants} variants of each picture are no fewer than the passes"
        if size > limit:
            return None, (
                f"features are not stored: they take {format_bytes(size)}, and there is room for "
                f"{format_bytes(limit)}; "
                "the frozen part runs in every step"
            )
        each = f", {variants} variants of each picture" if variants > 1 else ""
        many = "as many as fit into the time" if is_timed and not recipe.is_computed else passes
        return Cache(variants=variants, half=half), (
            f"features are computed once and stored, {format_bytes(size)}{each}: a pass through the frozen part takes "
            f"{duration(once)}, and there are {many}"
        )

    def cost(self, cache: Cache | None) -> tuple[float, float]:
        """Seconds that the frozen part takes before the first epoch, and in each."""
        if cache is None:
            return 0.0, self.seconds * (self.train + self.val)
        return self.seconds * (self.train * cache.variants + self.val), 0.0


def epoch_seconds(timing: Timing, steps: int, batch_size: int, val_pictures: int) -> float:
    """How long an epoch with its validation will take."""
    return timing.step * (steps + VAL_COST * val_pictures / batch_size) + EPOCH_END


def forward_seconds(timing: Timing, pictures: int) -> float:
    """How long a picture takes without gradients, given a step with so many `pictures`."""
    return VAL_COST * timing.step / max(pictures, 1)


def fit_epochs(budget: float, spent: float, around: float, one_epoch: float) -> float:
    """How many epochs fit into `budget` seconds, with a tenth kept back for what was not timed.

    `spent`: seconds that the preparation has taken. `around`: what goes before the first epoch and after the last.

    Raises:
        UsageError: less than a twentieth of an epoch.
    """
    epochs = 0.9 * (budget - spent - around) / one_epoch
    if epochs < 0.05:
        needed, asked = spent + around + one_epoch / 0.9, duration(budget) if budget >= 1 else f"{budget:g} s"
        raise UsageError(
            f"time={asked} is too short: the preparation took {duration(spent)}, and all but the epochs takes "
            f"{duration(around)} more, one epoch {duration(one_epoch)}; allow {duration(math.ceil(needed))} or "
            "more, or choose a smaller --model"
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


def parse_rate(lr: float | str | None) -> float | None:
    """`lr` where it is a number.

    Raises:
        UsageError: it is text, but not "find".
    """
    if isinstance(lr, str) and lr != "find":
        try:
            return float(lr)
        except ValueError:
            raise UsageError(f"lr={lr} is neither a number nor find; write --lr 0.01 or --lr find") from None
    return lr if isinstance(lr, float | int) else None
