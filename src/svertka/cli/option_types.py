"""Arguments and options that several commands share, and parsers of their values."""

from typing import Annotated

import typer

from svertka.errors import UsageError

RUN_HELP = "A run folder, or a network with weights, such as resnet50:imagenet."
IMAGES_HELP = "Image files, folders of images, or .npy arrays of uint8."

# Headings under which --help groups options.
EVALUATION, DATA, COMPUTE, OUTPUT = "Evaluation", "Data", "Compute", "Output"

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
ImageArguments = Annotated[list[str], typer.Argument(metavar="IMAGE...", help=IMAGES_HELP)]

Crops = Annotated[
    str,
    typer.Option(
        help="Crops per image, as in the papers: 1 (center), 10 (AlexNet), 144 (GoogLeNet) or dense (VGG, ResNet).",
        rich_help_panel=EVALUATION,
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        help="Image sizes to crop from: lengths of the shorter side in pixels, such as 256,288 (default: the sizes "
        "in the paper).",
        rich_help_panel=EVALUATION,
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        help="Which images of SOURCE to use: train, val, test, or all (default: test, else val, else all). Images "
        "that the run was trained on are left out.",
        rich_help_panel=EVALUATION,
    ),
]
ShownPart = Annotated[
    str | None,
    typer.Option(
        help="Which images of SOURCE to use: train, val, test or all (default: all; without SOURCE: the test set)."
    ),
]
IncludeTraining = Annotated[
    bool,
    typer.Option("--include-training", help="Include images that the run was trained on.", rich_help_panel=EVALUATION),
]

Val = Annotated[
    float,
    typer.Option(
        help="Fraction of the training images to hold out for validation, if SOURCE has no validation set.",
        rich_help_panel=DATA,
    ),
]
Test = Annotated[
    float,
    typer.Option(
        help="Fraction of the images to hold out for testing, if SOURCE has no test set.", rich_help_panel=DATA
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="If SOURCE is a table: names of the columns with paths and labels, such as path=file,label=class; "
        "labels=tags for several labels an image, target=age for a number.",
        rich_help_panel=DATA,
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="FILE",
        help="If SOURCE is shards without an index, whose labels are numbers: a text file with one class name per "
        "line, in the order of the numbers.",
        rich_help_panel=DATA,
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Images stay in the same set (train, val or test) if REGEX finds the same text in their file names. "
        "Example: '(patient[0-9]+)'.",
        rich_help_panel=DATA,
    ),
]
MaxPixels = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Largest number of pixels of an image, such as 200M (default: 100M). Larger JPEGs are decoded at "
        "reduced size; other larger images are refused.",
        rich_help_panel=DATA,
    ),
]

Device = Annotated[str, typer.Option(help="Device: auto, cpu or cuda.", rich_help_panel=COMPUTE)]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: all cores).", rich_help_panel=COMPUTE)]

CacheLimit = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        help="Size limit of the image cache, and of the stored features, in GB each (default: 20, or a quarter of "
        "the free disk space if that is less).",
        rich_help_panel=COMPUTE,
    ),
]

TrustBuilder = Annotated[
    bool,
    typer.Option(
        "--trust-builder",
        help="Import the code that builds the network of RUN. Needed if the network is not from svertka, timm or "
        "torchvision.",
        rich_help_panel=COMPUTE,
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(
        help="With fp32, use the original network of RUN (default: on the CPU, use the optimized network if there is "
        "one).",
        rich_help_panel=COMPUTE,
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace existing files even if svertka did not write them.", rich_help_panel=OUTPUT
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]


def parse_pixel_count(text: str | None) -> int | None:
    """Parse the value of --max-pixels, such as "200000000", "200M" or "0.2G"; None gives None."""
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


def parse_whole_numbers(option: str, text: str | None) -> list[int] | None:
    """Parse whole numbers separated by commas, the value of `option`; None gives None."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text} is not a list of whole numbers; give pixels, such as 256,288") from None


def parse_share(text: str | float) -> float:
    """Parse a share, such as "0.5%" or "0.005"."""
    given = str(text).strip()
    try:
        return float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{given} is not a share; write 0.5% or 0.005") from None


Sets = Annotated[
    float | None,
    typer.Option(
        metavar="COVERAGE",
        parser=parse_share,
        help="Also list a set of classes for each image that contains the true one with this probability, such as 95%.",
    ),
]


def split_names(text: str | None) -> list[str] | None:
    """Return the names in `text`, which commas separate."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
