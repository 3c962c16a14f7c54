"""Switches of max-pooling: the tap of each window that is the maximum of an image."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svertka.inspection.checked_forward_pass import StopForward
from svertka.inspection.deconvolution.backward_graph import Unpooled
from svertka.inspection.deconvolution.max_unpooling import find_switches

MAX_BYTES = 256 * 2**20  # of the switches that are kept
POOLING = torch.ops.aten.max_pool2d_with_indices.default


class MaxPoolSwitches:
    """The switches of images, kept for later calls within `MAX_BYTES`.

    Args:
        run: Runs images (1, C, H, W) through a network.
        pools: All max-pools of the network, in the order in which they run, with the width of their input.
    """

    def __init__(self, run: Callable[[Tensor], object], pools: Sequence[tuple[Unpooled, int]]) -> None:
        self._run, self._pools = run, pools
        self._kept: dict[bytes, list[Tensor]] = {}  # by the digest of an image's pixels
        self._num_bytes = 0

    def of(self, image: Tensor) -> list[Tensor]:
        """Return the switches of each max-pool, (h, w, C) int8, as `max_unpooling` reads them.

        Args:
            image: (C, H, W) float32.
        """
        digest = hashlib.sha1(image.contiguous().numpy().data, usedforsecurity=False).digest()
        found = self._kept.pop(digest, None)
        if found is None:
            found = self._compute(image)
            self._num_bytes += sum(one.numel() for one in found)
        self._kept[digest] = found  # the last one is the most recent
        while self._num_bytes > MAX_BYTES and len(self._kept) > 1:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._num_bytes -= sum(one.numel() for one in oldest)
        return found

    def _compute(self, image: Tensor) -> list[Tensor]:
        recorder = _IndexRecorder(len(self._pools))
        if self._pools:
            with recorder:
                self._run(image[None])
        return [find_switches(found, *pool) for found, pool in zip(recorder.found, self._pools, strict=True)]


class _IndexRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the indices of the maxima, and ends the forward pass after `count` max-pools."""

    def __init__(self, count: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count
        self.found: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not import its compiler, which takes longer than most passes."""
        return False

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation is POOLING:
            self.found.append(result[1])
            if len(self.found) == self._count:
                raise StopForward
        return result
