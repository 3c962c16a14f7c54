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
