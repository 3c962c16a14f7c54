"""The classifier and the images that an atlas is built from."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from torch import nn

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints, Pixels
from svertka.data.image_disk_cache import SquareImages
from svertka.data.image_io import DecodingOptions
from svertka.data.imagenet import find_class_name
from svertka.data.loader import BatchLoader
from svertka.errors import DataError, FetchError, RunError, UsageError
from svertka.escaping import format_command, join_first, to_printable
from svertka.evaluation.evaluation_scope import NAMED, PART_ADJECTIVES, EvaluationScope, format_image_count
from svertka.evaluation.held_out import select_held_out_images
from svertka.pages.inline_images import show_bands
from svertka.run import Run, open_source_as_in_training

BATCH_SIZE = 32  # images; a larger batch would determine peak memory


@dataclass(frozen=True, eq=False)
class AtlasInputs:
    """A classifier and images for it.

    Attributes:
        classifier: The classifier with its preprocessing.
        training_source: The source of its run; None with pretrained weights.
        dataset: The selected images in order. Its labels are the source's, which the classifier need not know.
        rows: The decoded squares of all images.
        indices: (N,), the row of each selected image.
        digests: Hashes of the selected images' contents.
        scope: Which images of the source are selected.
    """

    classifier: Classifier
    training_source: str | None
    dataset: Dataset
    rows: SquareImages
    indices: Ints
    digests: list[bytes]
    scope: EvaluationScope

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_size(self) -> int:
        """Side of the network's input, pixels."""
        return self.classifier.preprocess.size

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of one image as network input, (1, C, H, W)."""
        return self.classifier.preprocess.input_shape

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.classifier.network.parameters()).device

    @property
    def shown(self) -> str:
        """Which images are shown, and which are left out, in words."""
        scope = self.scope
        kind = "all images" if scope.part == "all" else f"{PART_ADJECTIVES[scope.part]}images"
        said = [f"shown: {scope.source}, {kind}"]
        if scope.training_images and not scope.includes_training:
            left_out = format_image_count(scope.training_images)
            said.append(f"{left_out} that trained the network left out (name SOURCE to see all of it)")
        if scope.unread:
            named = join_first(
                [f"{to_printable(path)}: {to_printable(reason)}" for path, reason in scope.unread], NAMED, "; "
            )
            said.append(f"{format_image_count(scope.unreadable)} could not be read ({named})")
        return "; ".join((*said, *([scope.note] if scope.note else []), *scope.account.sentences()))

    def batches(self, indices: Ints | None = None) -> BatchLoader:
        """Return the images at `indices` (None for all) as network input, in order, with their labels."""
        chosen = self.indices if indices is None else self.indices[indices]
        given = self.dataset.labels
        labels = np.zeros((len(self.rows), *given.shape[1:]), given.dtype)
        labels[self.indices] = given
        return BatchLoader(
            self.rows,
            labels,
            chosen,
            self.classifier.preprocess,
            batch_size=BATCH_SIZE,
            device=self.device,
            memory_format=torch.channels_last,
            prefetch=True,
        )

    def network_inputs(self, indices: Ints) -> torch.Tensor:
        """Return the images at `indices` as network input, (N, C, size, size) float32, normalized."""
        squares = torch.from_numpy(self.rows[self.indices[indices]]).to(self.device).permute(0, 3, 1, 2)
        return self.classifier.preprocess.normalize(squares)

    def pixels(self, indices: Ints) -> Pixels:
        """Return the same images before normalization as they are shown, (N, size, size, 1 | 3) uint8."""
        squares: Pixels = show_bands(self.rows[self.indices[indices]])
        offset = (squares.shape[1] - self.image_size) // 2
        return squares[:, offset : offset + self.image_size, offset : offset + self.image_size]

    @property
    def strata(self) -> Ints:
        """The class of each image, its rarest label, or the quantile of its number, (N,)."""
        return self.dataset.task.strata(self.dataset.labels)

    @cached_property
    def shown_labels(self) -> tuple[tuple[str, ...], Ints]:
        """What the images are labeled with, in words, and the number of each image's text, (N,).

        The first texts are the names of classes or labels.
        """
        dataset = self.dataset
        if dataset.task.is_single_label:
            return dataset.names, dataset.labels
        texts = [dataset.label_text(index) or "no label" for index in range(len(dataset))]
        number: dict[str, int] = {}
        for text in (*dataset.names, *texts):
            number.setdefault(text, len(number))
        return tuple(number), np.array([number[text] for text in texts], np.int64)

    def image_name(self, index: int) -> str:
        """Return the last two parts of an image's path, or its source and number."""
        name = self.dataset.images.name(index)
        return "/".join(Path(name).parts[-2:])

    def fingerprint(self, *options: object) -> str:
        """Return a hash of the weights, the preprocessing, the images, their labels and `options`."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.classifier.network.state_dict().items()):
            content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            digest.update(name.encode() + content)
        config = self.classifier.config.model_dump_json()
        described = (config, self.dataset.names, self.dataset.labels.tolist(), options)
        digest.update(repr(described).encode(errors="surrogatepass") + b"".join(self.digests))
        return digest.hexdigest()


def open_atlas_inputs(
    run: str | PathLike[str] | Classifier | nn.Module,
    source: str | PathLike[str] | None,
    *,
    images: int | None,
    part: str | None = None,
    device: torch.device,
    threads: int,
    cache_limit: int | None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> AtlasInputs:
    """Load the classifier of `run` and open the images of `source`, or the test set of the run.

    Args:
        run: As for `Classifier.open`.
        source: As for `train`. None: the source of the run.
        images: Maximum number of images, drawn at random with a fixed seed. None: all.
        part: "train", "val", "test" or "all". None: all images of `source`, or the test set of the run.
        device: Device of the network.
        threads: Threads that decode images.
        cache_limit: Size limit of the image cache, bytes.
        max_pixels: Largest image that is decoded, pixels. None: `image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Raises:
        UsageError: No source is known, or it does not exist; `images` is below 1.
        DataError: There are no images, or the source of the run no longer exists.
        RunError: The run is missing or damaged.
    """
    if images is not None and images < 1:
        raise UsageError(f"images={images} must be at least 1")
    classifier = Classifier.open(run, device, trust_builder=trust_builder)
    origin = classifier.origin
    training_source = _training_source(origin)
    dataset = _open_dataset(origin, source, training_source).with_decoding(DecodingOptions.up_to(max_pixels))
    names = tuple(find_class_name(name) for name in dataset.names)
    if dataset.task.kind != classifier.task.kind:
        raise DataError(
            f"{origin} predicts {classifier.task.phrase}, and {dataset.source} has {dataset.task.phrase}; give images "
            "labeled in the same way"
        )
    dataset = replace(dataset, names=names)
    selected = select_held_out_images(
        [origin],
        dataset,
        classifier.preprocess,
        part or ("all" if source is not None else None),
        include_training=part == "all" or (part is None and source is not None),
        threads=threads,
        cache_limit=cache_limit,
    )
    kept = np.arange(len(selected.indices))
    if images is not None and images < len(kept):
        kept = np.sort(np.random.default_rng(0).permutation(kept)[:images])
    indices = selected.indices[kept]
    digests = [selected.digests[index] for index in kept]
    return AtlasInputs(
        classifier, training_source, dataset.take(indices), selected.rows, indices, digests, selected.scope
    )


def _training_source(run: str | PathLike[str]) -> str | None:
    try:
        return str(Run(run).settings()["source"])
    except (RunError, KeyError):  # pretrained weights, or a classifier saved by itself
        return None


def _suggested_command(run: str | PathLike[str]) -> str:
    return f"{format_command('look', Path(run))} SOURCE"


def _open_labeled(run: str | PathLike[str], source: str) -> Dataset:
    """Open `source` with labels as in the training of `run`."""
    return open_source_as_in_training(run, source)


def _open_dataset(run: str | PathLike[str], source: str | PathLike[str] | None, training_source: str | None) -> Dataset:
    if source is not None:
        return _open_labeled(run, fspath(source))
    if training_source is None:
        raise UsageError(f"{fspath(run)} has no images of its own; name a source: {_suggested_command(run)}")
    try:
        return _open_labeled(run, training_source)
    except (UsageError, DataError, FetchError) as error:
        raise DataError(
            f"cannot open the images that {fspath(run)} was trained on ({error}); name another source: "
            f"{_suggested_command(run)}"
        ) from error
