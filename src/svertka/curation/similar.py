"""similar(): the images of a source that resemble an image most, by the features of a network."""

from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from svertka.classifier import Classifier
from svertka.curation.unreadable_images import describe_unreadable, name_unreadable
from svertka.data.builtin import NAMES
from svertka.data.content_hash import hash_images
from svertka.data.dataset import Dataset, Images
from svertka.data.folder_and_table_sources import list_folder
from svertka.data.image_io import DecodingOptions
from svertka.data.label_tables import parse_columns
from svertka.data.preprocessing import ImageLike
from svertka.data.shard_storage import is_shard_source
from svertka.data.source_opener import Source, is_path, open_source
from svertka.data.unlabeled_images import UNLABELED, open_unlabeled
from svertka.device import choose_device, network_device, set_threads, with_preserved_settings
from svertka.errors import DataError, ImageError, UsageError
from svertka.escaping import escape_undecodable, join_first
from svertka.evaluation.evaluation_scope import format_image_count
from svertka.evaluation.held_out import compute_content_hash
from svertka.files import parse_cache_limit_option, parse_path
from svertka.pages.notebook_block import THUMBNAIL_SIDE, NotebookBlock, Thumbnail, thumbnail_uri
from svertka.transfer.image_features import ImageFeatures, compute_features, scale_to_unit_length
from svertka.transfer.logistic_and_nearest_mean_heads import Floats
from svertka.type_checking import check_types


@dataclass(frozen=True)
class SimilarImage:
    """An image that resembles the one that was given.

    Attributes:
        path: Its path.
        label: Its class, labels or number; None if the source has no labels.
        similarity: Cosine of the features of both, −1 to 1.
        index: Index in the source.
    """

    path: str
    label: str | None
    similarity: float
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns:
            The keys path, label and similarity.
        """
        return {"path": self.path, "label": self.label, "similarity": self.similarity}


@dataclass(frozen=True, repr=False)
class SimilarImages:
    """The images of a source that resemble an image most.

    Attributes:
        run: The run whose features were compared.
        image: The image, as it was named.
        source: The source.
        images: The most similar images, the most similar first.
        compared: Number of images of the source that were compared.
        copies: Paths of images of the source that are the image itself, and are not among `images`.
        bad: Path and reason of each unreadable image of the source.
        pixels: The images of the source, which a notebook shows; None if they are not kept.
    """

    run: str
    image: str
    source: str
    images: tuple[SimilarImage, ...]
    compared: int
    copies: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    pixels: Images | None = field(default=None, compare=False)

    def sentences(self) -> list[str]:
        """Return what was compared, a sentence each.

        Returns:
            The counts, the copies of the image, and the images that could not be read.
        """
        found = [f"the {len(self.images):,} most similar of {format_image_count(self.compared)}, by {self.run}"]
        if self.copies:
            found.append(f"{self.image} itself is in {self.source}: {join_first(self.copies)}")
        return [*found, *describe_unreadable(self.bad)]

    def __repr__(self) -> str:
        return f"SimilarImages({self.image!r}: {self.sentences()[0]})"

    def _repr_html_(self) -> str:
        thumbnails = [
            Thumbnail(self._address(one.index), (one.path, f"{one.similarity:.3f}", *filter(None, [one.label])))
            for one in self.images
        ]
        return NotebookBlock(f"images similar to {self.image}", self.sentences(), thumbnails=thumbnails).render()

    def _address(self, index: int) -> str | None:
        """Return the `data:` URI of a thumbnail; None if the image cannot be read any more."""
        try:
            return None if self.pixels is None else thumbnail_uri(self.pixels.read(index, THUMBNAIL_SIDE))
        except ImageError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka similar --json` prints them.

        Returns:
            The keys run, image, source, images, compared, copies and bad.
        """
        return {
            "run": self.run,
            "image": self.image,
            "source": self.source,
            "images": [one.to_dict() for one in self.images],
            "compared": self.compared,
            "copies": list(self.copies),
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad],
        }


