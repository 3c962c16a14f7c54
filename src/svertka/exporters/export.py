"""export(): a run as one ONNX file, or as a folder to publish."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from svertka.classifier import Classifier
from svertka.data.dataset import Pixels
from svertka.data.image_io import Decoding
from svertka.data.pixel_modes import Range
from svertka.data.prediction_inputs import expand_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.data.sources import open_source
from svertka.errors import DataError, FetchError, ImageError, RunError, UsageError
from svertka.escaping import format_command
from svertka.exporters.hub_folder import CARD_FILE, FRONT_MATTER, write_hub_folder
from svertka.files import parse_path, write_atomic
from svertka.output_paths import output_file, output_folder
from svertka.run import Run, training_boxes, training_columns
from svertka.type_checking import check_types

MAX_CHECKED_IMAGES = 32  # pictures that a file is held against the original on


@dataclass(frozen=True)
class Export:
    """What was written to `path`: `bytes`, how many `pictures` it was checked on, and the largest `difference` there.

    `difference`: of logits, in units of the largest of a picture, or of 1 where that is larger; of probabilities where
    the preprocessing is inside; 0 for a folder, which holds the weights themselves.
    """

    path: Path
    bytes: int
    pictures: int
    difference: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return asdict(self) | {"path": str(self.path)}


@check_types
def export(
    run: str | PathLike[str],
    to: str | PathLike[str],
    *,
    pictures: Sequence[ImageLike] = (),
    preprocessing: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the network of `run` to `to`: an ONNX file, or a folder with weights, config.json and a model card.

    `run`: a run folder, or a network with its weights, as for `Classifier.load`. `to`: a name that ends in .onnx, or a
    folder. An ONNX file is checked by ONNX Runtime against the original on `pictures`, as for `predict`; where there
    are none, on some that the run was trained on; one that differs is not written. `preprocessing`: the file takes
    uint8 pictures of any size and gives probabilities, instead of prepared pictures and logits. `overwrite`: what is at
    `to` may be lost, even if svertka did not make it.

    Raises:
        ExportError: ONNX Runtime computes something else. DataError: no picture can be read to check it on.
        UsageError: a package is missing; `to` is neither; no pictures are known. RunError: the run is missing or
        damaged. StorageError: `to` cannot be written.
    """
    began = time.monotonic()
    path = parse_path(to)
    pictures = (pictures,) if isinstance(pictures, str) else pictures
    is_file = path.suffix.lower() == ".onnx" and not path.is_dir()
    if not is_file and path.suffix and not path.is_dir() and not fspath(to).endswith("/"):
        raise UsageError(f"--to {fspath(to)} is neither an ONNX file nor a folder; end it in .onnx or in /")
    if not is_file and (preprocessing or pictures):
        raise UsageError(f"--to {fspath(to)} is a folder, which has weights and no graph to check or to extend")
    if not is_file and Run(path).training.exists():
        raise UsageError(f"--to {fspath(to)} is a run itself; choose another folder")
    classifier = Classifier.load(run)
    if is_file:
        path = output_file(path, b"svertka", overwrite=overwrite)
    else:
        path = output_folder(path, CARD_FILE, FRONT_MATTER.encode(), overwrite=overwrite)
    if not is_file:
        write_hub_folder(path, classifier, fspath(run))
        size = sum(one.stat().st_size for one in path.iterdir() if one.is_file())
        return Export(path, size, 0, 0.0, time.monotonic() - began)
    try:
        from svertka.exporters.onnx import check_onnx, convert_to_onnx
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[onnx]'") from error
    seen_by = classifier.preprocess.intensity_range
    shown = _read_images(pictures, seen_by) if pictures else _read_training_images(run, seen_by)
    model = convert_to_onnx(classifier, preprocessing=preprocessing)
    difference = check_onnx(model, classifier, shown)
    content = model.SerializeToString()
    write_atomic(path, content)
    return Export(path, len(content), len(shown), difference, time.monotonic() - began)


def _read_images(pictures: Sequence[ImageLike], intensity_range: Range | None) -> list[Pixels]:
    """The first CHECKED of `pictures`, whole."""
    found, reasons = [], []
    for name, picture in islice(expand_inputs(pictures), MAX_CHECKED_IMAGES):
        try:
            found.append(load_pixels(picture, Decoding(intensity_range=intensity_range)))
        except ImageError as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise DataError(
            f"none of the pictures to check with can be read ({'; '.join(reasons[:3]) or 'there is none'}); give others"
        )
    return found


def _read_training_images(run: str | PathLike[str], intensity_range: Range | None) -> list[Pixels]:
    """CHECKED pictures of the source that `run` was trained on, evenly spread over it, whole."""
    try:
        source = str(Run(run).settings()["source"])
        how = {"columns": training_columns(run, source), "boxes": training_boxes(run, source)}
        dataset = open_source(source, to_train=False, **how).with_intensity_range(intensity_range)
    except (RunError, KeyError) as error:
        raise UsageError(
            f"say which pictures to check it on: {format_command('export', Path(run))} PICTURES --to …"
        ) from error
    except (UsageError, DataError, FetchError) as error:
        raise DataError(
            f"the pictures that {fspath(run)} was trained on are gone ({error}); "
            f"give others: {format_command('export', Path(run))} PICTURES --to …"
        ) from error

    found = []
    for index in np.linspace(0, len(dataset) - 1, min(MAX_CHECKED_IMAGES, len(dataset))).astype(int):
        with suppress(ImageError):  # which training left out, too
            found.append(dataset.images.read(int(index)))
    if not found:
        raise DataError(
            f"no picture of {source} can be read; give others: {format_command('export', Path(run))} PICTURES --to …"
        )
    return found
