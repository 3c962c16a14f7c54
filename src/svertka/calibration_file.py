"""calibration.safetensors in a run folder, with its record in config.json: the unknown score and the prediction sets.

The record holds the threshold and what it was chosen on, and the file what is not a single number. The file repeats the
record in its header, so that the two cannot be mistaken for those of different calibrations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from svertka.conformal_sets import conformal_quantile
from svertka.errors import RunError, UsageError
from svertka.escaping import format_command
from svertka.optimized_file import hash_weights
from svertka.pages.number_format import count_with_noun
from svertka.progress import say
from svertka.tensor_files import describe_nonfinite, read_tensors_and_header, write_tensors
from svertka.unknown_score import Method, UnknownScore

CALIBRATION = "calibration.safetensors"
SET_SCORES = "set_scores"
SCORE_TENSORS: dict[Method, tuple[str, ...]] = {
    "mahalanobis+energy": ("center", "whitening", "means", "scale"),
    "energy": (),
}


class UnknownThreshold(BaseModel):
    """The score above which an image is called unknown, and the images that it was chosen on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method
    threshold: float
    images: int = Field(ge=1, description="validation images, and training images of the other folds")
    kept: float = Field(ge=0, le=1, description="share of these that are not called unknown")
    examples: NonNegativeInt = Field(default=0, description="images of none of the classes")
    rejected: float | None = Field(default=None, ge=0, le=1, description="share of these that are called unknown")

    @property
    def sentence(self) -> str:
        """Which images are called unknown, and how many of those that this was chosen on, in words."""
        count = round(self.kept * self.images)
        told = f"images whose score exceeds {self.threshold:.4g}"
        kept = f"{count:,} of {count_with_noun(self.images, 'held-out image')} do not"
        if self.rejected is None:
            # A new image is as likely at any rank among the validation images.
            return f"{told}; {kept}, and {count / (self.images + 1):.1%} of new images of the classes on average"
        examples = f"{round(self.rejected * self.examples):,} of {count_with_noun(self.examples, 'example')} do"
        return f"{told}; {kept}, {examples}"


class CalibrationRecord(BaseModel):
    """The part of config.json that says what calibration.safetensors is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_hash: str = Field(max_length=64, description="content hash of the weights that it belongs to")
    unknown: UnknownThreshold
    set_images: NonNegativeInt = Field(description="images from which prediction sets are calibrated")


@dataclass(frozen=True, eq=False)
class RunCalibration:
    """What a run needs to answer "unknown" and to give prediction sets.

    Attributes:
        record: Its numbers.
        score: The unknown score.
        set_scores: 1 − the probability of the true class for each calibration image, (n,), ascending.
    """

    record: CalibrationRecord
    score: UnknownScore
    set_scores: Tensor

    @property
    def threshold(self) -> float:
        """The score above which an image is called unknown."""
        return self.record.unknown.threshold

    def set_quantile(self, coverage: float, run: str) -> float:
        """Return the quantile of `conformal_quantile`.

        Args:
            coverage: 0 to 1.
            run: Name of the run, for the error.

        Raises:
            UsageError: There are too few calibration images for the coverage.
        """
        try:
            return conformal_quantile(self.set_scores, coverage)
        except UsageError as error:
            if 0 < coverage < 1:
                raise UsageError(f"{error}; {advise_on_sets(run)}") from error
            raise

    def write(self, folder: Path, weights: Path) -> CalibrationRecord:
        """Write calibration.safetensors for the file of weights `weights`, and return its record for config.json.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        record = self.record.model_copy(update={"weights_hash": hash_weights(weights)})
        tensors = dict(self.score.named_buffers()) | {SET_SCORES: self.set_scores}
        write_tensors(folder / CALIBRATION, tensors, record.model_dump())
        return record


def advise_on_sets(run: str) -> str:
    """Return what to do where a run has too few calibration images for prediction sets."""
    return (
        "validation images that chose the epoch are not used; train with a larger test set (--test), or give labeled "
        f"images that are new to the run: {format_command('calibrate', Path(run))} --new SOURCE"
    )


def read_calibration(folder: Path, record: CalibrationRecord, weights: Path, classes: int) -> RunCalibration | None:
    """Return the calibration of a run; None, with a message, if it was made for other weights.

    Args:
        folder: The run folder.
        record: What its config.json says.
        weights: Its file of weights.
        classes: Its classes.

    Raises:
        RunError: The file is missing or damaged, or not the one that config.json means.
    """
    path, again = folder / CALIBRATION, format_command("calibrate", folder)
    if record.weights_hash != hash_weights(weights):
        say(f"{path} was made for other weights than {weights.name} and is not used; make it again: {again}")
        return None
    try:
        tensors, header = read_tensors_and_header(path)
    except RunError as error:
        raise RunError(f"{error}, or make it again: {again}") from error
    if header != record.model_dump() or not _fits(tensors, record, classes):
        raise RunError(f"{path} is not the file that config.json describes; make both again: {again}")
    score = UnknownScore(record.unknown.method, {name: tensors[name] for name in SCORE_TENSORS[record.unknown.method]})
    return RunCalibration(record, score, tensors[SET_SCORES])


def _fits(tensors: Mapping[str, Tensor], record: CalibrationRecord, classes: int) -> bool:
    """Return whether these are the tensors of `record`, for a run with so many classes."""
    names = {*SCORE_TENSORS[record.unknown.method], SET_SCORES}
    if set(tensors) != names or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return False
    if describe_nonfinite(tensors) or tensors[SET_SCORES].shape != (record.set_images,):
        return False
    if record.unknown.method == "energy":
        return True
    whitening, means, scale = tensors["whitening"], tensors["means"], tensors["scale"]
    if scale.shape != (2, 2) or not (scale[:, 1] > 0).all():
        return False
    is_square = whitening.dim() == 2 and whitening.shape[0] == whitening.shape[1]
    is_square &= tensors["center"].shape == whitening.shape[:1]
    return is_square and means.dim() == 2 and means.shape[1] == len(whitening) and 1 <= len(means) <= classes
