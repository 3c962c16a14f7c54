"""`svertka predict`."""

import csv
import sys
from typing import Annotated

import typer

from svertka.cli.output import print_json, print_table


def predict(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run folder, or a network with weights: resnet50:imagenet")
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="pictures, folders of them, or .npy arrays of uint8")
    ],
    top: Annotated[int, typer.Option(min=1, help="names for each picture")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="print rows of path, rank, name, probability")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Name what is in pictures.

    Example: svertka predict runs/photos-resnet20 holiday.jpg album/
    """
    from svertka.classifier import predict as name_pictures

    predictions = name_pictures(run, *images, top=top, device=device, threads=threads)
    for one in predictions:
        if "error" in one:
            print(f"svertka: {one['path']}: {one['error']}", file=sys.stderr)
    if as_json:
        print_json(predictions)
    elif as_csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(("path", "rank", "name", "probability"))
        for one in predictions:
            for rank, label in enumerate(one["labels"], start=1):
                table.writerow((one["path"], rank, label["name"], f"{label['probability']:.6f}"))
    else:
        print_table(
            [
                (one["path"], *(f"{label['name']} {label['probability']:.1%}" for label in one["labels"]))
                for one in predictions
                if one["labels"]
            ]
        )
    if any("error" in one for one in predictions):
        raise typer.Exit(1)
