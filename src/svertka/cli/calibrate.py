"""`svertka calibrate`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    AsJson,
    CacheLimit,
    Device,
    MaxPixels,
    Threads,
    TrustBuilder,
    parse_pixel_count,
    parse_share,
)
from svertka.cli.printing import print_json, print_line, show_import_spinner


def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="The images that RUN was trained on (default: where they were)."),
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images of none of the classes, to choose the threshold."),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            parser=parse_share,
            help="Share of the validation images that are not called unknown, such as 95% or 0.95.",
        ),
    ] = 0.95,
    new: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Labeled images that RUN has not seen, for predict --sets, or for thresholds."
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Set the score above which an image is unknown, and calibrate prediction sets, as svertka train does at its end.

    For a run that predicts several labels, it chooses the threshold of each label again.

    Example: svertka calibrate runs/photos-resnet18 --unknown other-photos/
    """
    with show_import_spinner():
        from svertka.training.calibrate_run import calibrate as calibrate_run

    made = calibrate_run(
        run,
        source,
        unknown=unknown,
        keep=keep,
        new=new,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(made.to_dict())
        return
    for sentence in made.sentences:
        print_line(sentence)
