"""Winograd's convolution in compiled kernels (`native/`): 3×3, stride 1, float32, on the CPU.

The same F(4×4, 3×3) as in `winograd`, channels-last, its steps fused so that they stay in a cache; the weight gradient
is F(3×3, 4×4). Results and gradients are channels-last, and so should be what is given: all else is copied first.

Measured against float64, 256 channels of 28×28 pixels, normal input and weights, the error relative to the root mean
square of the results is 8.1e-7, of the weight gradient 9.3e-7, and 1e-5 at most. A value that is not finite can make
all results of the tiles that read it, 4×4 each, not finite, where the definition leaves some of them finite.

This is the only file that knows the compiled module. Where it was not built, `why_not` says so.
"""

from functools import lru_cache

import torch  # before the kernels, so that they find the threads that PyTorch has started
from torch import Tensor

from svertka.errors import UsageError
from svertka.geometry import ConvShape

MISSING: str | None = None
try:
    import svertka.conv._kernels as _kernels  # `from svertka.conv` would not say whether it is missing or broken
except ModuleNotFoundError:
    MISSING = "the package was installed without a C++ compiler, hence without kernels"
except ImportError as error:
    MISSING = f"the compiled kernels cannot be loaded: {error}"


def why_not(shape: ConvShape | None = None, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the kernels cannot do it, as a phrase, or None: they can. Without a shape: whether there are any."""
    if MISSING:
        return MISSING
    if dtype != torch.float32:
        return f"the kernels compute float32, not {str(dtype).removeprefix('torch.')}"
    if shape is None:
        return None
    if shape.kernel != (3, 3) or shape.stride != (1, 1) or shape.dilation != (1, 1):
        return "the kernels are for 3×3 taps side by side, with stride 1"
    if shape.groups != 1:
        return "the kernels have no groups"
    return None


def instruction_sets() -> tuple[str, ...]:
    """Those that were built and that this processor has, the fastest first: "avx512", "avx2", "baseline"."""
    return () if MISSING else tuple(_kernels.instruction_sets())


def use(instructions: str) -> None:
    """From now on compute with this one of `instruction_sets()` in place of the first; what was packed is void."""
    _kernels.use(instructions)


def forward(x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The convolution of `x`, (N, C, H, W), with `weight`, (O, C, 3, 3): (N, O, H', W')."""
    return _forward(x, _last(weight), _kernels.Order.PLAIN, _sizes(shape), shape.output)


def input_gradient(gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The gradient with respect to the input, (N, C, H, W); `gradient`: that of the result, (N, O, H', W')."""
    return _forward(gradient, _last(weight), _kernels.Order.ADJOINT, _adjoint_sizes(shape), shape.input)


def weight_gradient(gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
    """The gradient with respect to the weights, (O, C, 3, 3); `gradient`: of the result; `x`: the input.

    The same numbers again with as many threads.
    """
    gradient, x, result = _last(gradient), _last(x), _empty(shape.weight)
    threads = torch.get_num_threads()
    _kernels.winograd_weight_gradient(_sizes(shape), gradient.data_ptr(), x.data_ptr(), result.data_ptr(), threads)
    return result


def pack(weight: Tensor) -> Tensor:
    """`weight`, (O, C, 3, 3), in the order that `finished` reads: as many numbers, O rounded up to full vectors."""
    out_channels, in_channels = weight.shape[:2]
    packed, weight = _empty((_kernels.winograd_packed_size(in_channels, out_channels), 1, 1, 1)), _last(weight)
    threads = torch.get_num_threads()
    _kernels.winograd_pack(weight.data_ptr(), in_channels, out_channels, packed.data_ptr(), threads)
    return packed


def finished(
    x: Tensor,
    packed: Tensor,
    shape: ConvShape,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """For inference: the convolution of `x` with the weights `packed`, plus `bias`, (O), plus `residual`, rectified.

    `residual`: of the result's shape, (N, O, H', W'). `relu`: whether negative results become zero, last of all.
    """
    return _forward(x, packed, _kernels.Order.PACKED, _sizes(shape), shape.output, bias, residual, relu)


def _forward(
    x: Tensor,
    weight: Tensor,
    order: "_kernels.Order",
    sizes: "_kernels.Convolution",
    shape: tuple[int, int, int, int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    x, output = _last(x), _empty(shape)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else _last(residual)
    _kernels.winograd_forward(
        sizes,
        x.data_ptr(),
        weight.data_ptr(),
        order,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        relu,
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output


def _last(tensor: Tensor) -> Tensor:
    """`tensor` in the order that the kernels read; an address of anything else would end the process."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        raise UsageError(
            f"the kernels compute float32 on the CPU; this tensor is {str(tensor.dtype).removeprefix('torch.')} on "
            f"{tensor.device}; use algorithm=auto"
        )
    return tensor.contiguous(memory_format=torch.channels_last)


def _empty(shape: tuple[int, int, int, int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


@lru_cache(4096)
def _sizes(shape: ConvShape) -> "_kernels.Convolution":
    channels = shape.in_channels, shape.out_channels
    return _kernels.Convolution(
        shape.batch, *channels, shape.height, shape.width, shape.out_height, shape.out_width, *shape.padding
    )


@lru_cache(4096)
def _adjoint_sizes(shape: ConvShape) -> "_kernels.Convolution":
    """Of the input gradient as a convolution: with 2 − padding, so that each tap goes back to where it read."""
    channels, (pad_y, pad_x) = (shape.out_channels, shape.in_channels), shape.padding
    return _kernels.Convolution(
        shape.batch, *channels, shape.out_height, shape.out_width, shape.height, shape.width, 2 - pad_y, 2 - pad_x
    )
