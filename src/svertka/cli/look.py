"""`svertka look`."""

from typing import Annotated

import typer

from svertka.cli.option_types import IncludeTraining, MaxPixels, pixel_count
from svertka.cli.printing import print_json, print_line


def look(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run folder, or a network with weights: resnet50:imagenet")
    ],
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="pictures, as for svertka train; unset: those that RUN was tested on"),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="their names, with commas; unset: every convolution")] = None,
    units: Annotated[int | None, typer.Option(help="of each layer, the first; unset: all")] = None,
    pictures: Annotated[int | None, typer.Option(help="as many, drawn at random; unset: all")] = None,
    include_training: IncludeTraining = False,
    output: Annotated[str | None, typer.Option(help="the folder; unset: RUN/atlas, or atlas-NAME")] = None,
    max_pixels: MaxPixels = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Make an atlas of a network: a page that shows what each of its units looks for in your pictures.

    Example: svertka look runs/digits-lenet5
    """
    from svertka.inspection.atlas.build import look as make

    names = None if layers is None else [name.strip() for name in layers.split(",") if name.strip()]
    atlas = make(
        run,
        source,
        layers=names,
        units=units,
        pictures=pictures,
        include_training=include_training,
        output=output,
        device=device,
        threads=threads,
        max_pixels=pixel_count(max_pixels),
    )
    if as_json:
        print_json(atlas.as_json())
        return
    dead = f", {atlas.dead:,} dead" if atlas.dead else ""
    print(
        f"{atlas.layers} layers, {atlas.units:,} units{dead}, {atlas.pictures:,} pictures; {atlas.bytes / 1e6:.1f} MB"
    )
    print_line(f"open {atlas.page}")
