"""`svertka evaluate`."""

from typing import Annotated

import typer

from svertka.cli.output import print_json, print_table


def evaluate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run folder, or a network with weights: resnet50:imagenet")
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="labelled pictures, as for svertka train")],
    part: Annotated[
        str | None, typer.Option(help="train, val, test or all; unset: test where there is one, then val, then all")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say how often the network of a run is right on labelled pictures.

    Example: svertka evaluate runs/digits-lenet5 digits
    """
    from svertka.evaluation.scoring import evaluate as judge

    result = judge(run, source, part=part, device=device, threads=threads)
    if as_json:
        print_json(result.as_json())
        return
    top5 = "" if result.top5_error is None else f", top-5 error {result.top5_error:.2%}"
    print(f"{result.images:,} images: top-1 error {result.top1_error:.2%}{top5}, loss {result.loss:.4f}")
    shown = [("class", "images", "error", "precision")]
    for one in result.per_class:
        if not one.images:  # of ImageNet's thousand classes a folder may hold a few
            continue
        error, precision = (f"{v:.1%}" if v is not None else "–" for v in (one.error, one.precision))
        shown.append((one.name, f"{one.images:,}", error, precision))
    print_table(shown, right="123")
