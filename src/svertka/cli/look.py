"""`svertka look`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    OUTPUT,
    AsJson,
    CacheLimit,
    Device,
    MaxPixels,
    RunArgument,
    ShownPart,
    Threads,
    TrustBuilder,
    parse_pixel_count,
    split_names,
)
from svertka.cli.printing import print_json, print_line, show_import_spinner


def look(
    run: RunArgument,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]", help="Images, in any form that svertka train accepts (default: the test set of RUN)."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names of layers, separated by commas (default: the last of each stage).")
    ] = None,
    units: Annotated[int | None, typer.Option(help="Number of units per layer (default: 12).")] = None,
    images: Annotated[int | None, typer.Option(help="Number of images, drawn at random (default: all).")] = None,
    all: Annotated[  # noqa: A002 - the name of the option
        bool,
        typer.Option("--all", help="Show every unit of every convolution. Large networks take hours."),
    ] = False,
    part: ShownPart = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder for the atlas (default: RUN/atlas, or RUN/atlas-all; without a run folder: atlas-NAME).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Build an atlas of a network: pages that show what each unit responds to in your images.

    By default, it shows 12 units of the last layer of each stage, in about a minute.

    Example: svertka look runs/digits-lenet5
    """
    with show_import_spinner():
        from svertka.inspection.atlas.build import look as make

    atlas = make(
        run,
        source,
        layers=split_names(layers),
        units=units,
        images=images,
        all=all,
        part=part,
        output=output,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(atlas.to_dict())
        return
    print_line(atlas.sentence)
    if atlas.left_out is not None:
        print_line(atlas.left_out)
    print_line(f"open {atlas.page}")