@check_types
@with_preserved_settings
def similar(
    run: str | PathLike[str],
    image: ImageLike,
    source: Source,
    *,
    count: int = 12,
    columns: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> SimilarImages:
    """Find the images of a source that resemble an image most, by the cosine of the features of a network.

    Features of the source are computed once and stored.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`. Its features are compared.
        image: The image: a path, a PIL image, or an array (H, W) or (H, W, 3) uint8.
        source: The images to search: labeled ones, as for `train`, or a folder of images without labels.
        count: Number of images to return, at least 1.
        columns: Columns of a table that contain paths and labels, such as "path=file,label=class".
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, and of stored features, GB (10⁹ bytes) each. None: a share of the
            free disk.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The most similar images, with their labels where the source has some. The image itself is not among them.

    Raises:
        UsageError: There is no such source, `count` is below 1, or the network computes no features.
        RunError: The run is missing or damaged.
        ImageError: The image cannot be read.
        DataError: The source holds no other image that can be read.
    """
    if count < 1:
        raise UsageError(f"count={count} must be at least 1")
    place, workers, limit = choose_device(device), set_threads(threads), parse_cache_limit_option(cache_limit)
    classifier = Classifier.load(run, place, trust_builder=trust_builder)
    decoding = DecodingOptions.up_to(max_pixels)
    name = escape_undecodable(fspath(image)) if isinstance(image, str | PathLike) else "the image"
    try:
        pixels = classifier.preprocess(image, decoding)
        content = compute_content_hash(image)
    except ImageError as error:
        raise type(error)(f"{name} cannot be read: {error}") from error
    dataset = _open(source, columns).with_decoding(decoding).with_intensity_range(classifier.preprocess.intensity_range)
    contents, unreadable = hash_images(dataset.images, workers)
    copies = [index for index, one in enumerate(contents) if content and one == content]
    searched = np.setdiff1d(np.arange(len(contents)), [*copies, *unreadable]).astype(np.int64)
    features = compute_features(
        classifier, classifier.preprocess, dataset, searched, threads=workers, cache_limit=limit
    )
    bad = unreadable | features.bad
    if not len(features.indices):
        raise DataError(f"{dataset.source} holds no other image that can be read; give a folder of several")
    with threadpool_limits(workers):
        images = _find_nearest(_features_of(features, pixels), features, dataset, count)
    return SimilarImages(
        run=classifier.origin,
        image=name,
        source=dataset.source,
        images=images,
        compared=len(features.indices),
        copies=tuple(escape_undecodable(dataset.images.name(index)) for index in copies),
        bad=name_unreadable(dataset, bad),
        pixels=dataset.images,
    )


def _open(source: Source, columns: str | None) -> Dataset:
    """Open labeled images, or a folder of images that has none with labels."""
    if is_path(source) and is_shard_source(source):
        return open_source(source, to_train=False, columns=columns)
    if is_path(source) and fspath(source) not in NAMES and (folder := parse_path(source)).is_dir():
        listing = list_folder(folder, parse_columns(columns))
        return listing.dataset() if listing.entries else open_unlabeled(source)
    return open_source(source, to_train=False, columns=columns)


@torch.inference_mode()
def _features_of(features: ImageFeatures, pixels: torch.Tensor) -> Floats:
    """Return the features (1, D) of a preprocessed image (C, H, W)."""
    place = network_device(features.classifier.network) or torch.device("cpu")
    found: Floats = features.partial.frozen(pixels[None].to(place)).float().cpu().numpy().reshape(1, -1)
    return found


def _find_nearest(wanted: Floats, features: ImageFeatures, dataset: Dataset, count: int) -> tuple[SimilarImage, ...]:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(count, len(features.indices)), metric="cosine", algorithm="brute")
    distances, places = index.fit(scale_to_unit_length(features.values)).kneighbors(scale_to_unit_length(wanted))
    has_labels = dataset.names != (UNLABELED,)
    return tuple(
        SimilarImage(
            path=escape_undecodable(dataset.images.name(number)),
            label=dataset.label_text(number) if has_labels else None,
            similarity=1 - distance,
            index=number,
        )
        for number, distance in zip(features.indices[places[0]].tolist(), distances[0].tolist(), strict=True)
    )
