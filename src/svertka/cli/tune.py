"""`svertka tune`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from svertka.cli.option_types import AsJson, Threads
from svertka.cli.printing import print_json, print_table
from svertka.errors import UsageError

if TYPE_CHECKING:
    from svertka.conv_geometry import ConvShape


def tune(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Network; svertka models lists them.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 16,
    size: Annotated[
        int | None, typer.Option(help="Height and width of the input, pixels (default: the paper's).")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Input shape of a single convolution, instead of NAME, such as 16,64,56,56.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Weight shape of that convolution, such as 64,64,3,3.")] = None,
    stride: Annotated[int, typer.Option(help="Stride of that convolution.")] = 1,
    padding: Annotated[int, typer.Option(help="Zero padding of that convolution, pixels per side.")] = 0,
    dilation: Annotated[int, typer.Option(help="Dilation of that convolution.")] = 1,
    groups: Annotated[int, typer.Option(help="Groups of that convolution.")] = 1,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Time bfloat16 tensors instead of float32.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time every convolution algorithm on this machine and report which one is chosen, and why.

    Example: svertka tune resnet18
    """
    if (name is None) == (shape is None) or (shape is None) != (weight is None):
        raise UsageError("name a network, or give --shape and --weight of one convolution; see svertka tune --help")
    import torch

    from svertka.conv import autotune
    from svertka.conv_geometry import ConvShape
    from svertka.device import set_threads

    set_threads(threads)
    if shape is not None and weight is not None:
        one = ConvShape.of(_sizes("shape", shape), _sizes("weight", weight), stride, padding, dilation, groups)
        layers = {"convolution": one}
    else:
        layers = _layers_of(str(name), batch, size)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    found = [trial for layer in layers.items() for trial in autotune.explained(*layer, dtype)]
    if as_json:
        print_json(found)
        return
    header: tuple[str, ...] = ("layer", "pass", "algorithm", "ms", "GFLOP/s", "error", "")
    print_table([header, *map(_row, found)], right="345")


def _layers_of(name: str, batch: int, size: int | None) -> "dict[str, ConvShape]":
    import torch

    from svertka.graph.conv_shapes import convolutions
    from svertka.models.registry import find_model

    model = find_model(name)
    side = size or model.size
    with torch.device("meta"):
        network = model.build(size=side)
    return convolutions(network, (batch, model.channels, side, side))


def _sizes(option: str, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(number) for number in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 4:
        raise UsageError(f"--{option} {text} is not four whole numbers; write --{option} 16,64,56,56")
    return sizes


def _row(trial: dict[str, Any]) -> tuple[str, ...]:
    name = trial["layer"], trial["pass"], trial["algorithm"]
    if trial["seconds"] is None:
        return *name, "", "", "", trial["why_not"]
    speed = f"{trial['seconds'] * 1e3:.2f}", f"{trial['gflops']:.0f}", f"{trial['error']:.0e}"
    return *name, *speed, "taken" if trial["taken"] else ""
