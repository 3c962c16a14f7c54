"""The images on which an int8 file is calibrated: given ones, or training images of the run."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.image_io import DecodingOptions
from svertka.data.prediction_inputs import expand_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.device import set_threads
from svertka.errors import DataError, ImageError, UsageError
from svertka.evaluation.run_images import CALIBRATION_IMAGES, RunImages, open_images_of_run, spread_evenly
from svertka.progress import progress
from svertka.run import Run


def load_calibration_images(
    classifier: Classifier, run: str | PathLike[str] | None, given: Sequence[ImageLike]
) -> Tensor:
    """Return up to `CALIBRATION_IMAGES` images, evenly spread, preprocessed for `classifier`, (N, C, H, W) float32.

    Args:
        classifier: The classifier.
        run: Its run folder, or None.
        given: Images, as for `predict`. Empty: training images of the run.

    Raises:
        UsageError: None are given, and `run` is no run that svertka trained.
        DataError: None of them can be read.
        RunError: The training images are no longer known.
    """
    if given:
        return _load_given(classifier, given)
    if run is None or not Run(run).training.exists():
        raise UsageError(
            f"int8 is calibrated on images, and {classifier.origin} is no run whose training images are known; give "
            "some hundred typical ones with calibration="
        )
    dataset = open_images_of_run(Path(run), None, None)
    images, _ = RunImages(classifier, dataset, set_threads(None), None).load("train", CALIBRATION_IMAGES)
    return images


def _load_given(classifier: Classifier, given: Sequence[ImageLike]) -> Tensor:
    inputs = list(expand_inputs(given, classifier.preprocess.bands))
    chosen = spread_evenly(len(inputs), CALIBRATION_IMAGES)
    decoding = DecodingOptions(intensity_range=classifier.preprocess.intensity_range)
    found, reasons = [], []
    with progress("reading calibration images", len(chosen), "images") as shown:
        for index in chosen:
            name, image = inputs[index]
            try:
                found.append(classifier.preprocess(load_pixels(image, decoding)))
            except ImageError as error:
                reasons.append(f"{name}: {error}")
            shown.advance(1)
    if not found:
        raise DataError(
            f"none of the calibration images can be read ({'; '.join(reasons[:3]) or 'there is none'}); name others"
        )
    return torch.stack(found)
