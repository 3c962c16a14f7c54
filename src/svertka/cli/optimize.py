"""`svertka optimize`."""

from typing import Annotated

import typer

from svertka.cli.option_types import (
    AsJson,
    CacheLimit,
    MaxPixels,
    Threads,
    TrustBuilder,
    parse_pixel_count,
    parse_share,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def optimize(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="Images that RUN was trained on; needed only if they have moved."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto (the fastest mixture of precisions within --max-loss), int8, bf16 or fp32.")
    ] = "auto",
    max_loss: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            parser=parse_share,
            help="With --precision auto: how much the top-1 accuracy, or the mAP of several labels, may drop on the "
            "validation images, such as 0.5% or 0.005; of a number, the share by which its mean absolute error may "
            "rise.",
        ),
    ] = 0.005,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Optimize the network of a run for this CPU.

    Afterwards, predict, evaluate, compare and serve use the optimized network.

    Example: svertka optimize runs/photos-resnet18 --max-loss 1%
    """
    with show_import_spinner():
        from svertka.evaluation.optimize_run import optimize_run

    made = optimize_run(
        run,
        source,
        precision=precision,
        max_loss=max_loss,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(made.to_dict())
        return
    rows = [("layer", "weights", "kernel", "precision")]
    rows += [(one.name, "×".join(map(str, one.shape)), one.kernel, one.precision) for one in made.network.layers]
    print_table(rows, shrink=(0,), drop=(1, 2))
    print_line(made.sentence)
    print_line(f"{made.path}, {made.path.stat().st_size / 1e6:.1f} MB")
