"""Training batches: shuffled by seed, shared among processes, augmented and prepared ahead."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.augmentation import Augmentation, augment
from svertka.data.dataset import BAD_SHARE, Ints
from svertka.data.gpu_jpeg import GpuDecodedSquares
from svertka.data.mixup_and_cutmix import MixupAndCutmix
from svertka.data.per_image_random_numbers import PerImageRandomNumbers
from svertka.data.pixel_statistics import SquareImages
from svertka.data.preprocessing import Preprocess
from svertka.data.unreadable_rows import UnreadableRowsError
from svertka.errors import DataError, UsageError
from svertka.progress import say

T = TypeVar("T")

AHEAD = 3  # batches prepared in advance
PREFETCHERS = 2  # threads that prepare them: one normalizes a batch while the images of the next one are decoded
NAMED = 20  # unreadable images that are named
REQUESTED = 8  # batches whose images are announced before they are read
NO_MIXING = MixupAndCutmix()


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a batch.

    Attributes:
        images: (B, C, size, size) float32, normalized, on the device. B may be 0 in the last batch of an epoch, and is
            smaller if some images cannot be read.
        labels: (B,) int64, on the device.
        indices: Positions of the images in the rows, (B,).
        count: Images in the whole batch, over all processes.
        weights: Weight of each image in the loss, (B,) float32 on the device. None: equal weights.
        mixed: The second label of each image. None: images are not mixed.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: Ints
    count: int
    weights: torch.Tensor | None = None
    mixed: "MixedLabels | None" = None

    def repeat(self, times: int) -> "Batch":
        """Return the batch with its images repeated `times` times; `indices` and `count` stay."""
        return self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))

    def split(self, parts: int) -> "list[Batch]":
        """Return the batch in `parts` parts of nearly equal size; `indices` and `count` stay."""

        def part(number: int) -> Batch:
            return self._map(lambda tensor: tensor.tensor_split(parts)[number])

        return [part(number) for number in range(parts)]

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """Return the batch with `function` of each tensor."""
        weights = None if self.weights is None else function(self.weights)
        mixed = None if self.mixed is None else self.mixed.map(function)
        return replace(self, images=function(self.images), labels=function(self.labels), weights=weights, mixed=mixed)


@dataclass(frozen=True, eq=False)
class MixedLabels:
    """The labels of the images that those of a batch are mixed with.

    Attributes:
        labels: (B,) int64, on the device.
        shares: Share of the batch's own label; that of this one is 1 − share, (B,) float32 on the device.
        weights: Weight of the second image in the loss, (B,) float32 on the device. None: equal weights.
    """

    labels: torch.Tensor
    shares: torch.Tensor
    weights: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MixedLabels":
        """Return the labels with `function` of each tensor."""
        weights = None if self.weights is None else function(self.weights)
        return MixedLabels(function(self.labels), function(self.shares), weights)


class BatchLoader:
    """Loader of the images at `indices` of `rows`, batch by batch; the last batch may be smaller.

    The order of an epoch depends only on the seed and its number, the augmentations on those and the image. An image
    that cannot be read is named once and left out of its batch; the others stay in their batches.

    Args:
        rows: Stored squares, (N, S, S, C) uint8.
        labels: Class of each row, (N,) int64.
        indices: Rows to load, (n,) int64.
        preprocess: How squares become the network's input.
        batch_size: Images per batch, over all processes.
        seed: Seed of the order and of the augmentations.
        shuffle: Whether the order is random; else it is that of `indices`.
        augmentations: Applied in order.
        mixing: How each image is then mixed with the one before it in the batch. An image that is alone in its batch,
            as the last one may be, is not mixed.
        weights: Weight of each row in the loss, (N,) float32. None: equal weights.
        device: Where batches go (default: CPU).
        memory_format: Memory format of the images.
        prefetch: Prepare batches ahead in a thread; the batches are the same.
        rank: Number of this process.
        world: Number of processes; they share each batch, one with another in the order of their ranks.
        permute: Returns the indices (n,) in random order.
        lanes: Sequences that the random order is interleaved from, one image of each in turn. A batch is shared in the
            order of these, so that a process reads images of the same ones in every batch.
        request: Told which images this process will read soon, before they are read.

    Raises:
        UsageError: `batch_size` is below 1, or, when shuffled, exceeds the number of images.
    """

    def __init__(
        self,
        rows: SquareImages,
        labels: Ints,
        indices: Ints,
        preprocess: Preprocess,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augmentations: Sequence[Augmentation] = (),
        mixing: MixupAndCutmix = NO_MIXING,
        weights: torch.Tensor | None = None,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        prefetch: bool = False,
        rank: int = 0,
        world: int = 1,
        permute: Callable[[np.random.Generator, Ints], Ints] = np.random.Generator.permutation,
        lanes: int = 1,
        request: Callable[[Ints], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be at least 1")
        if shuffle and batch_size > len(indices):
            images = len(indices)
            raise UsageError(f"batch_size={batch_size} exceeds the {images} images; use at most {images}")
        self.rows, self.labels, self.indices, self.preprocess = rows, labels, indices, preprocess
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.augmentations, self.mixing, self.weights = tuple(augmentations), mixing, weights
        self.device = device or torch.device("cpu")
        self.memory_format, self.prefetch = memory_format, prefetch
        self.rank, self.world = rank, world
        self.permute, self.lanes, self.request = permute, lanes, request
        self.images: Callable[[Ints, int], torch.Tensor] = self._augmented
        self.unreadable: dict[int, tuple[str, str]] = {}  # row -> path and reason, of those that were met
        self._lock = threading.Lock()

    def with_images(self, images: Callable[[Ints, int], torch.Tensor]) -> "BatchLoader":
        """Return the same batches with `images(indices, epoch)` in place of the images."""
        other = copy.copy(self)
        other.images = images
        return other

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        return len(self._ends)

    def order(self, epoch: int) -> Ints:
        """Return the order of the images in an epoch, over all processes."""
        if not self.shuffle:
            return self.indices
        return self.permute(np.random.default_rng((self.seed, epoch)), self.indices)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number` from `first_step` on; closing the iterator ends its thread."""
        order = self.order(number)
        if not self.prefetch:
            yield from (self._batch(order, number, step) for step in range(first_step, self.steps))
            return
        steps = iter(range(first_step, self.steps))
        coming: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(PREFETCHERS, thread_name_prefix="batches")
        try:
            coming.extend(pool.submit(self._batch, order, number, step) for step in islice(steps, AHEAD))
            while coming:
                batch = coming.popleft().result()
                coming.extend(pool.submit(self._batch, order, number, step) for step in islice(steps, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each batch ends in the order of an epoch.

        When shuffled, a last batch of one image takes some of the batch before or joins it: batch normalization fails
        if a channel has a single value.
        """
        count, size = len(self.indices), self.batch_size
        ends = [*range(size, count, size), count] if count else []
        if self.shuffle and len(ends) > 1 and count % size == 1:
            ends[-2:] = [count - (size + 1) // 2, count] if size >= 3 else [count]
        return ends

    def read(self, indices: Ints, epoch: int) -> tuple[torch.Tensor, Ints]:
        """Return the images at `indices` as they are in an epoch, without unreadable ones, and their indices."""

        def attempt() -> tuple[torch.Tensor, Ints]:
            kept = indices[self._is_readable(indices)]
            return self.images(kept, epoch), kept

        return self._without_unreadable(attempt)

    def _without_unreadable(self, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, repeated while it meets images that were not known to be unreadable."""
        while True:
            known = len(self.unreadable)
            try:
                return attempt()
            except UnreadableRowsError:
                if len(self.unreadable) == known:
                    raise

    def _is_readable(self, indices: Ints) -> npt.NDArray[np.bool_]:
        """Return whether each image is not known to be unreadable."""
        return ~np.isin(indices, np.array(list(self.unreadable), np.int64))

    def _batch(self, order: Ints, epoch: int, step: int) -> Batch:
        """Return a batch, without images that turn out to be unreadable."""
        return self._without_unreadable(lambda: self._attempt(order, epoch, step))

    def _attempt(self, order: Ints, epoch: int, step: int) -> Batch:
        """Return a batch without the images that are known to be unreadable.

        Raises:
            UnreadableRowsError: There are more of them; they are known now.
        """
        if self.request is not None:
            soon = range(step, min(step + REQUESTED, self.steps))
            self.request(np.concatenate([self._share(self._whole(order, one)) for one in soon]))
        whole = self._whole(order, step)
        is_mixed = bool(self.mixing) and len(whole) > 1
        # The partner does not depend on the number of processes.
        indices, partners = (self._share(some) for some in (whole, np.roll(whole, 1)))
        kept = self._is_readable(indices) & (self._is_readable(partners) | (not is_mixed))
        indices, partners = indices[kept], partners[kept]
        images, labels, weights = self.images(indices, epoch), *self._targets(indices)
        if not is_mixed:
            return Batch(images, labels, indices, len(whole), weights)
        rolled = self.world == 1 and len(indices) == len(whole)
        others = images.roll(1, 0) if rolled else self.images(partners, epoch)
        images, shares = self.mixing.mix(images, others, PerImageRandomNumbers(self.seed, epoch, indices))
        other_labels, other_weights = self._targets(partners)
        return Batch(images, labels, indices, len(whole), weights, MixedLabels(other_labels, shares, other_weights))

    def _whole(self, order: Ints, step: int) -> Ints:
        """Return the rows of a batch of all processes, lane by lane."""
        start, end = self._ends[step - 1] if step else 0, self._ends[step]
        lane = np.arange(start, end) % self.lanes
        return order[start:end][np.argsort(lane, kind="stable")]

    def _share(self, whole: Ints) -> Ints:
        """Return the rows of this process out of those of a batch."""
        share: Ints = np.array_split(whole, self.world)[self.rank]
        return share

    def _targets(self, indices: Ints) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the labels and the weights in the loss of the rows at `indices`."""
        labels = self._to_device(torch.from_numpy(self.labels[indices]))
        weights = None if self.weights is None else self._to_device(self.weights[torch.from_numpy(indices)])
        return labels, weights

    def _augmented(self, indices: Ints, epoch: int) -> torch.Tensor:
        """Return the images at `indices` as they are in an epoch, normalized."""
        try:
            if isinstance(self.rows, GpuDecodedSquares):
                squares = self.rows.on_device(indices)
            else:
                squares = self._to_device(torch.from_numpy(self.rows[indices]))
        except UnreadableRowsError as error:
            self._leave_out(indices[error.places], error.images)
            raise
        images = squares.permute(0, 3, 1, 2)
        draws = PerImageRandomNumbers(self.seed, epoch, indices)
        images = augment(images, self.augmentations, draws, self.preprocess.size)
        images = self.preprocess.normalize(images, self.memory_format)
        if images.shape[1] == 1:
            # The strides of a single channel are ambiguous; make them those of a contiguous tensor.
            images = images.squeeze(1).unsqueeze(1)
        return images

    def _leave_out(self, indices: Ints, images: Sequence[tuple[str, str]]) -> None:
        """Note the unreadable images at `indices` and name them; raises DataError if they are too many."""
        with self._lock:
            for index, (path, reason) in zip(indices.tolist(), images, strict=True):
                if index not in self.unreadable and len(self.unreadable) < NAMED:
                    say(f"left out: {path} cannot be read: {reason}")
                self.unreadable.setdefault(index, (path, reason))
        if len(self.unreadable) > BAD_SHARE * len(self.indices):
            path, reason = images[-1]
            raise DataError(
                f"{len(self.unreadable):,} of {len(self.indices):,} images cannot be read, more than a tenth, such as "
                f"{path}: {reason}"
            )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # otherwise the copy waits for the device to finish its work
        return tensor.to(self.device, non_blocking=True)
