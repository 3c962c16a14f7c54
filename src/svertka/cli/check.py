"""`svertka check`."""

from typing import TYPE_CHECKING, Annotated

import typer

from svertka.cli.option_types import (
    COMPUTE,
    OUTPUT,
    AsJson,
    CacheLimit,
    ClassNames,
    Columns,
    Device,
    Group,
    MaxPixels,
    Overwrite,
    Test,
    Threads,
    Val,
    parse_pixel_count,
)
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner
from svertka.errors import UsageError

if TYPE_CHECKING:
    from svertka.curation.label_check import LabelError, LabelFindings

SHOWN = 10  # rows of a table
NO_LABEL = "no label"
LABELS = "Labels"  # heading of options in --help


def check(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Labeled images, in any form that svertka train accepts.")
    ],
    labels: Annotated[
        bool,
        typer.Option(
            "--labels",
            help="Also look for wrong labels or numbers, images that fit no class, and classes that are confused.",
            rich_help_panel=LABELS,
        ),
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Read only a sample of 1,000 images. Copies are searched for by name and size, near-duplicates are "
            "not.",
            rich_help_panel=COMPUTE,
        ),
    ] = False,
    val: Val = 0.1,
    test: Test = 0.0,
    columns: Columns = None,
    names: ClassNames = None,
    group: Group = None,
    max_pixels: MaxPixels = None,
    device: Device = "auto",
    threads: Threads = None,
    cache_limit: CacheLimit = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="HTML file for reviewing and correcting the labels of the images that --labels finds.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    apply: Annotated[
        str | None,
        typer.Option(
            metavar="CSV",
            help="File of corrections, saved from the page of --output. Without --write, its changes are shown but "
            "not made.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Make the changes of --apply. They can be undone.", rich_help_panel=LABELS),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Report what a dataset contains and what is wrong with it. Only --apply with --write changes the dataset.

    Example: svertka check photos/ --labels --output check.html
    """
    if write and apply is None:
        raise UsageError("--write makes the changes of a file of corrections; give --apply fixes.csv, too")
    if apply is not None:
        if labels or output is not None:
            raise UsageError("--apply does not check anything; leave out --labels and --output")
        _apply(source, apply, columns, write=write, as_json=as_json)
        return
    with show_import_spinner():
        from svertka.curation import dataset_check as checking
        from svertka.curation.dataset_findings import describe_findings

    findings = checking.check(
        source,
        val,
        test,
        columns=columns,
        names=names,
        group=group,
        max_pixels=parse_pixel_count(max_pixels),
        labels=labels,
        fast=fast,
        output=output,
        overwrite=overwrite,
        device=device,
        threads=threads,
        cache_limit=cache_limit,
    )
    if as_json:
        print_json(findings.to_dict())
        return
    for line in describe_findings(findings):
        print_line(line)
    if findings.labels is not None:
        _print_tables(findings.labels)


def _apply(source: str, file: str, columns: str | None, *, write: bool, as_json: bool) -> None:
    """Apply corrections and print what changes."""
    from svertka.curation.apply_corrections import apply_corrections

    applied = apply_corrections(source, file, write=write, columns=columns)
    if as_json:
        print_json(applied.to_dict())
        return
    if applied.moves:
        print_table([("from", "to"), *((one.path, one.destination) for one in applied.moves)], shrink=(0, 1))
    if applied.relabeled:
        print_table([("image", "label"), *applied.relabeled.items()], shrink=(0,))
    for sentence in applied.sentences():
        print_line(sentence)


def _print_tables(found: "LabelFindings") -> None:
    """Print the first label errors, outliers and ambiguous pairs."""
    _print_rows(
        ("label error", "label", "suggested", "doubt", "similar"),
        [
            (one.path, one.label or NO_LABEL, one.suggested or NO_LABEL, f"{one.score:.2f}", _similar(one))
            for one in found.errors
        ],
        shrink=(0, 1, 2),
    )
    _print_rows(
        ("outlier", "label", "distance"),
        [(one.path, one.label, f"{one.score:.1f} × usual") for one in found.outliers],
        shrink=(0, 1),
    )
    _print_rows(
        ("class", "confused with", "images", "share", "95 % interval"),
        [
            (*one.classes, f"{one.confused:,}", f"{one.share:.1%}", "{:.1%} to {:.1%}".format(*one.interval))
            for one in found.ambiguous
        ],
        shrink=(0, 1),
    )


def _similar(error: "LabelError") -> str:
    """Return how many of the most similar images have the suggested class, or why labels or a number are doubted."""
    return error.because or f"{error.agreeing} of {len(error.neighbors)}"


def _print_rows(header: tuple[str, ...], rows: list[tuple[str, ...]], *, shrink: tuple[int, ...]) -> None:
    """Print a table of the first rows, if there are any, and how many more there are."""
    if not rows:
        return
    print_line()
    print_table([header, *rows[:SHOWN]], right=range(len(shrink), len(header)), shrink=shrink)
    if len(rows) > SHOWN:
        print_line(f"and {len(rows) - SHOWN:,} more; --json or --output check.html lists them")
