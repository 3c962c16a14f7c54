"""An epoch of training images, batch by batch: in seeded order, shared among processes, prepared ahead."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from svertka.data.augmentation import Augmentation, augment
from svertka.data.dataset import Ints
from svertka.data.per_image_random import PerImageRandom
from svertka.data.pixel_statistics import Rows
from svertka.data.preprocessing import Preprocess
from svertka.errors import UsageError

AHEAD = 3  # batches prepared before they are asked for


@dataclass(frozen=True, eq=False)
class Batch:
    """What one process gets of a batch.

    `images`: (B, C, size, size) float32, normalised, and `labels`: (B,) int64, both on the device. `indices`: (B,),
    where they stand in the rows. `count`: images in the whole batch, all processes together. `weights`: what each
    counts in the loss, (B,) float32 on the device; None: all the same. B may be 0 in the last batch of an epoch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: Ints
    count: int
    weights: torch.Tensor | None = None


class BatchLoader:
    """The images at `indices` of `rows`, in batches of `batch_size`, all processes together; the last may be smaller.

    `labels`: one for each of the rows. An epoch's order depends on `seed` and its number alone (`shuffle` off: as
    `indices` stand), its augmentations on those and the image. Of each batch, process `rank` of `world` gets every
    `world`-th image. `weights`: what each of the rows counts in the loss, (N,) float32. `prefetch`: batches are
    prepared by a thread, ahead of their use; they are the same.

    Raises:
        UsageError: `batch_size` below 1, or, when shuffled, more than there are images.
    """

    def __init__(
        self,
        rows: Rows,
        labels: Ints,
        indices: Ints,
        preprocess: Preprocess,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augmentations: Sequence[Augmentation] = (),
        weights: torch.Tensor | None = None,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        prefetch: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be at least 1")
        if shuffle and batch_size > len(indices):
            images = len(indices)
            raise UsageError(f"batch_size={batch_size} is more than the {images} images; use at most {images}")
        self.rows, self.labels, self.indices, self.preprocess = rows, labels, indices, preprocess
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.augmentations, self.weights = tuple(augmentations), weights
        self.device = device or torch.device("cpu")
        self.memory_format, self.prefetch = memory_format, prefetch
        self.rank, self.world = rank, world
        self.images: Callable[[Ints, int], torch.Tensor] = self._augmented

    def with_images(self, images: Callable[[Ints, int], torch.Tensor]) -> "BatchLoader":
        """The same batches with something else in place of images: what `images(indices, epoch)` gives for them."""
        other = copy.copy(self)
        other.images = images
        return other

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._ends)

    def order(self, epoch: int) -> Ints:
        """The epoch's images in its order, all processes together."""
        if not self.shuffle:
            return self.indices
        return np.random.default_rng((self.seed, epoch)).permutation(self.indices)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from `first_step` on; closing the iterator ends its thread."""
        order = self.order(number)
        if not self.prefetch:
            yield from (self._batch(order, number, step) for step in range(first_step, self.steps))
            return
        steps = iter(range(first_step, self.steps))
        coming: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
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

        When shuffled, a last batch of one image shares those of the one before, or is joined to it: batch norm may
        find only one value per channel in one image.
        """
        count, size = len(self.indices), self.batch_size
        ends = [*range(size, count, size), count] if count else []
        if self.shuffle and len(ends) > 1 and count % size == 1:
            ends[-2:] = [count - (size + 1) // 2, count] if size >= 3 else [count]
        return ends

    def _batch(self, order: Ints, epoch: int, step: int) -> Batch:
        whole = order[self._ends[step - 1] if step else 0 : self._ends[step]]
        indices = whole[self.rank :: self.world]
        labels = self._to_device(torch.from_numpy(self.labels[indices]))
        weights = None if self.weights is None else self._to_device(self.weights[torch.from_numpy(indices)])
        return Batch(self.images(indices, epoch), labels, indices, len(whole), weights)

    def _augmented(self, indices: Ints, epoch: int) -> torch.Tensor:
        """The images at `indices` as they are in that epoch, normalised."""
        images = self._to_device(torch.from_numpy(self.rows[indices])).permute(0, 3, 1, 2)
        draws = PerImageRandom(self.seed, epoch, indices)
        images = augment(images, self.augmentations, draws, self.preprocess.size)
        # Reordering is cheaper here, a byte a value, than after normalisation.
        images = self.preprocess.normalise(images.contiguous(memory_format=self.memory_format))
        if images.shape[1] == 1:
            # The strides of one channel are ambiguous: these say plainly what the network would else have to guess.
            images = images.squeeze(1).unsqueeze(1)
        return images

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # else the copy would wait for all that the device has still to do
        return tensor.to(self.device, non_blocking=True)
