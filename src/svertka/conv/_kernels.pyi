"""The compiled module; see native/. Tensors must be dense, in the order that the kernels read.

Every function checks that its sizes are consistent and that each tensor is on the CPU, float32 (or another dtype where
supported) and as large as the sizes require.

Raises:
    TypeError: a tensor of another dtype, on another device, or missing.
    ValueError: a tensor is too small, or a size is out of range.
"""

from enum import Enum

from torch import Tensor

class Precision(Enum):
    """Dtype of weights and products: float32; bfloat16 weights, upcast; both bfloat16. Sums are float32."""

    FLOAT32 = 0
    UPCAST = 1
    BFLOAT16 = 2

class Order(Enum):
    """Order of weights: (O, 3, 3, C); the same for the input gradient; as written by `winograd_pack`."""

    PLAIN = 0
    ADJOINT = 1
    PACKED = 2

class Convolution:
    """Sizes of a 3×3 convolution with stride 1; pads are the zeros before the first row and column.

    Steps are values from one pixel to the next: the channels, or more where maps are concatenated. `tile`: outputs of a
    tile along an axis, 4, or 6 in a forward pass with maps and products of float32.
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
    tile: int

class Axis:
    """One axis of a correlation: sizes of input and output, padding and distances of taps, inputs and outputs."""

    def __init__(
        self, size: int, out_size: int, taps: int, pad: int, dilation: int, spacing: int, stride: int
    ) -> None: ...

class Correlation:
    """Sizes of a correlation with any kernel size."""

    def __init__(self, batch: int, in_channels: int, out_channels: int, y: Axis, x: Axis) -> None: ...

FFT_MAX_LENGTH: int  # the largest span of the taps, in pixels

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
    """Pooling of a window: maximum, mean, or mean including padding."""

    MAXIMUM = 0
    MEAN = 1
    PADDED_MEAN = 2

class WindowAxis:
    """One axis of a sliding window."""

    def __init__(self, size: int, out_size: int, taps: int, stride: int, pad: int, dilation: int) -> None: ...

class Window:
    """Sizes of a convolution or pooling with any window."""

    def __init__(
        self, batch: int, in_channels: int, out_channels: int, y: WindowAxis, x: WindowAxis, in_step: int, out_step: int
    ) -> None: ...

def normalize_bytes(
    batch: int,
    height: int,
    width: int,
    image_step: int,
    row_step: int,
    input: Tensor,  # noqa: A002 - the kernels' own name
    mean: Tensor,
    scale: Tensor,
    channels_last: bool,
    output: Tensor,
) -> None: ...
def direct_pack(
    out_channels: int, taps: int, in_channels: int, weights: Tensor, adjoint: bool, packed: Tensor
) -> None: ...
def direct_forward(
    shape: Window,
    input: Tensor,  # noqa: A002 - the kernels' own name
    packed: Tensor,
    bias: Tensor | None,
    output: Tensor,
    threads: int,
) -> None: ...
def direct_weight_gradient(
    shape: Window,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    result: Tensor,
    threads: int,
) -> None: ...

class BatchNorm:
    """Sizes of a batch normalization, and the activation function or the limits of its results."""

    def __init__(
        self, pixels: int, channels: int, epsilon: float, activation: Activation, low: float, high: float
    ) -> None: ...

def batch_norm(
    shape: BatchNorm,
    input: Tensor,  # noqa: A002 - the kernels' own name
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    output: Tensor,
    mean: Tensor,
    variance: Tensor,
    threads: int,
) -> None: ...
def batch_norm_gradients(
    shape: BatchNorm,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    output: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    input_gradient: Tensor,
    residual_gradient: Tensor | None,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    threads: int,
) -> None: ...
def max_pool_forward(
    shape: Window,
    input: Tensor,  # noqa: A002 - the kernels' own name
    output: Tensor,
    places: Tensor,
    threads: int,
) -> None: ...
def max_pool_input_gradient(shape: Window, gradient: Tensor, places: Tensor, result: Tensor, threads: int) -> None: ...
def max_pool_convolution_gradient(
    pool: Window,
    convolution: Window,
    gradient: Tensor,
    places: Tensor,
    rectify: bool,
    weights: Tensor,
    result: Tensor,
    threads: int,
) -> None: ...

class LinearShape:
    def __init__(self, rows: int, inputs: int, outputs: int) -> None: ...

def linear_forward(
    shape: LinearShape,
    input: Tensor,  # noqa: A002 - the kernels' own name
    weights: Tensor,
    bias: Tensor | None,
    result: Tensor,
    threads: int,
) -> None: ...
def linear_input_gradient(
    shape: LinearShape, gradient: Tensor, weights: Tensor, result: Tensor, threads: int
) -> None: ...
def linear_weight_gradient(
    shape: LinearShape,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    result: Tensor,
    threads: int,
) -> None: ...
def grouped_weight_gradient(
    shape: Window,
    groups: int,
    gradient: Tensor,
    input: Tensor,  # noqa: A002 - the kernels' own name
    result: Tensor,
    threads: int,
) -> None: ...
def depthwise_input_gradient(
    shape: Window, gradient: Tensor, weights: Tensor, result: Tensor, threads: int
) -> None: ...
def grouped_forward(
    shape: Window,
    groups: int,
    input: Tensor,  # noqa: A002 - the kernels' own name
    weights: Tensor,
    bias: Tensor | None,
    output: Tensor,
    threads: int,
) -> None: ...

class Storage(Enum):
    """How the numbers of a map are stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    BYTE = 2

