"""The calibration of a classifier: its unknown score, the threshold above which images are unknown, and set scores."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svertka.calibration_file import CalibrationRecord, RunCalibration, UnknownThreshold
from svertka.classifier import Classifier
from svertka.compiler.optimize import optimize_if_worthwhile
from svertka.conformal_sets import nonconformity_scores
from svertka.data.dataset import Ints
from svertka.data.image_io import DecodingOptions
from svertka.data.pixel_statistics import SquareImages
from svertka.data.prediction_inputs import Input, list_inputs
from svertka.data.split_manifest import Manifest
from svertka.data.unreadable_rows import read_readable_rows
from svertka.device import network_device
from svertka.errors import DataError, ImageError, UsageError
from svertka.evaluation.held_out import compute_content_hash
from svertka.evaluation.out_of_fold_scores import FoldSettings, compute_out_of_fold_components
from svertka.evaluation.run_images import spread_evenly
from svertka.pages.number_format import count_with_noun
from svertka.progress import progress, say
from svertka.unknown_score import (
    Method,
    UnknownScore,
    fit_unknown_score,
    flatten_features,
    split_features_and_logits,
)

KEEP = 0.95  # share of the validation images that are not called unknown
MAX_TRAIN_IMAGES = 3000  # whose features are compared with
MAX_IMAGES = 10_000  # validation images, calibration images, and examples
BATCH_PIXELS = 2**20
STORED_AT_ONCE = 1024  # images whose stored features are read together
MARGIN = 1e-4  # of the highest score: rounding must not change an answer


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images as the classifier sees them, with their labels.

    Attributes:
        rows: Square images by index in the data set.
        labels: Class of each image of the data set.
        indices: Those that are meant, (N,).
        stored: Returns the stored features (n, …) of images at some indices; None if they are not stored.
    """

    rows: SquareImages
    labels: Ints
    indices: Ints
    stored: Callable[[Ints], Tensor] | None = None

    def spread(self, most: int) -> "LabeledImages":
        """Return at most so many of the images, evenly spread."""
        return replace(self, indices=self.indices[spread_evenly(len(self.indices), most)])


def fit_calibration(
    classifier: Classifier,
    train: LabeledImages,
    val: LabeledImages,
    for_sets: LabeledImages,
    examples: Sequence[Tensor] = (),
    keep: float = KEEP,
    folds: FoldSettings | None = None,
) -> RunCalibration:
    """Compare validation images with training images, and choose the threshold above which images are unknown.

    Args:
        classifier: The classifier.
        train: Its training images; up to 3,000 are used.
        val: Its validation images.
        for_sets: Images that did not choose its weights, for prediction sets; there may be none.
        examples: Preprocessed images (C, H, W) of none of the classes; with them, the threshold is the one at which the
            shares of validation images kept and of examples rejected have the highest sum.
        keep: Without `examples`, the share of the validation images that are kept, 0 to 1.
        folds: Of few images; the threshold is chosen on the training images, too, by scores of the other folds.

    Raises:
        UsageError: There are no validation images, or features are NaN.
    """
    if not 0 < keep < 1:
        raise UsageError(f"keep={keep:g} must be a share above 0 and below 1, such as 0.95")
    if not len(val.indices):
        raise UsageError(
            f"{classifier.origin} has no validation images, from which the threshold for unknown images is chosen; "
            "train with --val 0.1 or more"
        )
    train, val, for_sets = train.spread(MAX_TRAIN_IMAGES), val.spread(MAX_IMAGES), for_sets.spread(MAX_IMAGES)
    counts = [len(train.indices), len(val.indices), len(for_sets.indices), len(examples)]
    computed = sum(len(some.indices) for some in (train, val, for_sets) if some.stored is None)
    outputs = _Outputs(classifier, computed + len(examples))
    with progress("calibrating", sum(counts), "images") as shown:
        of_val = outputs.of_rows(val, shown.advance)[:2]
        score, known = outputs.fit(train, of_val, shown.advance, folds)
        set_scores = torch.empty(0)
        if len(for_sets.indices):
            _, logits, labels = outputs.of_rows(for_sets, shown.advance)
            set_scores = nonconformity_scores(classifier.require_finite(logits.softmax(1)), torch.from_numpy(labels))
        other = score(*outputs.of_tensors(examples, shown.advance)) if examples else None
    if not known.isfinite().all() or (other is not None and not other.isfinite().all()):
        raise UsageError(
            f"{classifier.origin} computes features that are NaN or infinite, so no threshold for unknown images can "
            "be chosen; use another run"
        )
    unknown = choose_threshold(score.method, known.numpy(), None if other is None else other.numpy(), keep)
    return RunCalibration(
        CalibrationRecord(weights_hash="", unknown=unknown, set_images=len(set_scores)), score.cpu(), set_scores
    )


