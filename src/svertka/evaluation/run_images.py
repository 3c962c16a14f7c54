"""The images that a run was trained and validated on, preprocessed, in memory."""

import math
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints
from svertka.data.image_io import DecodingOptions
from svertka.errors import RunError, UsageError
from svertka.evaluation.evaluate import renumber_labels_by_class_names
from svertka.evaluation.held_out import NothingSelectedError, read_manifest, select_held_out_images
from svertka.progress import progress
from svertka.run import Run, open_source_as_in_training

CALIBRATION_IMAGES = 256  # at most, evenly spread over the training images
IMAGE_BYTES = 2**30  # at most, of preprocessed images in memory
BATCH_SIZE = 32


def spread_evenly(count: int, most: int) -> Ints:
    """Return up to `most` of the numbers 0 to `count` − 1, (n,) int64, ascending and evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def open_images_of_run(folder: Path, source: str | PathLike[str] | None, max_pixels: int | None) -> Dataset:
    """Return the data set that a run was trained on.

    Raises:
        RunError: `folder` is no run that svertka trained.
    """
    if not Run(folder).training.exists():
        raise RunError(
            f"{folder} has no training.json, so its training and validation images are unknown; name a run "
            "that svertka train made"
        )
    given = fspath(source) if source is not None else str(Run(folder).settings()["source"])
    return open_source_as_in_training(folder, given).with_decoding(DecodingOptions.up_to(max_pixels))


class RunImages:
    """The images of a run by the part that they had in its training.

    Args:
        classifier: The run.
        dataset: The data set that it was trained on.
        threads: Threads for decoding.
        cache_limit: Size limit of the image cache, bytes.
    """

    def __init__(self, classifier: Classifier, dataset: Dataset, threads: int, cache_limit: int | None) -> None:
        self._classifier, self._threads, self._cache_limit = classifier, threads, cache_limit
        self._manifest = read_manifest(classifier.origin)
        self._dataset = renumber_labels_by_class_names(classifier.names, dataset)

    def load(self, part: str, most: int) -> tuple[Tensor, Tensor]:
        """Return up to `most` preprocessed images, (N, C, H, W) float32, of a part, evenly spread, and their labels.

        No more images than `IMAGE_BYTES` holds are returned.

        Raises:
            DataError: No image can be read.
            UsageError: The data set contains none of the images that had this part in the training.
        """
        preprocess = self._classifier.preprocess
        most = min(most, IMAGE_BYTES // (4 * math.prod(preprocess.input_shape)))
        run = self._classifier.origin
        others = UsageError(
            f"{self._dataset.source} holds none of the images that {run} was "
            f"{'trained' if part == 'train' else 'validated'} on; name the folder that they are in now"
        )
        try:
            selection = select_held_out_images(
                [run], self._dataset, preprocess, part, include_training=part == "train",
                threads=self._threads, cache_limit=self._cache_limit,
            )  # fmt: skip
        except NothingSelectedError as error:
            raise others from error
        found = selection.indices
        if self._manifest is not None:  # otherwise the selection has divided the data set as the training did
            found = found[self._manifest.parts_of(selection.digests) == part]
        if not len(found):
            raise others
        chosen = found[spread_evenly(len(found), most)]
        batches = []
        with progress("reading images", len(chosen), "images") as shown:
            for start in range(0, len(chosen), BATCH_SIZE):
                squares = torch.from_numpy(selection.rows[chosen[start : start + BATCH_SIZE]])
                batches.append(preprocess.normalize(squares.permute(0, 3, 1, 2)))
                shown.advance(len(squares))
        return torch.cat(batches).contiguous(), torch.from_numpy(self._dataset.labels[chosen])
