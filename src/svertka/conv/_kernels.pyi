"""The compiled module: tensors that are dense in the order that the kernels read, sizes, threads. See native/.

Of each tensor it is checked that it is float32, or bfloat16 where that is possible, lies on the CPU and holds as many
numbers as the sizes need; of sizes that they make sense.

Raises:
    TypeError: a tensor of another dtype, on another device, or missing.
    ValueError: a tensor holds too few numbers, or a size makes no sense.
"""

from enum import Enum

from torch import Tensor

class Precision(Enum):
    """Of weights and products: float32; weights bfloat16, which become float32; both bfloat16. Sums are float32."""

    FLOAT32 = 0
    WIDENED = 1
    BFLOAT16 = 2

class Order(Enum):
    """Of weights: (O, 3, 3, C); the same for the input gradient; as `winograd_pack` wrote them."""

    PLAIN = 0
    ADJOINT = 1
    PACKED = 2

class Convolution:
    """Sizes of a 3×3 convolution with stride 1; pads are the zeros before the first row and column.

    Steps are numbers from one pixel to the next: the channels, or more where others lie beside these.
    """

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
    in_step: int
    out_step: int

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
def multiplies_bfloat16() -> bool: ...
def poison_scratch(on: bool) -> None: ...
def winograd_packed_size(in_channels: int, out_channels: int) -> int: ...
def winograd_pack(weights: Tensor, in_channels: int, out_channels: int, packed: Tensor, threads: int) -> None: ...
def winograd_forward(
    shape: Convolution,
    input: Tensor,  # noqa: A002 - the kernels' own name
    weights: Tensor,
    order: Order,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    precision: Precision,
    output: Tensor,
    threads: int,
) -> None: ...
def winograd_weight_gradient(
    shape: Convolution,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    precision: Precision,
    result: Tensor,
    threads: int,
) -> None: ...
def fft_forward(
    shape: Correlation,
    input: Tensor,  # noqa: A002 - the kernels' own name
    weights: Tensor,
    adjoint: bool,
    output: Tensor,
    threads: int,
) -> None: ...
def fft_weight_gradient(
    shape: Correlation,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    result: Tensor,
    threads: int,
) -> None: ...

class Pooling(Enum):
    """Of the pixels in a window: largest, mean, mean with the padding's zeros."""

    MAXIMUM = 0
    MEAN = 1
    PADDED_MEAN = 2

class Sliding:
    """One axis of a window that moves over pictures."""

    def __init__(self, size: int, out_size: int, taps: int, stride: int, pad: int, dilation: int) -> None: ...

class Window:
    """Sizes of a convolution or a pooling with any window."""

    def __init__(
        self, batch: int, in_channels: int, out_channels: int, y: Sliding, x: Sliding, in_step: int, out_step: int
    ) -> None: ...

class Place:
    """So many numbers behind the beginning of one of the memories that a run is given; memory −1: nowhere."""

    def __init__(self, memory: int, offset: int) -> None: ...

class Ending:
    """What is done to each result: plus bias, plus residual, then between two bounds."""

    def __init__(self, bias: Tensor | None, residual: Place, residual_step: int, low: float, high: float) -> None: ...

def computes_groups(in_channels: int, out_channels: int) -> bool: ...  # of each group
def panel() -> int: ...

class Program:
    """Steps one after the other, with the kernels in use when it was made.

    It knows how much of each memory its steps read and write, and runs only in memories that have it.
    """

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add_winograd(
        self,
        shape: Convolution,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        precision: Precision,
        ending: Ending,
        output: Place,
    ) -> None: ...
    def add_direct(
        self,
        shape: Window,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        precision: Precision,
        ending: Ending,
        output: Place,
    ) -> None: ...
    def add_grouped(
        self,
        shape: Window,
        groups: int,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        ending: Ending,
        output: Place,
    ) -> None: ...
    def add_pool(
        self,
        shape: Window,
        pooling: Pooling,
        input: Place,  # noqa: A002 - the kernels' own name
        output: Place,
    ) -> None: ...
    def add_sum(
        self,
        pixels: int,
        channels: int,
        input: Place,  # noqa: A002 - the kernels' own name
        in_step: int,
        ending: Ending,
        output: Place,
        out_step: int,
    ) -> None: ...
    def add_parts(self, pictures: int, parts: list[Program], room: int, maps: list[tuple[Place, int]]) -> None: ...
    def run(self, memories: list[Tensor | None], first: int, last: int, threads: int) -> None: ...
