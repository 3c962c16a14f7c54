"""`svertka tune`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from svertka.cli.printing import print_json, print_table
from svertka.errors import UsageError

if TYPE_CHECKING:
    from svertka.conv_geometry import ConvShape


def tune(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="a network; see: svertka models")] = None,
    batch: Annotated[int, typer.Option(help="pictures at once")] = 16,
    size: Annotated[int | None, typer.Option(help="side of the pictures, pixels; unset: the paper's")] = None,
    shape: Annotated[str | None, typer.Option(help="of one convolution's input, instead of NAME: 16,64,56,56")] = None,
    weight: Annotated[str | None, typer.Option(help="shape of its weights: 64,64,3,3")] = None,
    stride: Annotated[int, typer.Option(help="of that convolution")] = 1,
    padding: Annotated[int, typer.Option(help="of that convolution, zeros on each side")] = 0,
    dilation: Annotated[int, typer.Option(help="of that convolution")] = 1,
    groups: Annotated[int, typer.Option(help="of that convolution")] = 1,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="of bfloat16 tensors, in place of float32")] = False,
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Time every algorithm for the convolutions of a network here, and say which is taken and why.

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
