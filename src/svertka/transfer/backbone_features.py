"""Features of the images of a data set, from a frozen pretrained network."""

from dataclasses import dataclass

import numpy as np

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints
from svertka.data.image_disk_cache import prepare_images
from svertka.data.loader import BatchLoader
from svertka.device import choose_device, set_threads
from svertka.models.head_kinds import head_path
from svertka.models.published_weights import BACKBONE
from svertka.transfer.feature_cache import cache_features, feature_batch_size
from svertka.transfer.freeze import split_before_head
from svertka.transfer.logistic_and_nearest_mean_heads import Floats, collect_feature_batches


@dataclass(frozen=True, eq=False)
class BackboneFeatures:
    """Features of some images of a data set.

    Attributes:
        indices: Indices of the images, (N,) int64, ascending.
        values: Their features, (N, D) float32.
        backbone: The network and its weights, such as "efficientnet_lite0:bundled".
    """

    indices: Ints
    values: Floats
    backbone: str


def compute_backbone_features(
    dataset: Dataset,
    indices: Ints,
    backbone: tuple[str, str] = BACKBONE,
    *,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
) -> BackboneFeatures:
    """Compute the features of the images at `indices`, or read them from the feature cache.

    Args:
        dataset: The images.
        indices: Indices of the images, (n,) int64; unreadable ones are left out.
        backbone: Network of svertka's registry, and the name of its published weights.
        device: Device of the backbone.
        threads: CPU threads. None: all cores.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.

    Raises:
        UsageError: There is no such device, or there are too many threads.
        SvertkaError: The weights cannot be read.
    """
    place, threads = choose_device(device), set_threads(threads)
    name = ":".join(backbone)
    classifier = Classifier.load(name, place)
    preprocess = classifier.preprocess.model_copy(update={"intensity_range": None})
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
    batches = BatchLoader(
        prepared.rows,
        dataset.labels,
        readable,
        preprocess,
        batch_size=feature_batch_size(preprocess.size),
        device=place,
    )
    partial = split_before_head(classifier.network, head_path(classifier.model), preprocess.input_shape)
    assert partial is not None  # the network is svertka's own
    if place.type == "cpu":
        partial.frozen.optimize(preprocess.input_shape[1:], len(readable))
    cached = cache_features(batches, partial.frozen, partial.shape, prepared.digests, limit=cache_limit)
    values, _ = collect_feature_batches(cached)
    return BackboneFeatures(readable, values.reshape(len(readable), -1), name)
