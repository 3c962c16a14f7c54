"""Features that a network computes of single images right before its head, read from the feature cache if stored."""

from dataclasses import dataclass

import numpy as np
import torch

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints
from svertka.data.image_disk_cache import prepare_images
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.device import network_device
from svertka.errors import UsageError
from svertka.models.head_kinds import head_path
from svertka.transfer.feature_cache import cache_on_disk_or_in_memory, count_missing, feature_batch_size
from svertka.transfer.freeze import PartiallyFrozen, split_before_head
from svertka.transfer.logistic_and_nearest_mean_heads import Floats, collect_feature_batches

SCORED_AT_ONCE = 1024  # images whose features go through the head together


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of some images of a data set.

    Attributes:
        indices: Indices of the images, (N,) int64, ascending.
        values: Their features, (N, D) float32.
        bad: Index and reason of each image that cannot be read.
        classifier: The classifier whose network computed them.
        partial: Its network, divided before the head.
    """

    indices: Ints
    values: Floats
    bad: dict[int, str]
    classifier: Classifier
    partial: PartiallyFrozen

    @torch.inference_mode()
    def probabilities(self) -> Floats:
        """Return the probabilities that the head gives, (N, K) float32, or the number, (N, 1).

        Raises:
            RunError: The network gives NaN.
        """
        place = network_device(self.classifier.network) or torch.device("cpu")
        found = [torch.empty(0, len(self.classifier.names))]
        for some in torch.split(torch.from_numpy(self.values), SCORED_AT_ONCE):
            scores = self.partial.trainable(some.reshape(-1, *self.partial.shape).to(place))
            found.append(self.classifier.require_finite(self.classifier.task.activate(scores.float()).float().cpu()))
        return torch.cat(found).numpy()


def compute_features(
    classifier: Classifier,
    preprocess: Preprocess,
    dataset: Dataset,
    indices: Ints,
    *,
    threads: int,
    cache_limit: int | None = None,
) -> ImageFeatures:
    """Compute the features of the images at `indices`, or read them from the feature cache.

    Args:
        classifier: The classifier, on the device that computes.
        preprocess: Its preprocessing.
        dataset: The images.
        indices: Indices of the images, (n,) int64; unreadable ones are left out.
        threads: Threads for decoding.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.

    Raises:
        UsageError: The network cannot be divided before its head.
    """
    place = network_device(classifier.network) or torch.device("cpu")
    partial = split_before_head(classifier.network, head_path(classifier.model), preprocess.input_shape)
    if partial is None:
        raise UsageError(
            f"{classifier.origin} has no layer before its head, so that it computes no features; use a run of a "
            "network with several layers"
        )
    nothing = np.empty((0, int(np.prod(partial.shape))), np.float32)
    if not len(indices):
        return ImageFeatures(indices, nothing, {}, classifier, partial)
    prepared = prepare_images(
        dataset,
        preprocess.resize,
        preprocess.channels,
        preprocess.size,
        fit=preprocess.fit,
        interpolation=preprocess.interpolation,
        only=indices,
        threads=threads,
        cache_limit=cache_limit,
    )
    readable = np.array([index for index in indices.tolist() if index not in prepared.bad], dtype=np.int64)
    if not len(readable):
        return ImageFeatures(readable, nothing, prepared.bad, classifier, partial)
    batches = BatchLoader(
        prepared.rows,
        dataset.labels,
        readable,
        preprocess,
        batch_size=feature_batch_size(preprocess.size),
        device=place,
    )
    if place.type == "cpu":
        missing = count_missing(batches, partial.frozen, partial.shape, prepared.digests, limit=cache_limit)
        partial.frozen.optimize(preprocess.input_shape[1:], missing)
    cached = cache_on_disk_or_in_memory(batches, partial.frozen, partial.shape, prepared.digests, limit=cache_limit)
    values, _ = collect_feature_batches(cached)
    bad = prepared.bad | {index: reason for index, (_, reason) in cached.unreadable.items()}
    readable = readable[~np.isin(readable, list(bad))]  # in the order of the values
    return ImageFeatures(readable, values.reshape(len(readable), -1), bad, classifier, partial)


def scale_to_unit_length(features: Floats) -> Floats:
    """Return features (N, D) with a norm of 1 each; 0 stays 0."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)
