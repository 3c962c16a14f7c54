"""Features of the images of a data set, from a frozen pretrained network."""

from dataclasses import dataclass

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints
from svertka.device import choose_device, set_threads
from svertka.models.published_weights import BACKBONE
from svertka.transfer.image_features import compute_features
from svertka.transfer.logistic_and_nearest_mean_heads import Floats


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
    found = compute_features(classifier, preprocess, dataset, indices, threads=threads, cache_limit=cache_limit)
    return BackboneFeatures(found.indices, found.values, name)
