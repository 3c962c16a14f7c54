"""`svertka tune`."""

from typing import Annotated, Any

import typer

from svertka.cli.option_types import AsJson, Threads
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner
from svertka.errors import UsageError


def tune(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Network whose convolutions are timed; svertka models lists the names."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 16,
    size: Annotated[
        int | None, typer.Option(help="Height and width of the input, in pixels (default: as in the paper).")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Instead of NAME: input shape of a single convolution, such as 16,64,56,56.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="With --shape: weight shape, such as 64,64,3,3.")] = None,
    stride: Annotated[int, typer.Option(help="With --shape: stride.")] = 1,
    padding: Annotated[int, typer.Option(help="With --shape: zero padding, in pixels per side.")] = 0,
    dilation: Annotated[int, typer.Option(help="With --shape: dilation.")] = 1,
    groups: Annotated[int, typer.Option(help="With --shape: groups.")] = 1,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Time bfloat16 tensors instead of float32.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time the convolution algorithms on this machine and show which of them svertka chooses.

    Example: svertka tune resnet18
    """
    with show_import_spinner():
        from svertka.evaluation.algorithm_timing import describe_choice
        from svertka.evaluation.algorithm_timing import tune as time_algorithms

    found = time_algorithms(
        name,
        batch=batch,
        size=size,
        shape=None if shape is None else _sizes("shape", shape),
        weight=None if weight is None else _sizes("weight", weight),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bfloat16=bfloat16,
        threads=threads,
    )
    if as_json:
        print_json(found)
        return
    header: tuple[str, ...] = ("layer", "pass", "algorithm", "ms", "GFLOP/s", "error", "")
    print_table([header, *map(_row, found)], right=(3, 4, 5), shrink=(6, 0), drop=(5, 4), prose=(6,))
    print_line(describe_choice())


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
