"""`svertka similar`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    AsJson,
    CacheLimit,
    Columns,
    Device,
    MaxPixels,
    RunArgument,
    Threads,
    TrustBuilder,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def similar(
    run: RunArgument,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Image file.")],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Images to search: as for svertka train, or without labels.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of images to list.")] = 12,
    columns: Columns = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """List the images of SOURCE that resemble IMAGE most, by the features of the network.

    Example: svertka similar runs/photos holiday.jpg photos/
    """
    with show_import_spinner():
        from svertka.curation.similar import similar as find_similar

    found = find_similar(
        run,
        image,
        source,
        count=count,
        columns=columns,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(found.to_dict())
        return
    rows = [("image", "label", "similarity")]
    rows += [(one.path, one.label or "–", f"{one.similarity:.3f}") for one in found.images]
    print_table(rows, right=(2,), shrink=(0, 1))
    print_line()
    for sentence in found.sentences():
        print_line(sentence)
