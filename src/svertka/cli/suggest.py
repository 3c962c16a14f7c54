"""`svertka suggest`."""

import csv
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svertka.cli.option_types import (
    OUTPUT,
    AsJson,
    CacheLimit,
    Device,
    MaxPixels,
    RunArgument,
    Threads,
    TrustBuilder,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner
from svertka.escaping import escape_csv_cell, escape_csv_path, to_printable

if TYPE_CHECKING:
    from svertka.curation.suggest import Suggestions


def suggest(
    run: RunArgument,
    unlabeled: Annotated[
        str, typer.Argument(metavar="UNLABELED", help="Folder of images; those at any depth are used.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of images to suggest.")] = 50,
    sort_into: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy the suggested images into FOLDER/CLASS by their most likely class, for review. Of several "
            "labels or a number: into FOLDER, with a table of the predictions.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV with the columns path, score, class, probability, second, second_probability and reason.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Suggest which unlabeled images to label next: those that the run is unsure of and that differ.

    Example: svertka suggest runs/photos unlabeled/ --count 20 --sort-into review/
    """
    with show_import_spinner():
        from svertka.curation.suggest import suggest as suggest_images

    found = suggest_images(
        run,
        unlabeled,
        count=count,
        sort_into=sort_into,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
        max_pixels=parse_pixel_count(max_pixels),
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(found.to_dict())
        return
    if as_csv:
        _print_csv(found)
        for sentence in found.sentences():
            print(f"svertka: {to_printable(sentence)}", file=sys.stderr)
        return
    rows: list[tuple[str, ...]] = [("image", "score", "uncertain")]
    rows += [(one.path, f"{one.score:.2g}", one.uncertainty) for one in found.suggestions]
    print_table(rows, right=(1,), shrink=(0, 2))
    print_line()
    for sentence in found.sentences():
        print_line(sentence)
    if sort_into is not None:
        to_do = "the folders, and train on them too" if found.table is None else f"{found.table}, and train on it too"
        print_line(f"copied into {sort_into}; correct {to_do}")


def _print_csv(found: "Suggestions") -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    is_number = any(one.number is not None for one in found.suggestions)
    columns = ("number",) if is_number else ("class", "probability", "second", "second_probability")
    table.writerow(("path", "score", *columns, "reason"))
    for one in found.suggestions:
        classes = [cell for name, share in one.classes for cell in (escape_csv_cell(name), f"{share:.6f}")]
        if one.number is not None:
            classes = [f"{one.number:.9g}"]
        table.writerow((escape_csv_path(one.path), f"{one.score:.6f}", *classes, escape_csv_cell(one.reason)))
