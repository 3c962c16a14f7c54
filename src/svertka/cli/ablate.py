"""`svertka ablate`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
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
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def ablate(
    run: RunArgument,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]", help="Images, in any form that svertka train accepts (default: the test set of RUN)."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names of convolutions, separated by commas (default: all).")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Number of images, drawn at random (default: all).")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of effects to list, largest first.")] = 20,
    part: ShownPart = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Measure how the accuracy on each class changes if a unit is removed.

    Example: svertka ablate runs/digits-lenet5
    """
    with show_import_spinner():
        from svertka.inspection.run_ablation import HEADER
        from svertka.inspection.run_ablation import ablate as remove_units

    found = remove_units(
        run,
        source,
        layers=split_names(layers),
        images=images,
        count=count,
        part=part,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(found.to_dict())
        return
    if found.effects:
        print_table([HEADER, *(effect.row for effect in found.effects)], right=(1, 4, 5, 6), shrink=(2, 0))
        print_line()
    for sentence in found.sentences():
        print_line(sentence)
