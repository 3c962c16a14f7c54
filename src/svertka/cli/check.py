"""`svertka check`."""

from typing import Annotated

import typer

from svertka.cli.option_types import AsJson, Columns, Group, MaxPixels, Test, Val, parse_pixel_count
from svertka.cli.printing import print_json, print_line, show_import_spinner


def check(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Labeled images, as for svertka train.")],
    val: Val = 0.1,
    test: Test = 0.0,
    columns: Columns = None,
    group: Group = None,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Report what a dataset contains and what is wrong with it. Nothing is changed.

    Example: svertka check photos/
    """
    with show_import_spinner():
        from svertka.curation import dataset_check as checking

    findings = checking.check(source, val, test, columns=columns, group=group, max_pixels=parse_pixel_count(max_pixels))
    if as_json:
        print_json(findings.to_dict())
    else:
        for line in checking.describe_findings(findings):
            print_line(line)
