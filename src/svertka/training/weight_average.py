"""The exponential moving average of a network's weights, which is validated and saved in their place."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from svertka import distributed


class WeightAverage:
    """Exponential moving average of the trainable parameters and the floating-point buffers of a network.

    The buffers are the running statistics of batch norm: averaged alike, they are those of the averaged weights.

    Args:
        network: The network. The average begins with its present values.
        decay: Share of the average that a step keeps, 0 to 1; after t steps at most (1 + t) / (10 + t), so that the
            first weights are soon forgotten.

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging", for averages;
    TensorFlow's `ExponentialMovingAverage` with `num_updates`, for the decay in the first steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._names = [
            name
            for name, tensor in network.state_dict(keep_vars=True).items()
            if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
        ]
        self.values: dict[str, torch.Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again with the present values of the network."""
        self.values = dict(zip(self._names, (tensor.clone() for tensor in self._live()), strict=True))

    def update(self, step: int) -> None:
        """Move the average toward the weights after `step` steps, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(list(self.values.values()), self._live(), step)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Replace the average by that of a checkpoint.

        Raises:
            ValueError: It is of another network.
        """
        found, expected = ({name: tuple(one.shape) for name, one in some.items()} for some in (values, self.values))
        if found != expected:
            different = sorted(name for name in found | expected if found.get(name) != expected.get(name))
            raise ValueError(f"the averaged weights differ in {', '.join(different[:3])}")
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the network during the body, with the buffers of rank 0 in all processes."""
        weights = [tensor.clone() for tensor in self._live()]
        self._write(self.values.values())
        distributed.broadcast_buffers(self._network)
        try:
            yield
        finally:
            self._write(weights)

    def _write(self, values: Iterable[torch.Tensor]) -> None:
        for tensor, value in zip(self._live(), values, strict=True):
            tensor.copy_(value)

    def _live(self) -> list[torch.Tensor]:
        """Return the tensors of the network, detached."""
        tensors = self._network.state_dict()
        return [tensors[name] for name in self._names]
