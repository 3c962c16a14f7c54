"""export(): a network as an ONNX file, as a page that classifies images, or as a folder to publish."""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from svertka.classifier import WEIGHTS, Classifier
from svertka.compiler.calibration_batches import MIN_IMAGES, describe_few_images
from svertka.data.band_ranges import BandRanges
from svertka.data.dataset import Pixels
from svertka.data.image_io import DecodingOptions
from svertka.data.prediction_inputs import expand_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.data.rgb_conversion import Range
from svertka.device import set_threads
from svertka.errors import DataError, FetchError, ImageError, RunError, UsageError
from svertka.escaping import format_command
from svertka.evaluation.run_images import RunImages, open_images_of_run, spread_evenly
from svertka.exporters.calibration_images import load_calibration_images
from svertka.exporters.hub_folder import CARD_FILE, FRONT_MATTER, write_hub_folder
from svertka.files import format_bytes, parse_path, write_atomic
from svertka.optimized_file import list_float_layers
from svertka.output_paths import HTML, prepare_output_file, prepare_output_folder
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.progress import show_spinner
from svertka.run import Run, open_source_as_in_training
from svertka.type_checking import check_types

if TYPE_CHECKING:
    from onnx import ModelProto

    from svertka.exporters.classifier_page import PageCheck
    from svertka.exporters.int8_onnx import Int8Check

MAX_CHECKED_IMAGES = 32  # on which a file is compared with the original
MAX_INT8_IMAGES = 128  # validation images, on which a page in int8 is


@dataclass(frozen=True, repr=False)
class Export:
    """An exported network.

    Attributes:
        path: The ONNX file, the page, or the folder.
        bytes: Its size, bytes.
        images: Images on which ONNX Runtime was compared with the original; 0 for a folder.
        difference: The largest difference there: of probabilities for a page, or if the file contains the
            preprocessing, else of logits, relative to the largest logit of an image, or absolute if that is below 1.
            0 for a folder, and for an ONNX file in int8.
        seconds: Duration of the export, seconds.
        int8: For an ONNX file in int8, its layers and how many calibration images keep their class. None: float32.
        page: For a page, how its network compares with the original. None: no page.
    """

    path: Path
    bytes: int
    images: int
    difference: float
    seconds: float
    int8: "Int8Check | None" = None
    page: "PageCheck | None" = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files written."""
        return (self.path,) if self.path.is_file() else tuple(sorted(one for one in self.path.iterdir()))

    @property
    def sentence(self) -> str:
        """The check in words, such as "checked in ONNX Runtime on 32 images: largest difference 3e-06"."""
        if self.int8 is not None:
            return self.int8.sentence
        if not self.images:
            return "a folder with the weights themselves; nothing to check"
        images = count_with_noun(self.images, "image")
        if self.page is not None:
            return f"checked in ONNX Runtime on {images}: {self.page.sentence}"
        return f"checked in ONNX Runtime on {images}: largest difference {self.difference:.1g}"

    def __repr__(self) -> str:
        return f"Export({str(self.path)!r}, {format_bytes(self.bytes)}; {self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(str(one), format_bytes(one.stat().st_size)) for one in self.files if one.is_file()]
        return NotebookBlock(str(self.path), (self.sentence,), header=("file", "size"), rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka export --json` prints them.

        Returns:
            The attributes by name.
        """
        return asdict(self) | {"path": str(self.path)}


