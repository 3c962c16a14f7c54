"""export(): a network as an ONNX file, or as a folder to publish."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from svertka.classifier import Classifier
from svertka.data.dataset import Pixels
from svertka.data.image_io import DecodingOptions
from svertka.data.prediction_inputs import expand_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.data.rgb_conversion import Range
from svertka.data.source_opener import open_source
from svertka.errors import DataError, FetchError, ImageError, RunError, UsageError
from svertka.escaping import format_command
from svertka.exporters.hub_folder import CARD_FILE, FRONT_MATTER, write_hub_folder
from svertka.files import format_bytes, parse_path, write_atomic
from svertka.output_paths import check_output_file, check_output_folder
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import format_count
from svertka.progress import show_spinner
from svertka.run import Run, columns_of_training, read_training_boxes
from svertka.type_checking import check_types

MAX_CHECKED_IMAGES = 32  # on which a file is compared with the original


@dataclass(frozen=True, repr=False)
class Export:
    """An exported network.

    Attributes:
        path: The ONNX file, or the folder.
        bytes: Its size.
        images: Images on which ONNX Runtime was compared with the original; 0 for a folder.
        difference: The largest difference there: of probabilities if the file contains the preprocessing, else of
            logits, relative to the largest logit of an image, or absolute if that is below 1. 0 for a folder.
        seconds: Duration of the export.
    """

    path: Path
    bytes: int
    images: int
    difference: float
    seconds: float

    @property
    def files(self) -> tuple[Path, ...]:
        """The files written."""
        return (self.path,) if self.path.is_file() else tuple(sorted(one for one in self.path.iterdir()))

    @property
    def sentence(self) -> str:
        """The check in words, such as "checked in ONNX Runtime on 32 images: largest difference 3e-06"."""
        if not self.images:
            return "a folder with the weights themselves; nothing to check"
        return (
            f"checked in ONNX Runtime on {format_count(self.images, 'image')}: largest difference {self.difference:.1g}"
        )

    def __repr__(self) -> str:
        return f"Export({str(self.path)!r}, {format_bytes(self.bytes)}; {self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(str(one), format_bytes(one.stat().st_size)) for one in self.files if one.is_file()]
        return NotebookBlock(str(self.path), (self.sentence,), header=("file", "size"), rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka export --json` prints them."""
        return asdict(self) | {"path": str(self.path)}


@check_types
def export(
    run: str | PathLike[str] | Classifier | nn.Module,
    to: str | PathLike[str] = "model.onnx",
    *,
    images: Sequence[ImageLike] = (),
    preprocessing: bool = False,
    overwrite: bool = False,
    trust_builder: bool = False,
) -> Export:
    """Write a network to an ONNX file, or to a folder with weights, config.json and a model card.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module.
        to: A name that ends in .onnx, or a folder.
        images: Images on which ONNX Runtime is compared with the original, as for `predict`. Empty: up to 32 of
            the images that the run was trained on. A file that differs is not written.
        preprocessing: Whether the file includes the preprocessing: uint8 images of any size in, probabilities out,
            instead of prepared images in, logits out.
        overwrite: Whether `to` may replace what svertka did not write.
        trust_builder: As for `Classifier.load`.

    Returns:
        The files written and the result of the check.

    Raises:
        ExportError: ONNX Runtime computes something else.
        DataError: None of the images can be read.
        UsageError: A package is missing; `to` is neither a file nor a folder; or there are no images to check on.
        RunError: The run is missing or damaged.
        StorageError: `to` cannot be written.
    """
    began = time.monotonic()
    path = parse_path(to)
    images = (images,) if isinstance(images, str) else images
    is_file = path.suffix.lower() == ".onnx" and not path.is_dir()
    if not is_file and path.suffix and not path.is_dir() and not fspath(to).endswith("/"):
        raise UsageError(f"--to {fspath(to)} is neither an ONNX file nor a folder; end it in .onnx or in /")
    if not is_file and (preprocessing or images):
        raise UsageError(f"--to {fspath(to)} is a folder, which has weights and no graph to check or to extend")
    if not is_file and Run(path).training.exists():
        raise UsageError(f"--to {fspath(to)} is a run itself; choose another folder")
    classifier = Classifier.open(run, trust_builder=trust_builder)
    origin = classifier.origin
    if is_file:
        path = check_output_file(path, b"svertka", overwrite=overwrite)
    else:
        path = check_output_folder(path, CARD_FILE, FRONT_MATTER.encode(), overwrite=overwrite)
    if not is_file:
        write_hub_folder(path, classifier, origin)
        size = sum(one.stat().st_size for one in path.iterdir() if one.is_file())
        return Export(path, size, 0, 0.0, time.monotonic() - began)
    try:
        from svertka.exporters.onnx import check_onnx, convert_to_onnx
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[onnx]'") from error
    seen_by = classifier.preprocess.intensity_range
    shown = _read_images(images, seen_by) if images else _read_training_images(origin, seen_by)
    with show_spinner("converting and checking the network"):
        model = convert_to_onnx(classifier, preprocessing=preprocessing)
        difference = check_onnx(model, classifier, shown)
    content = model.SerializeToString()
    write_atomic(path, content)
    return Export(path, len(content), len(shown), difference, time.monotonic() - began)


def _read_images(images: Sequence[ImageLike], intensity_range: Range | None) -> list[Pixels]:
    """Return the first `MAX_CHECKED_IMAGES` of `images` at full size, (H, W, 3) uint8."""
    found, reasons = [], []
    for name, image in islice(expand_inputs(images), MAX_CHECKED_IMAGES):
        try:
            found.append(load_pixels(image, DecodingOptions(intensity_range=intensity_range)))
        except ImageError as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise DataError(
            f"none of the images to check the file on can be read ({'; '.join(reasons[:3]) or 'there is none'}); "
            "name others"
        )
    return found


def _read_training_images(run: str | PathLike[str], intensity_range: Range | None) -> list[Pixels]:
    """Return up to `MAX_CHECKED_IMAGES` images of the source of `run`, evenly spread over it, (H, W, 3) uint8."""
    try:
        source = str(Run(run).settings()["source"])
        how = {"columns": columns_of_training(run, source), "boxes": read_training_boxes(run, source)}
        dataset = open_source(source, to_train=False, **how).with_intensity_range(intensity_range)
    except (RunError, KeyError) as error:
        raise UsageError(
            f"name images to check the file on: {format_command('export', Path(run))} IMAGE... --to …"
        ) from error
    except (UsageError, DataError, FetchError) as error:
        raise DataError(
            f"the images that {fspath(run)} was trained on are gone ({error}); "
            f"name others: {format_command('export', Path(run))} IMAGE... --to …"
        ) from error

    found = []
    for index in np.linspace(0, len(dataset) - 1, min(MAX_CHECKED_IMAGES, len(dataset))).astype(int):
        with suppress(ImageError):  # which training left out, too
            found.append(dataset.images.read(int(index)))
    if not found:
        raise DataError(
            f"no image of {source} can be read; name others: {format_command('export', Path(run))} IMAGE... --to …"
        )
    return found
