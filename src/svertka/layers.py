"""Layers of the papers that PyTorch lacks: pooling, local response normalization, scaled tanh."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError


class ScaledTanh(nn.Module):
    """1.7159 · tanh(2/3 · x), elementwise: it maps ±1 to ±1, where its curvature is largest.

    Source: LeCun et al. 1998, eq. 6 and appendix A.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return values within ±1.7159, of the same shape."""
        return torch.tanh(x * (2 / 3)) * 1.7159


class Subsampling(nn.Module):
    """LeNet-5's subsampling: 2×2 sums times a trainable coefficient plus a trainable bias for each channel.

    (B, C, H, W) to (B, C, ⌊H/2⌋, ⌊W/2⌋). The activation function that follows in the paper is a layer of its own.

    Source: LeCun et al. 1998, §II.B, layers S2 and S4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        # ±2.4 / fan-in, as for all weights of LeNet-5 (appendix A)
        nn.init.uniform_(self.coefficient, -2.4 / 4, 2.4 / 4)
        nn.init.uniform_(self.bias, -2.4 / 4, 2.4 / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the subsampled feature maps."""
        # Four times the mean equals the sum bit for bit; PyTorch's ONNX exporter ignores `divisor_override`.
        coefficient = 4 * self.coefficient[:, None, None]
        return F.avg_pool2d(x, kernel_size=2) * coefficient + self.bias[:, None, None]


class Conv2d(nn.Conv2d):
    """nn.Conv2d with uninitialized parameters: the network that contains it initializes them as its paper does."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class Linear(nn.Linear):
    """nn.Linear with uninitialized parameters: the network that contains it initializes them as its paper does."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class SumPool2d(nn.Module):
    """Sum pooling: nn.AvgPool2d without padding, times `kernel_size`².

    (B, C, H, W) to (B, C, ⌊(H − kernel_size) / stride⌋ + 1, ⌊(W − kernel_size) / stride⌋ + 1).

    Args:
        kernel_size: Height and width of the window, pixels.
        stride: None: `kernel_size`.
    """

    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sums."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, divisor_override=1)


class ChannelPool(nn.Module):
    """Pooling across channels by maximum, sum or average; after a convolution, "max" makes a maxout layer.

    (B, C, H, W) to (B, ⌊(C − kernel_size) / stride⌋ + 1, H, W). Where several channels have the same maximum, the first
    gets the gradient, as in nn.MaxPool2d.

    Args:
        kind: "max", "sum" or "average".
        kernel_size: Number of adjacent channels in a window.
        stride: None: `kernel_size`.

    Raises:
        UsageError: `kind` is unknown; or, in the forward pass, C is less than `kernel_size`.

    Source: Goodfellow, Warde-Farley, Mirza, Courville & Bengio 2013, "Maxout networks", §3.
    """

    def __init__(self, kind: Literal["max", "sum", "average"], kernel_size: int, stride: int | None = None) -> None:
        super().__init__()
        pools: dict[str, Callable[..., torch.Tensor]] = {
            "max": F.max_pool2d,
            "sum": partial(F.avg_pool2d, divisor_override=1),
            "average": F.avg_pool2d,
        }
        if kind not in pools:
            raise UsageError(f"kind={kind} is not known; use {', '.join(pools)}")
        self.kind, self.kernel_size, self.stride = kind, kernel_size, kernel_size if stride is None else stride
        self.pool = pools[kind]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled channels."""
        batch, channels, height, width = x.shape
        if channels < self.kernel_size:
            raise UsageError(
                f"kernel_size={self.kernel_size} is larger than the {channels} channels of the input; make it smaller"
            )
        # As an image of channels × pixels, for 2-D pooling with a window one pixel wide.
        pooled = self.pool(x.flatten(2)[:, None], (self.kernel_size, 1), (self.stride, 1))
        return pooled.reshape(batch, -1, height, width)


class LocalResponseNorm(nn.Module):
    """AlexNet's local response normalization: x / (k + alpha · sum of x² over `size` adjacent channels)^beta.

    The shape (B, C, H, W) is kept. At the first and last channels the sum is over the channels that exist. As in the
    paper, `alpha` multiplies the sum; in torch.nn.LocalResponseNorm and Caffe it multiplies the mean, and has to be
    `size` times as large for the same result.

    Args:
        size: Number of channels in the sum; odd.

    Raises:
        UsageError: `size` is even or below 1.

    Source: Krizhevsky, Sutskever & Hinton 2012, §3.3.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise UsageError(f"size={size} must be odd, so that the window has a center; use {max(size, 0) + 1}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized feature maps."""
        outputs: torch.Tensor = _ResponseNorm.apply(x, self.size, self.alpha, self.beta, self.k)  # type: ignore[no-untyped-call]
        return outputs


class _ResponseNorm(torch.autograd.Function):
    """LocalResponseNorm with its gradient in closed form: b = a / d^β with d = k + α W(a²), where W sums over windows.

    ∂a = ∂b / d^β − 2 α β a · W(∂b · a / d^(β + 1)), since W is its own transpose. This takes a quarter to a half of the
    time of autograd on PyTorch's composed layer, each step of which reads feature maps larger than the caches. The
    operations are in place for the same reason.
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
            # For a second derivative, the divisors have to depend on the inputs.
            divisors = _divisors(inputs, size, alpha, k)
        direct = divisors.pow(-beta).mul_(gradients[0])
        through = _window_sums((direct * inputs).div_(divisors), size).mul_(inputs)
        return direct.sub(through, alpha=2 * alpha * beta), None, None, None, None


def _divisors(inputs: torch.Tensor, size: int, alpha: float, k: float) -> torch.Tensor:
    return _window_sums(inputs.square(), size).mul_(alpha).add_(k)


def _window_sums(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return sums over `size` adjacent channels, with zeros beyond the first and last."""
    channels, reach = values.shape[1], size // 2
    padded = F.pad(values, (0, 0, 0, 0, reach, reach))
    sums = padded[:, :channels].clone()
    for shift in range(1, size):
        sums += padded[:, shift : shift + channels]
    return sums
