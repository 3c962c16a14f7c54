"""Functions of tensors as networks: compiled, compared with float64, and saved; for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svertka.compiler import reference
from svertka.compiler.optimize import Optimized, optimize
from svertka.graph.operation_and_value_types import Operation

# Operations whose results are the numbers of their input in another arrangement.
VIEWS = {"permute", "reshape", "transpose", "slice", "unsqueeze", "squeeze", "flatten", "expand", "unflatten", "select",
         "unbind", "view"}  # fmt: skip


class Function(nn.Module):
    """A function of this module and its input, with the layers and parameters that it needs."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def compile_exactly(network: nn.Module, shape: tuple[int, ...], folder: Path, tolerance: float = 3e-6) -> Optimized:
    """Optimize a network, and check that it is right for several batch sizes and numbers of threads.

    Nothing but views may be left to PyTorch. The steps in PyTorch's operations, and the network that is saved and
    loaded, must give the same.
    """
    torch.manual_seed(0)
    network.eval()
    optimized = optimize(network, torch.randn(2, *shape))
    left = [one.name for one in optimized.compiled[0].fused.steps if isinstance(one, Operation)]
    assert {name.split(".")[0] for name in left} <= VIEWS
    optimized.save(folder / "network.safetensors")
    loaded = Optimized.load(folder / "network.safetensors")
    threads = torch.get_num_threads()
    try:
        for batch_size, count in ((1, 1), (2, 3), (5, 2)):
            torch.set_num_threads(count)
            x = torch.randn(batch_size, *shape)
            with torch.inference_mode():
                exact = network.double()(x.double())
                network.float()
                plain = reference.run_reference(optimized.compiled[0].fused, optimized.compiled[0].read_weight, x)
            allowed = tolerance * float(exact.abs().max())
            for found in (optimized(x), plain):
                assert found.shape == exact.shape
                assert float((found.double() - exact).abs().max()) <= allowed
            assert torch.equal(loaded(x), optimized(x))
    finally:
        torch.set_num_threads(threads)
    return optimized


def count_steps(optimized: Optimized, kind: type) -> int:
    """Return how many steps of an optimized network are of this kind."""
    return sum(isinstance(step, kind) for step in optimized.compiled[0].fused.steps)
