"""`svertka locate`."""

import sys
from typing import Annotated

import typer

from svertka.cli.option_types import IncludeTraining, MaxPixels, Overwrite, pixel_count
from svertka.cli.printing import print_json, print_line, print_table
from svertka.escaping import printable


def locate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run folder, or a network with weights: resnet50:imagenet")
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="pictures, folders of them, or .npy arrays of uint8")
    ],
    boxes: Annotated[
        str | None, typer.Option(help="where things are: VOC .xml files in a folder, COCO .json or .csv; to judge by")
    ] = None,
    include_training: IncludeTraining = False,
    top: Annotated[int, typer.Option(min=1, help="classes for each picture")] = 1,
    output: Annotated[str | None, typer.Option(help="a folder for overlays and a page that shows them")] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say where in pictures their classes are; any classifier will do, one trained with --boxes does best.

    Example: svertka locate runs/photos-efficientnet_lite0 album/ --output found
    """
    from svertka.localization.locate import locate as search
    from svertka.localization.overlays import in_words

    located = search(
        run,
        *images,
        boxes=boxes,
        include_training=include_training,
        top=top,
        output=output,
        overwrite=overwrite,
        device=device,
        threads=threads,
        max_pixels=pixel_count(max_pixels),
    )
    for found in located.pictures:
        if found.error:
            print(f"svertka: {printable(found.path)}: {printable(found.error)}", file=sys.stderr)
    if as_json:
        print_json(located.as_json())
    else:
        rows = [
            (found.path, sight.name, f"{sight.score:.3f}", *(f"{edge:.0f}" for edge in sight.as_json()["box"]))
            for found in located.pictures
            for sight in found.classes
        ]
        if rows:
            print_table([("picture", "class", "score", "left", "top", "right", "bottom"), *rows], right="23456")
        if located.judgement:
            print_line(in_words(located.judgement))
        if located.page:
            print_line(f"open {located.page}")
    if any(found.error for found in located.pictures):
        raise typer.Exit(1)