class NarrowMaps:
    """Whether the input, and the output with the residual, consist of bfloat16 instead of floats."""

    def __init__(self, input: bool, output: bool) -> None: ...  # noqa: A002 - the kernels' own name

class Place:
    """An offset into one of the memories given to `Program.run`, in numbers of the map; −1 is none."""

    def __init__(self, memory: int, offset: int) -> None: ...

class Activation(Enum):
    """Activation function of an epilogue; slope is that of ELU and LEAKY_RELU below 0."""

    NONE = 0
    SIGMOID = 1
    SILU = 2
    HARD_SIGMOID = 3
    HARD_SWISH = 4
    GELU = 5
    GELU_TANH = 6
    TANH = 7
    MISH = 8
    ELU = 9
    LEAKY_RELU = 10

class Combination(Enum):
    """Operation on one number, the first four, or on two."""

    FIRST = 0
    SQUARE_ROOT = 1
    RECIPROCAL_SQUARE_ROOT = 2
    EXPONENTIAL = 3
    ADD = 4
    SUBTRACT = 5
    MULTIPLY = 6
    DIVIDE = 7
    MAXIMUM = 8
    MINIMUM = 9
    PRELU = 10

class Epilogue:
    """The operations fused after a product: bias, residual, activation function, clamp to [low, high].

    The residual is added, or with `multiply` multiplied, before the activation function, or with `residual_last` after.
    """

    def __init__(
        self,
        bias: Tensor | None,
        residual: Place,
        residual_step: int,
        low: float,
        high: float,
        activation: Activation = ...,
        slope: float = ...,
        multiply: bool = ...,
        residual_last: bool = ...,
    ) -> None: ...

class Strided:
    """Sizes of five axes, the innermost last, and the strides of two operands and the result along them."""

    def __init__(self, sizes: list[int], input: list[int], other: list[int], output: list[int]) -> None: ...  # noqa: A002

class Normalization:
    """Sizes of a normalization: one mean and variance for each group of the channels of `pixels` pixels."""

    def __init__(
        self, batch: int, pixels: int, channels: int, groups: int, in_step: int, out_step: int, epsilon: float
    ) -> None: ...

class MatrixProduct:
    """Sizes of matrix products; strides are those of three axes of matrices, then of the two of a matrix."""

    def __init__(
        self,
        batch: list[int],
        rows: int,
        depth: int,
        columns: int,
        left: list[int],
        right: list[int],
        output: list[int],
        scale: float,
    ) -> None: ...

class Softmax:
    """Sizes and strides of a softmax, along the innermost of five axes or the one before it."""

    def __init__(
        self,
        sizes: list[int],
        input: list[int],  # noqa: A002 - the kernels' own name
        other: list[int],
        output: list[int],
        innermost: bool,
        scale: float,
    ) -> None: ...

class Statistic(Enum):
    """What a reduction computes."""

    SUM = 0
    MEAN = 1
    NORM = 2
    MAXIMUM = 3
    MINIMUM = 4
    VARIANCE = 5

class Reduction:
    """Sizes and strides of a reduction: of three axes that are kept, two that are reduced, and the innermost."""

    def __init__(
        self,
        sizes: list[int],
        input: list[int],  # noqa: A002 - the kernels' own name
        output: list[int],
        reduces_innermost: bool,
        divisor: float,
    ) -> None: ...

class InterpolationAxis:
    """One axis of an interpolation: output i is the sum of `taps` inputs at `indices`, times `weights`."""

    def __init__(self, size: int, out_size: int, taps: int, indices: list[int], weights: list[float]) -> None: ...

def panel_width() -> int: ...
def int8_panel_width() -> int: ...
def int8_channel_width() -> int: ...
def int8_numbers_per_factor() -> int: ...
def int8_winograd_inputs() -> int: ...
def int8_winograd_is_faster(shape: Window) -> bool: ...

