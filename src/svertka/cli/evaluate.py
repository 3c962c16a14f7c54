"""`svertka evaluate`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    Columns,
    Crops,
    IncludeTraining,
    MaxPixels,
    Overwrite,
    Part,
    Scales,
    pixel_count,
    whole_numbers,
)
from svertka.cli.printing import print_json, print_line, print_table


def evaluate(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="a run folder, or a network with weights: resnet50:imagenet; of several, the mean"
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="labelled pictures, as for svertka train")],
    crops: Crops = "1",
    scales: Scales = None,
    part: Part = None,
    include_training: IncludeTraining = False,
    output: Annotated[str | None, typer.Option(help="an HTML file to write a report into")] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    columns: Columns = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say how often the network of a run, or the mean of several, is right on labelled pictures.

    Example: svertka evaluate runs/photos-resnet18 runs/photos-vgg16 photos/ --crops 10
    """
    from svertka.evaluation.evaluate import evaluate as judge

    result = judge(
        run,
        source,
        crops=crops,
        scales=whole_numbers("--scales", scales),
        part=part,
        include_training=include_training,
        output=output,
        overwrite=overwrite,
        columns=columns,
        device=device,
        threads=threads,
        max_pixels=pixel_count(max_pixels),
    )
    if as_json:
        print_json(result.as_json())
        return
    judged = () if result.scope is None else (result.scope.sentence,)
    for sentence in (result.sentence, *judged, *result.warnings):
        print_line(sentence)
    shown = [("class", "images", "recall", "precision")]
    for one in result.per_class:
        if not one.images:  # of ImageNet's thousand classes a folder may hold a few
            continue
        recall, precision = (f"{v:.1%}" if v is not None else "–" for v in (one.recall, one.precision))
        shown.append((one.name, f"{one.images:,}", recall, precision))
    print_table(shown, right="123")
