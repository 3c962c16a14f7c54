"""`svertka evaluate`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    OUTPUT,
    RUN_HELP,
    AsJson,
    CacheLimit,
    ClassNames,
    Columns,
    Crops,
    Device,
    IncludeTraining,
    MaxPixels,
    Overwrite,
    Part,
    Precision,
    Scales,
    Threads,
    TrustBuilder,
    parse_pixel_count,
    parse_whole_numbers,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def evaluate(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help=f"{RUN_HELP} Several runs are evaluated as an ensemble, which averages their probabilities.",
        ),
    ],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Labeled images, in any form that svertka train accepts.")
    ],
    crops: Crops = "1",
    scales: Scales = None,
    part: Part = None,
    include_training: IncludeTraining = False,
    output: Annotated[str | None, typer.Option(help="HTML file for the report.", rich_help_panel=OUTPUT)] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    columns: Columns = None,
    names: ClassNames = None,
    trust_builder: TrustBuilder = False,
    precision: Precision = None,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Measure the error of a run, or of an ensemble of runs, on labeled images.

    Example: svertka evaluate runs/photos-resnet18 runs/photos-vgg16 photos/ --crops 10
    """
    with show_import_spinner():
        from svertka.evaluation.evaluate import evaluate as evaluate_runs
        from svertka.evaluation.metrics import Evaluation

    result = evaluate_runs(
        run,
        source,
        crops=crops,
        scales=parse_whole_numbers("--scales", scales),
        part=part,
        include_training=include_training,
        output=output,
        overwrite=overwrite,
        columns=columns,
        names=names,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
        precision=precision,
    )
    if as_json:
        print_json(result.to_dict())
        return
    scope = () if result.scope is None else (result.scope.sentence,)
    for sentence in (result.sentence, *scope, *result.warnings):
        print_line(sentence)
    if not isinstance(result, Evaluation):
        print_table(result.table(), right=tuple(range(1, len(result.table()[0]))), shrink=(0,))
        return
    shown = [("class", "images", "recall", "precision")]
    for one in result.per_class:
        if not one.images:  # a folder may contain a few of ImageNet's thousand classes
            continue
        recall, precision = (f"{v:.1%}" if v is not None else "–" for v in (one.recall, one.precision))
        shown.append((one.name, f"{one.images:,}", recall, precision))
    print_table(shown, right=(1, 2, 3), shrink=(0,))
