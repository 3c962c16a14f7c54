"""`svertka compare`."""

from typing import TYPE_CHECKING, Annotated

import typer

from svertka.cli.option_types import (
    OUTPUT,
    AsJson,
    CacheLimit,
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

if TYPE_CHECKING:
    from svertka.evaluation.comparison import ComparedRun
    from svertka.evaluation.task_metrics import AnyEvaluation


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN... [SOURCE]",
            help="Run folders, or networks with weights, such as resnet50:imagenet. The last argument may be "
            "a SOURCE of labeled images (default: the SOURCE that all the runs were trained on).",
        ),
    ],
    crops: Crops = "1",
    scales: Scales = None,
    part: Part = None,
    include_training: IncludeTraining = False,
    output: Annotated[str | None, typer.Option(help="HTML file for the comparison.", rich_help_panel=OUTPUT)] = None,
    overwrite: Overwrite = False,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    precision: Precision = None,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Compare the errors of runs on the same images, with the significance of the differences, and their speed.

    Runs of several labels are compared by their mean average precision, those of a number by their mean absolute error.
    With a single RUN, its original network is compared with the network that svertka optimize made.

    Example: svertka compare runs/photos-resnet18 runs/photos-vgg16 --output comparison.html
    """
    with show_import_spinner():
        from svertka.evaluation.compare import compare as side_by_side
        from svertka.evaluation.compare import separate_runs_and_source

    chosen, source = separate_runs_and_source(runs)
    result = side_by_side(
        chosen,
        source,
        crops=crops,
        scales=parse_whole_numbers("--scales", scales),
        part=part,
        include_training=include_training,
        output=output,
        overwrite=overwrite,
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
    print_line(result.sentence)
    print_line(result.joint.scope.sentence)
    metrics = [name for name, _ in result.ensemble.metric_cells()]
    costs = ("parameters", "multiply-adds", "ms an image", "images/s")
    rows: list[tuple[str, ...]] = [("run", *metrics, "more than A", "p", *costs)]
    rows += [(_name(one), *_errors(one.evaluation), *_rest(one)) for one in result.runs]
    if not result.is_of_one_run:
        rows.append(("   ensemble", *_errors(result.ensemble), *("",) * 6))
    print_table(rows, right=range(1, 10), shrink=(0,), drop=(7, 6, 8, 9, 3, 2, 5))


def _name(one: "ComparedRun") -> str:
    """Return the letter and name of a run, and whether its optimized network was used."""
    return f"{one.letter}  {one.run}{one.suffix}"


def _errors(evaluation: "AnyEvaluation") -> tuple[str, ...]:
    return tuple(value for _, value in evaluation.metric_cells())


def _rest(one: "ComparedRun") -> tuple[str, ...]:
    """Format the difference from the first run, the size and the speed."""
    costs = f"{one.parameters:,}", f"{one.multiply_adds:,}"
    speed = f"{1000 * one.speed.seconds:.2f}", f"{one.speed.per_second:,.0f}"
    if one.difference is None:
        return "", "", *costs, *speed
    return one.difference.text, one.difference.p_text, *costs, *speed
