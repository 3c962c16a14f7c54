"""`svertka shard`."""

from typing import Annotated

import typer

from svertka.cli.option_types import OUTPUT, AsJson, Columns, Group, MaxPixels, Test, Threads, Val, parse_pixel_count
from svertka.cli.printing import print_json, print_line, show_import_spinner
from svertka.escaping import to_printable


def shard(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Labeled images, in any form that svertka train accepts.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="DIR|URL",
            help="Folder or URL of the shards, such as shards/ or s3://bucket/path. Credentials come from the "
            "environment.",
            rich_help_panel=OUTPUT,
        ),
    ],
    shard_size: Annotated[float, typer.Option(help="Size of a shard, MB (10⁶ bytes).", rich_help_panel=OUTPUT)] = 256.0,
    val: Val = 0.1,
    test: Test = 0.0,
    columns: Columns = None,
    group: Group = None,
    max_pixels: MaxPixels = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write labeled images to shards: tar files in the WebDataset format, with an index.

    svertka train, evaluate, predict and check read them without unpacking, also from an object store. A command that
    was interrupted continues when it is run again.

    Example: svertka shard photos/ --to s3://bucket/photos
    """
    with show_import_spinner():
        from svertka.data.shard import shard as write

    written = write(
        source,
        to,
        val=val,
        test=test,
        shard_size=shard_size,
        columns=columns,
        group=group,
        max_pixels=parse_pixel_count(max_pixels),
        threads=threads,
    )
    if as_json:
        print_json(written.to_dict())
        return
    for sentence in written.sentences():
        print_line(to_printable(sentence))
