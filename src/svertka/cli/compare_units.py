"""`svertka compare-units`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    OUTPUT,
    AsJson,
    CacheLimit,
    Device,
    MaxPixels,
    Overwrite,
    ShownPart,
    Threads,
    TrustBuilder,
    parse_pixel_count,
    split_names,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def compare_units(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a network with weights.")],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="Another one, such as RUN after fine-tuning.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]", help="Images, in any form that svertka train accepts (default: the test set of RUN)."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names of layers, separated by commas (default: every convolution).")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Number of images, drawn at random (default: all).")] = None,
    part: ShownPart = None,
    output: Annotated[
        str | None, typer.Option(help="HTML page that shows the units (default: none).", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Find out which units of OTHER the network of RUN shares, and which are new.

    Example: svertka compare-units runs/before runs/after photos/ --output units.html
    """
    with show_import_spinner():
        from svertka.inspection.unit_comparison import HEADER, NUMBERS
        from svertka.inspection.unit_comparison import compare_units as match_units

    found = match_units(
        first,
        second,
        source,
        layers=split_names(layers),
        images=images,
        part=part,
        output=output,
        overwrite=overwrite,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(found.to_dict())
        return
    print_table([HEADER, *found.rows], right=NUMBERS, shrink=(1, 0))
    print_line()
    print_line(found.sentence)
    if found.warning is not None:
        print_line(found.warning)
    if found.page is not None:
        print_line(f"open {found.page}")
