"""The momentum of batch norm's running statistics, higher in the first steps, so that few steps suffice."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

Layer = nn.modules.batchnorm._BatchNorm


class BatchNormMomentum:
    """Raises the momentum of the batch norm layers of a network to 2/(n + 1) in their n-th batch.

    The running statistics begin as 0 and 1. With a momentum of 0.01 they would still be nine tenths of these after 12
    steps, and a deep network would give the same scores for every image. At 2/(n + 1) they are a mean over all batches
    in which the n-th counts n times, as the weights change, until 2/(n + 1) falls below the layer's own momentum.
    Statistics of pretrained weights are kept, and change with that momentum from the first step.

    Args:
        network: The network, in training mode. Layers in evaluation mode, which are frozen, are left alone.
    """

    def __init__(self, network: nn.Module) -> None:
        self._own = {
            layer: float(layer.momentum)
            for layer in network.modules()
            if isinstance(layer, Layer) and layer.training and layer.track_running_stats and layer.momentum
        }
        counters = {layer: layer.num_batches_tracked for layer in self._own}
        self._raised = {layer: counter for layer, counter in counters.items() if counter is not None}
        for layer, counter in self._raised.items():
            if not int(counter) and _are_pretrained(layer):  # some files of weights do not count the batches
                counter.fill_(math.ceil(2 / self._own[layer]))

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Use, in the body, the momentum for one step, from the number of batches that each layer has seen."""
        counts = torch.stack(list(self._raised.values())).tolist() if self._raised else []
        for layer, count in zip(self._raised, counts, strict=True):
            layer.momentum = max(self._own[layer], 2 / (2 + count))
        self._raised = {layer: one for layer, one in self._raised.items() if layer.momentum != self._own[layer]}
        try:
            yield
        finally:
            for layer in self._raised:
                layer.momentum = self._own[layer]


def _are_pretrained(layer: Layer) -> bool:
    """Return whether the running statistics of `layer` are not those of a new layer."""
    if layer.running_mean is None or layer.running_var is None:
        return False
    return bool(layer.running_mean.any()) or bool((layer.running_var != 1).any())
