"""What is inside any nn.Module."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """How large a network is: its `parameters`, the `trainable` ones among them, and its `multiply_adds`."""

    parameters: int
    trainable: int
    multiply_adds: int


def count(network: nn.Module, shape: tuple[int, ...]) -> Count:
    """The size of `network` for an input of `shape` (one picture: (1, C, H, W)); nothing is computed or changed.

    Multiply-adds are those of convolutions and matrix products in inference, without biases, as papers count them.
    """
    parameters = list(network.parameters())
    # On the meta device tensors have shapes but no values.
    tensors = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    with _inference(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(network, tensors, torch.empty(shape, device="meta"))
    return Count(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        multiply_adds=counter.get_total_flops() // 2,
    )


@contextmanager
def _inference(network: nn.Module) -> Iterator[None]:
    """Inference mode for the body; afterwards each module is in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
