"""Timings of the convolution algorithms, for one convolution or for every convolution of a network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from svertka.conv import autotune
from svertka.conv_shape import ConvShape
from svertka.device import set_threads, with_preserved_settings
from svertka.errors import UsageError
from svertka.graph.summary import Trace, trace
from svertka.models.external import open_model
from svertka.progress import progress, say
from svertka.type_checking import check_types


@check_types
@with_preserved_settings
def tune(
    name: str | nn.Module | None = None,
    *,
    batch: int = 16,
    size: int | None = None,
    shape: Sequence[int] | None = None,
    weight: Sequence[int] | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bfloat16: bool = False,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Time every convolution algorithm on this machine and return the timings.

    Args:
        name: Name of a network, as `svertka models` lists them, also "timm:NAME" or "torchvision:NAME"; an nn.Module;
            or None: the convolution of `shape` and `weight`.
        batch: Batch size for the network, at least 1.
        size: Height and width of the network's input, in pixels. None: the paper's.
        shape: Input shape of a single convolution, (B, C, H, W).
        weight: Its weight shape, (O, C / groups, KH, KW).
        stride: Its stride, pixels, at least 1.
        padding: Its zero padding, pixels per side.
        dilation: Its dilation, pixels, at least 1.
        groups: Its number of groups, at least 1.
        bfloat16: Time bfloat16 tensors instead of float32.
        threads: CPU threads, at least 1. None: all cores.

    Returns:
        One dict per layer, pass and algorithm: `layer`, `pass`, `algorithm`, `seconds`, `gflops` (10⁹ FLOP/s), `error`
        (largest relative to float64) and `taken`; or `why_not`, if the algorithm cannot compute that convolution.

    Raises:
        UsageError: Neither a network nor a convolution is given, or both are, or the sizes are impossible.
    """
    if (name is None) == (shape is None) or (shape is None) != (weight is None):
        raise UsageError("name a network, or give --shape and --weight of one convolution; see svertka tune --help")
    set_threads(threads)
    if shape is not None and weight is not None:
        one = ConvShape.of(tuple(shape), tuple(weight), stride, padding, dilation, groups)
        layers = {"convolution": one}
    else:
        assert name is not None
        model = open_model(name, sizes=() if size is None else (size,))
        side = size or model.size
        with torch.device("meta"):
            network = model.build(size=side)
        traced = trace(network, (batch, model.channels, side, side))
        layers = traced.convolutions
        _say_what_is_left_out(traced)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    trials: list[dict[str, Any]] = []
    with progress("timing", len(layers), "convolutions") as shown:
        for layer in layers.items():
            trials += autotune.time_algorithms_for_all_passes(*layer, dtype)
            shown.advance()
    return trials


def describe_choice() -> str:
    """Return a sentence on which algorithm is taken, with the thresholds."""
    milliseconds = {name: 1000 * overhead for name, overhead in autotune.CALL_OVERHEAD.items()}
    return (
        f"Taken is the fastest algorithm if, with {milliseconds['forward']:g} ms for the call in the forward pass and "
        f"{milliseconds['input_gradient']:g} ms in the others, it needs less than {autotune.REQUIRED_RATIO:.0%} of the "
        "time of PyTorch's own, aten; otherwise aten."
    )


def _say_what_is_left_out(traced: Trace) -> None:
    """Name the convolutions for which there is only PyTorch's algorithm, such as transposed ones."""
    left_out = [
        f"{layer.name} ({layer.kind})"
        for layer in traced.layers
        if layer.multiply_adds and "conv" in layer.kind.lower() and layer.conv_arguments is None
    ]
    if left_out:
        say(f"not timed, since svertka has no algorithm for them: {', '.join(left_out)}")