def choose_threshold(
    method: Method, known: npt.NDArray[np.float32], other: npt.NDArray[np.float32] | None, keep: float
) -> UnknownThreshold:
    """Return the threshold for the scores of validation images, (N,), and of examples of none of the classes, (M,).

    It lies halfway between two scores, so that rounding does not change which images are unknown.

    Args:
        method: What the scores are.
        known: Those of the validation images.
        other: Those of the examples. None: without any.
        keep: Without examples, the share of new images of the classes that should be kept. With fewer than
            keep / (1 − keep) validation images, all of these are kept.
    """
    ascending = np.sort(known.astype(np.float64))
    if other is None:
        rank = min(len(known), math.ceil((len(known) + 1) * keep - 1e-9))
    else:
        kept = np.arange(1, len(known) + 1) / len(known)
        rejected = np.array([(other > limit).mean() for limit in ascending])
        rank = int(np.flatnonzero(kept + rejected >= (kept + rejected).max() - 1e-12)[-1]) + 1
    limit = ascending[rank - 1]
    above = np.concatenate([ascending, [] if other is None else other.astype(np.float64)])
    above = above[above > limit]
    halfway = (limit + above.min()) / 2 if len(above) else limit + MARGIN * max(abs(limit), MARGIN)
    threshold = float(np.float32(halfway))  # the precision of scores
    return UnknownThreshold(
        method=method,
        threshold=threshold,
        images=len(known),
        kept=float((known <= threshold).mean()),
        examples=0 if other is None else len(other),
        rejected=None if other is None else float((other > threshold).mean()),
    )


def read_examples(
    classifier: Classifier, folder: str, manifest: Manifest | None, max_pixels: int | None = None
) -> list[Tensor]:
    """Return the preprocessed images of `folder`, which show none of the classes.

    Args:
        classifier: What they are preprocessed for.
        folder: A folder, or an image.
        manifest: The images of the run; none of them may be an example.
        max_pixels: Largest image that is decoded, pixels.

    Raises:
        UsageError: There are no images, or some are images of the run.
        DataError: None can be read.
    """
    inputs, decoding = list_inputs([folder], classifier.preprocess.bands), DecodingOptions.up_to(max_pixels)
    check_examples(folder, [image for _, image in inputs], manifest)
    found, reasons = [], []
    for name, image in inputs[:MAX_IMAGES]:
        try:
            if isinstance(image, ImageError):
                raise image
            found.append(classifier.preprocess(image, decoding))
        except ImageError as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise DataError(f"unknown={folder}: no image can be read ({'; '.join(reasons[:3])}); name other images")
    if reasons:
        say(f"unknown={folder}: {count_with_noun(len(reasons), 'image')} left out that cannot be read ({reasons[0]})")
    return found


def check_examples(folder: str, images: Sequence[Input], manifest: Manifest | None) -> None:
    """Raise UsageError if one of `images`, of `folder`, is an image of the run that `manifest` lists."""
    if manifest is None:
        return
    known = []
    for image in images:
        with suppress(ImageError):
            if not isinstance(image, ImageError) and manifest.parts_of([compute_content_hash(image, manifest)])[0]:
                known.append(str(image))
    if known:
        raise UsageError(
            f"unknown={folder} holds {count_with_noun(len(known), 'image')} of the run's own ({known[0]}); give images "
            "of none of its classes"
        )