INT8_WINOGRAD_MATRICES: tuple[list[list[int]], list[list[int]]]  # for 6 pixels, and for 3 taps

class Int8Kernel(Enum):
    """A kernel of convolutions of 8-bit maps."""

    DIRECT = 0
    WINOGRAD = 1
    DEPTHWISE = 2

class Requantization:
    """What becomes of the integer sum of a result, in 8 bits or as a float; pairs are a scale and a shift.

    stored(activation(scale · sum + shift + real(residual))), clamped to `bounds` of the number that is stored.
    """

    def __init__(
        self,
        start: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Place,
        residual_step: int,
        real: tuple[float, float],
        activation: Activation,
        slope: float,
        multiply: bool,
        residual_last: bool,
        stored: tuple[float, float],
        bounds: tuple[float, float],
        to_float: bool,
    ) -> None: ...

class ByteOperation:
    """An elementwise operation on real numbers, and how its result is stored."""

    def __init__(
        self,
        combination: Combination,
        activation: Activation,
        slope: float,
        stored: tuple[float, float],
        bounds: tuple[float, float],
        storage: Storage,
    ) -> None: ...

class Program:
    """A sequence of steps, with the instruction set that was selected when it was created.

    It checks that the memories of a run are as large as its steps require.
    """

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add_winograd(
        self,
        shape: Convolution,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        precision: Precision,
        epilogue: Epilogue,
        output: Place,
        narrow: NarrowMaps = ...,
    ) -> None: ...
    def add_direct(
        self,
        shape: Window,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        precision: Precision,
        epilogue: Epilogue,
        output: Place,
        gate: Place = ...,
        gate_step: int = ...,
        narrow: NarrowMaps = ...,
    ) -> None: ...
    def add_grouped(
        self,
        shape: Window,
        groups: int,
        input: Place,  # noqa: A002 - the kernels' own name
        weights: Tensor,
        epilogue: Epilogue,
        output: Place,
        narrow: bool = ...,
    ) -> None: ...
    def add_pool(
        self,
        shape: Window,
        pooling: Pooling,
        input: Place,  # noqa: A002 - the kernels' own name
        output: Place,
        narrow: bool = ...,
    ) -> None: ...
    def add_elementwise(
        self,
        shape: Strided,
        combination: Combination,
        input: Place | Tensor,  # noqa: A002 - the kernels' own name
        other: Place | Tensor | None,
        epilogue: Epilogue,
        output: Place,
    ) -> None: ...
    def add_normalize(
        self,
        shape: Normalization,
        input: Place,  # noqa: A002 - the kernels' own name
        weight: Tensor | None,
        bias: Tensor | None,
        epilogue: Epilogue,
        output: Place,
    ) -> None: ...
    def add_int8_convolution(
        self,
        shape: Window,
        kernel: Int8Kernel,
        input: Place,  # noqa: A002 - the kernels' own name
        zero: int,
        weights: Tensor,
        after: Requantization,
        output: Place,
    ) -> None: ...
    def add_int8_pool(
        self,
        shape: Window,
        pooling: Pooling,
        zero: int,
        mean: tuple[float, float],
        input: Place,  # noqa: A002 - the kernels' own name
        output: Place,
    ) -> None: ...
    def add_int8_elementwise(
        self,
        shape: Strided,
        operation: ByteOperation,
        input: Place | Tensor | None,  # noqa: A002 - the kernels' own name
        storage: Storage,
        real: tuple[float, float],
        other: Place | Tensor | None,
        other_storage: Storage,
        other_real: tuple[float, float],
        output: Place,
    ) -> None: ...
    def add_matrix_product(self, shape: MatrixProduct, left: Place, right: Place, output: Place) -> None: ...
    def add_softmax(
        self,
        shape: Softmax,
        input: Place,  # noqa: A002 - the kernels' own name
        other: Place | Tensor | None,
        output: Place,
    ) -> None: ...
    def add_reduction(
        self,
        shape: Reduction,
        statistic: Statistic,
        input: Place,  # noqa: A002 - the kernels' own name
        epilogue: Epilogue,
        output: Place,
    ) -> None: ...
    def add_interpolation(
        self,
        batch: int,
        channels: int,
        y: InterpolationAxis,
        x: InterpolationAxis,
        input: Place,  # noqa: A002 - the kernels' own name
        in_step: int,
        epilogue: Epilogue,
        output: Place,
        out_step: int,
    ) -> None: ...
    def add_parts(self, images: int, parts: list[Program], room: int, maps: list[tuple[Place, int]]) -> None: ...
    def run(self, memories: list[Tensor | None], first: int, last: int, threads: int) -> None: ...
