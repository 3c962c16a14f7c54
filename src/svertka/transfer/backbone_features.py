"""Features of the images of a data set, from a frozen pretrained network."""

from dataclasses import dataclass

import numpy as np

from svertka.classifier import Classifier, read_initial_weights
from svertka.data.band_ranges import BandRanges
from svertka.data.dataset import Dataset, Ints, get_decoding
from svertka.data.image_disk_cache import prepare_images
from svertka.data.pixel_statistics import measure_statistics
from svertka.data.preprocessing import Preprocess
from svertka.device import choose_device, set_threads
from svertka.models.published_weights import BACKBONE
from svertka.transfer.image_features import compute_features
from svertka.transfer.logistic_and_nearest_mean_heads import Floats

MEASURED = 256  # images of bands, by whose mean and standard deviation all are normalized


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
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Bytes of all cached features, and of all cached images. None: a share of the free disk.

    Raises:
        UsageError: There is no such device, or there are too many threads.
        SvertkaError: The weights cannot be read.
    """
    place, threads = choose_device(device), set_threads(threads)
    name = ":".join(backbone)
    classifier = Classifier.load(name, place)
    preprocess = classifier.preprocess.model_copy(update={"intensity_range": None})
    bands = get_decoding(dataset.images).bands
    if bands is not None and len(indices):
        preprocess = _with_bands(preprocess, bands, dataset, indices, threads)
        weights = read_initial_weights(classifier.model, backbone[1]).with_channels(len(bands))
        config = classifier.config.model_copy(update={"preprocess": preprocess})
        network = config.build()
        weights.load_into(network, config.names)
        classifier = Classifier(network.to(place).eval(), config, classifier.model, name)
    found = compute_features(classifier, preprocess, dataset, indices, threads=threads, cache_limit=cache_limit)
    return BackboneFeatures(found.indices, found.values, name)


def _with_bands(preprocess: Preprocess, bands: BandRanges, dataset: Dataset, indices: Ints, threads: int) -> Preprocess:
    """Return the preprocessing for images of bands, with their mean and standard deviation."""
    some = indices[np.linspace(0, len(indices) - 1, min(MEASURED, len(indices))).astype(np.int64)]
    rows = prepare_images(
        dataset,
        preprocess.resize,
        len(bands),
        preprocess.size,
        fit=preprocess.fit,
        interpolation=preprocess.interpolation,
        only=some,
        threads=threads,
    ).rows
    statistics = measure_statistics(rows, some)
    return preprocess.model_copy(update={"mean": statistics.mean, "std": statistics.std, "intensity_range": bands})