class _Outputs:
    """The features and logits of a classifier, batch by batch.

    Args:
        classifier: The classifier.
        num_images: Images that will be computed.
    """

    def __init__(self, classifier: Classifier, num_images: int) -> None:
        self._preprocess = classifier.preprocess
        self._device = network_device(classifier.network) or torch.device("cpu")
        shape = self._preprocess.input_shape
        builder = classifier.config.builder
        reopens_as_graph = builder is not None and builder.is_graph  # whose modules have no names: no head is found
        split = None if reopens_as_graph else split_features_and_logits(classifier.network, classifier.model, shape)
        self._split = split
        network = classifier.network if split is None else split
        self._network = optimize_if_worthwhile(network.eval(), shape[1:], num_images)
        self._batch_size = max(1, BATCH_PIXELS // self._preprocess.size**2)

    def fit(
        self,
        train: LabeledImages,
        of_val: tuple[Tensor, Tensor],
        advance: Callable[[int], None],
        folds: FoldSettings | None,
    ) -> tuple[UnknownScore, Tensor]:
        """Return the score for images like `train`, and the scores (M,) of images that it was not fitted to.

        Without separate features the score is "energy", else distances count, too.

        Args:
            train: Training images.
            of_val: Features and logits of the validation images.
            advance: Is told of each batch.
            folds: As for `fit_calibration`.
        """
        if self._split is None:
            advance(len(train.indices))
            energy = UnknownScore("energy", {})
            return energy, energy(*of_val)
        features, logits, labels = self.of_rows(train, advance)
        score = fit_unknown_score(features.numpy(), labels, *of_val)
        own = None if folds is None else compute_out_of_fold_components(features, logits, labels, folds)
        if own is None:
            return score, score(*of_val)
        components = torch.cat([score.components(*of_val), own])
        score.set_scale(components)
        return score, score.standardize(components)

    def of_rows(self, images: LabeledImages, advance: Callable[[int], None]) -> tuple[Tensor, Tensor, Ints]:
        """Return the features (N, D), the logits (N, K) and the labels (N,) of those square images that can be read.

        `advance` is told of each batch.
        """
        if images.stored is not None and self._split is not None:
            found = self._of_stored(self._split.last, images.indices, images.stored, advance)
            return *found, images.labels[images.indices]
        read: list[Ints] = []

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(images.indices), self._batch_size):
                rows, kept = read_readable_rows(images.rows, images.indices[start : start + self._batch_size])
                read.append(images.labels[kept])
                yield self._preprocess.normalize(torch.from_numpy(rows).permute(0, 3, 1, 2))

        return *self._of(batches(), advance), np.concatenate(read)

    def of_tensors(self, images: Sequence[Tensor], advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Return the features and logits of preprocessed images, as `of_rows`."""
        size = self._batch_size
        return self._of((torch.stack(list(images[k : k + size])) for k in range(0, len(images), size)), advance)

    @torch.inference_mode()
    def _of_stored(
        self, last: torch.nn.Module, indices: Ints, stored: Callable[[Ints], Tensor], advance: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Return stored features of images, (N, D), and the logits that the last layers compute of them."""
        features, logits = [], []
        for start in range(0, len(indices), STORED_AT_ONCE):
            some = indices[start : start + STORED_AT_ONCE]
            values = stored(some).to(self._device)
            features.append(flatten_features(values).float().cpu())
            logits.append(last(values).float().cpu())
            advance(len(some))
        return torch.cat(features), torch.cat(logits)

    @torch.inference_mode()
    def _of(self, batches: Iterator[Tensor], advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        features, logits = [], []
        for batch in batches:
            made = self._network(batch.to(self._device).contiguous())
            one, other = (made, made) if self._split is None else made
            features.append(one.float().cpu())
            logits.append(other.float().cpu())
            advance(len(batch))
        return torch.cat(features), torch.cat(logits)
