"""`svertka locate`."""

import sys
from typing import Annotated

import typer

from svertka.cli.option_types import (
    EVALUATION,
    OUTPUT,
    AsJson,
    Device,
    ImageArguments,
    IncludeTraining,
    MaxPixels,
    Overwrite,
    Precision,
    RunArgument,
    Threads,
    TrustBuilder,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner
from svertka.escaping import to_printable


def locate(
    run: RunArgument,
    images: ImageArguments,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="True bounding boxes, to measure the accuracy: a folder of VOC .xml files, a COCO .json or a .csv.",
            rich_help_panel=EVALUATION,
        ),
    ] = None,
    include_training: IncludeTraining = False,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list per image.")] = 1,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder for images with heat maps and boxes, and a page that shows them.", rich_help_panel=OUTPUT
        ),
    ] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    precision: Precision = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Locate classes in images. Any classifier works; a run trained with --boxes works best.

    Example: svertka locate runs/photos-efficientnet_lite0 album/ --output found
    """
    with show_import_spinner():
        from svertka.localization.locate import locate as search
        from svertka.localization.overlays import describe_pointing_result

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
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
        precision=precision,
    )
    for image in located.images:
        if image.error:
            print(f"svertka: {to_printable(image.path)}: {to_printable(image.error)}", file=sys.stderr)
    if as_json:
        print_json(located.to_dict())
    else:
        rows = [
            (image.path, one.name, f"{one.score:.3f}", *(f"{edge:.0f}" for edge in one.to_dict()["box"]))
            for image in located.images
            for one in image.classes
        ]
        if rows:
            print_table(
                [("image", "class", "score", "left", "top", "right", "bottom"), *rows], right=range(2, 7), shrink=(0, 1)
            )
        if located.judgement:
            print_line(describe_pointing_result(located.judgement))
        if located.page:
            print_line(f"open {located.page}")
    if any(image.error for image in located.images):
        raise typer.Exit(1)
