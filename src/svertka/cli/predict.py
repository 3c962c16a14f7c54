"""`svertka predict`."""

import csv
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Annotated, Any

import typer

from svertka.cli.option_types import (
    OUTPUT,
    AsJson,
    Device,
    ImageArguments,
    MaxPixels,
    Precision,
    RunArgument,
    Sets,
    Threads,
    TrustBuilder,
    parse_pixel_count,
)
from svertka.cli.printing import print_table, show_import_spinner, to_json
from svertka.escaping import escape_csv_cell, escape_csv_path, to_printable

Batch = list[dict[str, Any]]
Write = Callable[[Batch], None]

CLASS_COLUMNS = (
    *("path", "rank", "name", "probability", "error"),
    *("unknown", "unknown_score", "unknown_threshold", "in_set"),
)


def predict(
    run: RunArgument,
    images: ImageArguments,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list per image.")] = 5,
    sets: Sets = None,
    max_pixels: MaxPixels = None,
    trust_builder: TrustBuilder = False,
    precision: Precision = None,
    device: Device = "auto",
    threads: Threads = None,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV with the columns path, rank, name, probability, error, unknown, unknown_score, "
            "unknown_threshold and in_set; for a number: path, name, value and error.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict the class of images, their labels, or a number. Results are printed as soon as they are computed.

    Example: svertka predict runs/photos-resnet20 holiday.jpg album/
    """
    with show_import_spinner():
        from svertka.classifier import iter_predictions

    count, failed, limit = 0, 0, parse_pixel_count(max_pixels)
    form = _json_form if as_json else _csv_form if as_csv else _table_form
    with form() as write:
        for batch in iter_predictions(
            run,
            *images,
            top=top,
            device=device,
            threads=threads,
            max_pixels=limit,
            trust_builder=trust_builder,
            precision=precision,
            sets=sets,
        ):
            write(batch)
            sys.stdout.flush()
            for one in batch:
                count += 1
                failed += "error" in one
                if "error" in one and form is not _table_form:  # which shows the error among the other rows
                    print(f"svertka: {to_printable(one['path'])}: {to_printable(one['error'])}", file=sys.stderr)
    if failed:
        if count > 1:  # the one row of a single image says it
            print(f"svertka: {failed:,} of {count:,} images could not be read", file=sys.stderr)
        raise typer.Exit(1)


@contextmanager
def _json_form() -> Iterator[Write]:
    """Write one JSON list, complete even if the command is interrupted."""
    written = 0

    def write(batch: Batch) -> None:
        nonlocal written
        for one in batch:
            print("[" if not written else ",")
            print(textwrap.indent(to_json(one), "  "), end="")
            written += 1

    try:
        yield write
    finally:
        if written:
            print("\n]")


@contextmanager
def _csv_form() -> Iterator[Write]:
    """Write one CSV row per class, predicted label or number, or one row for an image without any."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    is_begun = False

    def write(batch: Batch) -> None:
        nonlocal is_begun
        is_number = any("number" in one for one in batch)
        if not is_begun:
            table.writerow(("path", "name", "value", "error") if is_number else CLASS_COLUMNS)
            is_begun = True
        for one in batch:
            path = escape_csv_path(one["path"])
            error = escape_csv_cell(one.get("error", ""))
            if is_number:
                number = one.get("number", {"name": "", "value": ""})
                table.writerow((path, escape_csv_cell(number["name"]), number["value"], error))
                continue
            labels = [label for label in one["labels"] if label.get("predicted", True)]
            if not labels:  # it cannot be read, or no label is predicted
                table.writerow((path, "", "", "", error, "", "", "", ""))
            unknown = _csv_unknown(one)
            for rank, label in enumerate(labels, start=1):
                in_set = "" if "set" not in one else str(label["name"] in one["set"]).lower()
                probability = f"{label['probability']:.6f}"
                table.writerow((path, rank, escape_csv_cell(label["name"]), probability, "", *unknown, in_set))

    yield write


def _csv_unknown(one: dict[str, Any]) -> tuple[str, str, str]:
    """Return whether an image is unknown, its score and the threshold; empty cells without a calibration."""
    if "unknown" not in one:
        return "", "", ""
    return str(one["unknown"]).lower(), f"{one['unknown_score']:.6g}", f"{one['unknown_threshold']:.6g}"


@contextmanager
def _table_form() -> Iterator[Write]:
    """Write one row per image: the most probable class first, the predicted labels, or the number.

    Columns widen as later batches need.
    """
    from svertka.classifier import describe_prediction

    widths: list[int] = []
    is_set_empty = False

    def write(batch: Batch) -> None:
        nonlocal widths, is_set_empty
        is_set_empty |= any(one.get("set") == [] for one in batch)
        for failed, some in groupby(batch, key=lambda one: "error" in one):
            if failed:
                for one in some:
                    print_table([(one["path"], f"cannot be read: {one['error']}")], shrink=(0, 1), prose=(1,))
                continue
            described = [(one["path"], describe_prediction(one), one) for one in some]
            is_ranked = not any(
                "number" in one or any("predicted" in label for label in one["labels"]) for _, _, one in described
            )
            rows = [
                (path, *_table_answers(one), *(lines if is_ranked else [", ".join(lines)]))
                for path, lines, one in described
            ]
            labels = range(1, len(rows[0]))
            widths = print_table(rows, shrink=(0, *reversed(labels)), drop=labels[:0:-1], widths=widths)

    yield write
    if is_set_empty:
        print("svertka: {} is an empty set: no class is probable enough for the coverage", file=sys.stderr)


def _table_answers(one: dict[str, Any]) -> list[str]:
    """Return the cells between the path and the classes: whether the image is unknown, and its prediction set."""
    cells = []
    if "unknown" in one:
        above = f"score {one['unknown_score']:.3g} > {one['unknown_threshold']:.3g}"
        cells.append(f"unknown ({above})" if one["unknown"] else "")
    if "set" in one:
        cells.append(f"{{{', '.join(one['set'])}}}")
    return cells