@check_types
def export(
    run: str | PathLike[str] | Classifier | nn.Module,
    to: str | PathLike[str] = "model.onnx",
    *,
    images: Sequence[ImageLike] = (),
    preprocessing: bool = False,
    precision: str | None = None,
    calibration: Sequence[ImageLike] = (),
    overwrite: bool = False,
    trust_builder: bool = False,
) -> Export:
    """Write a network to an ONNX file, to a page, or to a folder with weights, config.json and a model card.

    The page is one HTML file that classifies images and what the camera sees, in any browser and offline.

    With "int8", convolutions and dense layers have 8-bit weights and feature maps, calibrated as by `optimize`, in QDQ
    form (QuantizeLinear and DequantizeLinear), which ONNX Runtime and OpenVINO compute in int8. Layers that
    `svertka optimize --precision auto` keeps in float in the run stay float. At least 90 % of up to 100 calibration
    images must keep the class of the float network in ONNX Runtime, and that of the same int8 network in svertka.
    Of a page, only the weights are 8-bit integers, and it is compared with the network on validation images of the run.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module.
        to: A name that ends in .onnx or .html, or a folder.
        images: Images on which ONNX Runtime is compared with the original, as for `predict`. Empty: up to 32 of
            the images that the run was trained on; for a page in int8, up to 128 of its validation images. A file that
            differs is not written.
        preprocessing: Whether the file includes the preprocessing: uint8 images of any size in, probabilities out,
            instead of prepared images in, logits out. The file of a calibrated run has two further outputs,
            `unknown_score` and `unknown`, whether an image is of none of the classes.
        precision: "fp32" or "int8", of the ONNX file; of the weights of a page, also "int16". None: "fp32", "int16"
            for a page.
        calibration: For an ONNX file in "int8", a hundred or more typical images, as for `predict`, of which up to 256
            are read. Empty: training images of the run.
        overwrite: Whether `to` may replace what svertka did not write.
        trust_builder: As for `Classifier.load`.

    Returns:
        The files written and the result of the check.

    Raises:
        ExportMismatchError: ONNX Runtime computes something else, or int8 changes too many classes.
        DataError: None of the images can be read.
        UsageError: A package is missing; `to` is neither a file nor a folder; there are no images to check or calibrate
            on; int8 is not possible; or the page would be too large.
        RunError: The run is missing or damaged.
        StorageError: `to` cannot be written.
    """
    began = time.monotonic()
    path = parse_path(to)
    images, calibration = ((some,) if isinstance(some, str) else some for some in (images, calibration))
    is_page = path.suffix.lower() == ".html" and not path.is_dir()
    is_file = is_page or (path.suffix.lower() == ".onnx" and not path.is_dir())
    if not is_file and path.suffix and not path.is_dir() and not fspath(to).endswith("/"):
        raise UsageError(f"--to {fspath(to)} is no ONNX file, page or folder; end it in .onnx, .html or /")
    if is_page and preprocessing:
        raise UsageError(f"--to {fspath(to)} is a page, which always includes the preprocessing; leave it out")
    if not is_file and (preprocessing or images):
        raise UsageError(f"--to {fspath(to)} is a folder, which has weights and no graph to check or to extend")
    if not is_file and Run(path).training.exists():
        raise UsageError(f"--to {fspath(to)} is a run itself; choose another folder")
    precision = precision or ("int16" if is_page else "fp32")
    _check_precision(precision, calibration, fspath(to), is_file=is_file, is_page=is_page)
    classifier = Classifier.open(run, trust_builder=trust_builder)
    origin = classifier.origin
    if is_file:
        path = prepare_output_file(path, HTML if is_page else b"svertka", overwrite=overwrite)
    else:
        path = prepare_output_folder(path, CARD_FILE, FRONT_MATTER.encode(), overwrite=overwrite)
    if not is_file:
        write_hub_folder(path, classifier, origin)
        size = sum(one.stat().st_size for one in path.iterdir() if one.is_file())
        return Export(path, size, 0, 0.0, time.monotonic() - began)
    try:
        import svertka.exporters.onnx  # noqa: F401 - whose packages are an extra
        from svertka.exporters.classifier_page import render_classifier_page, require_page_support
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'svertka[onnx]'") from error
    if is_page:
        require_page_support(classifier)
        model, page_check = _make_page_model(classifier, run, images, precision)
        content = render_classifier_page(classifier, model, precision, page_check)
        write_atomic(path, content)
        seconds = time.monotonic() - began
        return Export(path, len(content), page_check.images, page_check.difference, seconds, page=page_check)
    check = None
    if precision == "int8":
        model, check = _make_int8_model(classifier, run, images, calibration, preprocessing=preprocessing)
        count, difference = check.images, 0.0
    else:
        model, count, difference = _make_float_model(classifier, images, preprocessing=preprocessing)
    content = model.SerializeToString()
    write_atomic(path, content)
    return Export(path, len(content), count, difference, time.monotonic() - began, check)


def _check_precision(
    precision: str, calibration: Sequence[ImageLike], to: str, *, is_file: bool, is_page: bool
) -> None:
    """Raise UsageError unless the options of precision fit one another and `to`."""
    if is_page and precision not in ("int16", "fp32", "int8"):
        raise UsageError(f"a page cannot have precision={precision}; use int16, fp32 or int8")
    if not is_page and precision not in ("fp32", "int8"):
        raise UsageError(f"an ONNX file cannot have precision={precision}; use fp32 or int8")
    if precision == "int8" and not is_file:
        raise UsageError(f"--to {to} is a folder, which has float weights; for int8 name a file that ends in .onnx")
    if calibration and (precision != "int8" or is_page):
        raise UsageError("calibration= is read only for an ONNX file in int8; leave it out")


