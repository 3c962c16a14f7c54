"""Layers that PyTorch lacks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError


class ScaledTanh(nn.Module):
    """1.7159 · tanh(2/3 · a), elementwise: it gives ±1 for ±1, where its curvature is largest.

    Source: LeCun et al. 1998, eq. 6 and appendix A.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same shape, values within ±1.7159."""
        return torch.tanh(inputs * (2 / 3)) * 1.7159


class Subsampling(nn.Module):
    """Sums over 2×2 neighbours, each map times its own coefficient plus its own bias, both trainable.

    (B, C, H, W) to (B, C, ⌊H/2⌋, ⌊W/2⌋).

    Source: LeCun et al. 1998, §II.B, layers S2 and S4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        # ±2.4 / fan-in, as all weights of that network (appendix A)
        nn.init.uniform_(self.coefficient, -2.4 / 4, 2.4 / 4)
        nn.init.uniform_(self.bias, -2.4 / 4, 2.4 / 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sub-sampled maps; the squashing function that follows in the paper is a layer of its own."""
        # Four times the mean is the sum to the last bit; PyTorch's ONNX exporter loses `divisor_override`.
        coefficient = 4 * self.coefficient[:, None, None]
        return F.avg_pool2d(inputs, kernel_size=2) * coefficient + self.bias[:, None, None]


class Conv2d(nn.Conv2d):
    """nn.Conv2d without first values: the network around it draws its paper's, once."""

    def reset_parameters(self) -> None:
        """Nothing."""


class Linear(nn.Linear):
    """nn.Linear without first values: the network around it draws its paper's, once."""

    def reset_parameters(self) -> None:
        """Nothing."""


class SumPool2d(nn.Module):
    """Sums over windows of `size` × `size` pixels, `stride` apart (None: side by side); nn.AvgPool2d times size².

    (B, C, H, W) to (B, C, ⌊(H − size) / stride⌋ + 1, ⌊(W − size) / stride⌋ + 1).
    """

    def __init__(self, size: int, stride: int | None = None) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sums."""
        return F.avg_pool2d(inputs, self.size, self.stride, divisor_override=1)


class ChannelPool(nn.Module):
    """The largest, the sum or the average of every `size` neighbouring channels, `stride` apart (None: side by side).

    (B, C, H, W) to (B, ⌊(C − size) / stride⌋ + 1, H, W). Behind a convolution, "max" makes it a maxout layer. The
    gradient of a maximum goes to that channel alone; of equal ones to the first, as in nn.MaxPool2d.

    Raises:
        UsageError: `kind` is none of the three, or, when it runs, C is smaller than `size`.

    Source: Goodfellow, Warde-Farley, Mirza, Courville & Bengio 2013, "Maxout networks", §3.
    """

    def __init__(self, kind: Literal["max", "sum", "average"], size: int, stride: int | None = None) -> None:
        super().__init__()
        pools: dict[str, Callable[..., torch.Tensor]] = {
            "max": F.max_pool2d,
            "sum": partial(F.avg_pool2d, divisor_override=1),
            "average": F.avg_pool2d,
        }
        if kind not in pools:
            raise UsageError(f"kind={kind} is no way to pool; use {', '.join(pools)}")
        self.kind, self.size, self.stride = kind, size, size if stride is None else stride
        self.pool = pools[kind]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The pooled channels."""
        batch, channels, height, width = inputs.shape
        if channels < self.size:
            raise UsageError(f"a pool of {self.size} channels has only {channels} to take from; make size smaller")
        # Channels × pixels is a picture for the pools in space, with a window of one pixel's width.
        pooled = self.pool(inputs.flatten(2)[:, None], (self.size, 1), (self.stride, 1))
        return pooled.reshape(batch, -1, height, width)


class LocalResponseNorm(nn.Module):
    """Each value over (k + α · the sum of the squares in `size` channels around it)^β; shape (B, C, H, W) is kept.

    At the first and the last channels the sum is over those that exist. `size` is odd. Here `alpha` multiplies the sum,
    as in the paper; in torch.nn.LocalResponseNorm and in Caffe it is `size` times as large, for it multiplies the mean.

    Raises:
        UsageError: `size` is even or below 1.

    Source: Krizhevsky, Sutskever & Hinton 2012, §3.3.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise UsageError(
                f"size={size} must be odd, so that as many channels lie before as behind; use {max(size, 0) + 1}"
            )
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The normalised maps."""
        outputs: torch.Tensor = _ResponseNorm.apply(inputs, self.size, self.alpha, self.beta, self.k)  # type: ignore[no-untyped-call]
        return outputs


class _ResponseNorm(torch.autograd.Function):
    """LocalResponseNorm with its gradient in closed form, b = a / d^β with d = k + α W(a²), W the window sum.

    ∂a = ∂b / d^β − 2 α β a · W(∂b · a / d^(β + 1)), since W is its own transpose. That needs a quarter to a half of the
    time that autograd takes with PyTorch's composed layer, whose steps each pass over maps larger than the caches;
    hence, too, the steps in place.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
        divisors = _divisors(inputs, size, alpha, k)
        ctx.save_for_backward(inputs, divisors)
        ctx.settings = size, alpha, beta, k
        return divisors.pow(-beta).mul_(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, divisors = ctx.saved_tensors
        size, alpha, beta, k = ctx.settings
        if torch.is_grad_enabled():
            # The gradient will be derived again, and then it matters that the divisors are made of the inputs.
            divisors = _divisors(inputs, size, alpha, k)
        direct = divisors.pow(-beta).mul_(gradients[0])
        through = _window_sums((direct * inputs).div_(divisors), size).mul_(inputs)
        return direct.sub(through, alpha=2 * alpha * beta), None, None, None, None


def _divisors(inputs: torch.Tensor, size: int, alpha: float, k: float) -> torch.Tensor:
    return _window_sums(inputs.square(), size).mul_(alpha).add_(k)


def _window_sums(values: torch.Tensor, size: int) -> torch.Tensor:
    """Sums over `size` neighbouring channels, with zeros beyond the ends."""
    channels, reach = values.shape[1], size // 2
    padded = F.pad(values, (0, 0, 0, 0, reach, reach))
    sums = padded[:, :channels].clone()
    for shift in range(1, size):
        sums += padded[:, shift : shift + channels]
    return sums
