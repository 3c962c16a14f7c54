"""The compiled module: addresses of float32 numbers (0: none), sizes, threads; nothing is checked. See native/."""

from enum import Enum

class Order(Enum):
    """Of weights: (O, 3, 3, C); the same for the input gradient; as `winograd_pack` wrote them."""

    PLAIN = 0
    ADJOINT = 1
    PACKED = 2

class Convolution:
    """Sizes of a 3×3 convolution with stride 1; pads are the zeros before the first row and column."""

    def __init__(
        self,
        batch: int,
        in_channels: int,
        out_channels: int,
        height: int,
        width: int,
        out_height: int,
        out_width: int,
        pad_y: int,
        pad_x: int,
    ) -> None: ...

class Axis:
    """One axis of a correlation: sizes of input and output, and how taps, inputs and outputs lie."""

    def __init__(
        self, size: int, out_size: int, taps: int, pad: int, dilation: int, spacing: int, stride: int
    ) -> None: ...

class Correlation:
    """Sizes of a correlation with any kernel."""

    def __init__(self, batch: int, in_channels: int, out_channels: int, y: Axis, x: Axis) -> None: ...

FFT_LONGEST: int  # pixels that the taps may span

def instruction_sets() -> list[str]: ...
def use(name: str) -> None: ...
def used() -> str: ...
def winograd_packed_size(in_channels: int, out_channels: int) -> int: ...
def winograd_pack(weights: int, in_channels: int, out_channels: int, packed: int, threads: int) -> None: ...
def winograd_forward(
    shape: Convolution,
    input: int,  # noqa: A002 - the kernels' own name
    weights: int,
    order: Order,
    bias: int,
    residual: int,
    relu: bool,
    output: int,
    threads: int,
) -> None: ...
def winograd_weight_gradient(
    shape: Convolution,
    gradient: int,
    input: int,  # noqa: A002 - the kernels' own name
    result: int,
    threads: int,
) -> None: ...
def fft_forward(
    shape: Correlation,
    input: int,  # noqa: A002 - the kernels' own name
    weights: int,
    adjoint: bool,
    output: int,
    threads: int,
) -> None: ...
def fft_weight_gradient(
    shape: Correlation,
    gradient: int,
    input: int,  # noqa: A002 - the kernels' own name
    result: int,
    threads: int,
) -> None: ...
