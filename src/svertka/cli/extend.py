"""`svertka extend`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    DATA,
    OUTPUT,
    AsJson,
    CacheLimit,
    Columns,
    Device,
    MaxPixels,
    Threads,
    TrustBuilder,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, show_import_spinner


def extend(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder; it is not changed.")],
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Labeled images of the new classes, as for svertka train."),
    ],
    original: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The images that RUN was trained on, if they have moved (default: where they were).",
            rich_help_panel=DATA,
        ),
    ] = None,
    columns: Columns = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    output: Annotated[
        str | None,
        typer.Option(help="Folder of the new run (default: RUN-extended).", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add classes to a run: its head is fitted again in seconds, and the result is a new run.

    Example: svertka extend runs/photos new-classes/
    """
    with show_import_spinner():
        from svertka.training.extend import extend as extend_run

    made = extend_run(
        run,
        source,
        original=original,
        output=output,
        columns=columns,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(made.to_dict())
        return
    for sentence in made.sentences():
        if sentence not in made.notes:  # which the training has said
            print_line(sentence)
    print_line(f"the run is in {made.run.folder}")