def _make_page_model(
    classifier: Classifier,
    run: str | PathLike[str] | Classifier | nn.Module,
    images: Sequence[ImageLike],
    precision: str,
) -> tuple["ModelProto", "PageCheck"]:
    """Return the ONNX model of a page and how it compares with the network."""
    from svertka.exporters.classifier_page import check_page_model, convert_for_page

    folder = _find_folder(run)
    if images or precision != "int8" or folder is None or not Run(folder).training.exists():
        shown = _read_images(images, None) if images else _read_training_images(classifier.origin, None)
        prepared = torch.stack([classifier.preprocess(classifier.preprocess.to_file_values(one)) for one in shown])
    else:
        dataset = open_images_of_run(folder, None, None)
        prepared, _ = RunImages(classifier, dataset, set_threads(None), None).load("val", MAX_INT8_IMAGES)
    with show_spinner("converting and checking the network"):
        model = convert_for_page(classifier, precision)
        return model, check_page_model(model, classifier, prepared, precision)


def _find_folder(run: str | PathLike[str] | Classifier | nn.Module) -> Path | None:
    """Return the folder of a run that is given by its path, else None."""
    return parse_path(run) if isinstance(run, str | PathLike) and parse_path(run).is_dir() else None


def _make_float_model(
    classifier: Classifier, images: Sequence[ImageLike], *, preprocessing: bool
) -> tuple["ModelProto", int, float]:
    """Return the ONNX model that computes in float32, and on how many images it was checked with which difference."""
    from svertka.exporters.onnx import check_onnx, convert_to_onnx

    seen_by = classifier.preprocess.intensity_range
    shown = _read_images(images, seen_by) if images else _read_training_images(classifier.origin, seen_by)
    with show_spinner("converting and checking the network"):
        model = convert_to_onnx(classifier, preprocessing=preprocessing)
        return model, len(shown), check_onnx(model, classifier, shown)


def _make_int8_model(
    classifier: Classifier,
    run: str | PathLike[str] | Classifier | nn.Module,
    images: Sequence[ImageLike],
    calibration: Sequence[ImageLike],
    *,
    preprocessing: bool,
) -> tuple["ModelProto", "Int8Check"]:
    """Return the ONNX model in int8 and its check."""
    from svertka.exporters.int8_onnx import convert_to_int8_onnx

    folder = _find_folder(run)
    seen_by = classifier.preprocess.intensity_range
    prepared = load_calibration_images(classifier, folder, calibration)
    if len(prepared) < MIN_IMAGES:
        warnings.warn(describe_few_images(len(prepared)), stacklevel=4)
    shown: Sequence[Pixels] = ()
    if images or preprocessing:
        given = images or calibration
        shown = _read_images(given, seen_by) if given else _read_training_images(classifier.origin, seen_by)
    with show_spinner("converting and checking the network"):
        return convert_to_int8_onnx(
            classifier,
            prepared,
            checked=torch.stack([classifier.preprocess(classifier.preprocess.to_file_values(one)) for one in shown])
            if images
            else prepared,
            float_layers=frozenset() if folder is None else list_float_layers(folder, folder / WEIGHTS),
            preprocessing=preprocessing,
            pictures=shown,
        )


def _read_images(images: Sequence[ImageLike], intensity_range: Range | BandRanges | None) -> list[Pixels]:
    """Return the first `MAX_CHECKED_IMAGES` of `images` at full size, (H, W, 3) uint8, or of bands."""
    found, reasons, decoding = [], [], DecodingOptions(intensity_range=intensity_range)
    for name, image in islice(expand_inputs(images, decoding.bands), MAX_CHECKED_IMAGES):
        try:
            found.append(load_pixels(image, decoding))
        except ImageError as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise DataError(
            f"none of the images to check the file on can be read ({'; '.join(reasons[:3]) or 'there is none'}); "
            "name others"
        )
    return found


def _read_training_images(run: str | PathLike[str], intensity_range: Range | BandRanges | None) -> list[Pixels]:
    """Return up to `MAX_CHECKED_IMAGES` images of the source of `run`, evenly spread over it, (H, W, 3) uint8."""
    try:
        source = str(Run(run).settings()["source"])
        dataset = open_source_as_in_training(run, source).with_intensity_range(intensity_range)
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
    for index in spread_evenly(len(dataset), MAX_CHECKED_IMAGES).tolist():
        with suppress(ImageError):  # which training left out, too
            found.append(dataset.images.read(index))
    if not found:
        raise DataError(
            f"no image of {source} can be read; name others: {format_command('export', Path(run))} IMAGE... --to …"
        )
    return found
