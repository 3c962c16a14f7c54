"""What verbs take from the command line."""

from typing import Annotated

import typer

from svertka.errors import UsageError

MOST_GIGABYTES = 1_000_000

# Options of all verbs that judge.
Crops = Annotated[
    str,
    typer.Option(help="1 (the centre), 10 (AlexNet's) or 144 (GoogLeNet's) crops a picture, or dense (VGG's): all"),
]
Scales = Annotated[
    str | None, typer.Option(help="lengths of the shorter side, pixels, such as 256,288; unset: the paper's")
]
Part = Annotated[
    str | None,
    typer.Option(
        help="train, val, test, or all but what trained the run; unset: test, else val, else all; and new ones"
    ),
]
IncludeTraining = Annotated[
    bool, typer.Option("--include-training", help="judge by images that the run was trained on, too")
]


# Of all verbs that take a SOURCE.
Columns = Annotated[
    str | None,
    typer.Option(help="of a SOURCE that is a table: path=COLUMN,label=COLUMN, where they are called otherwise"),
]

Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX", help="keep images together whose file names it matches alike, such as '(patient[0-9]+)'"
    ),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="write over what is at --output, even if svertka did not make it")
]

MaxPixels = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="largest picture that is read, such as 200M (default: 100M); JPEGs are read reduced beyond",
    ),
]


def pixel_count(text: str | None) -> int | None:
    """The number of "200000000", "200M" or "0.2G", given as --max-pixels; None for None."""
    if text is None:
        return None
    units = {"k": 1e3, "m": 1e6, "g": 1e9}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1.0)
    try:
        count = float(number) * unit
    except ValueError:
        count = 0.0
    if not 1 <= count <= 1e12:
        raise UsageError(f"--max-pixels {text} is not a number of pixels; write 200000000 or 200M")
    return round(count)


def whole_numbers(option: str, text: str | None) -> list[int] | None:
    """The numbers of "256,288", given as `option`; None for None."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text} is not a list of whole numbers; give pixels, such as 256,288") from None


def gigabytes(option: str, number: float | None) -> int | None:
    """Bytes of `number` gigabytes, given as `option`; None for None."""
    if number is None:
        return None
    if not 0 <= number <= MOST_GIGABYTES:
        raise UsageError(f"{option} {number:g} is not a size; give gigabytes, from 0 to {MOST_GIGABYTES:,}")
    return round(number * 1e9)
