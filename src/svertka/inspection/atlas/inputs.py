"""What is looked at: a network and the pictures that it is shown."""

import hashlib
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch

from svertka.classifier import Classifier
from svertka.data.dataset import Dataset, Ints, Pixels
from svertka.data.image_cache import Rows
from svertka.data.image_io import Decoding
from svertka.data.imagenet import name_of
from svertka.data.loader import Batches
from svertka.data.sources import open_source
from svertka.errors import DataError, FetchError, RunError, UsageError
from svertka.escaping import command
from svertka.evaluation.evaluated_images import EvaluationScope
from svertka.evaluation.held_out import select_images
from svertka.run import Run, training_boxes, training_columns

BATCH_SIZE = 32  # pictures a batch; more would set the peak of memory


@dataclass(frozen=True, eq=False)
class AtlasInputs:
    """A classifier and pictures for it.

    `trained_on`: the source of its run; None for a network of the zoo. `dataset`: the pictures looked at alone, in the
    order in which they are; its labels are the source's, which the classifier need not know. `rows`, `indices`: where
    their squares are; `digests`: of their contents. `scope`: which images of the source these are.
    """

    classifier: Classifier
    trained_on: str | None
    dataset: Dataset
    rows: Rows
    indices: Ints
    digests: list[bytes]
    scope: EvaluationScope

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def size(self) -> int:
        """Side of the pictures as the network sees them, pixels."""
        return self.classifier.preprocess.size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one picture as the network takes it, (1, C, H, W)."""
        return self.classifier.preprocess.input_shape

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.classifier.network.parameters()).device

    def batches(self, indices: Ints | None = None) -> Batches:
        """The pictures at `indices` (None: all) as the network takes them, in order, with their labels."""
        chosen = self.indices if indices is None else self.indices[indices]
        labels = np.zeros(len(self.rows), np.int64)
        labels[self.indices] = self.dataset.labels
        return Batches(
            self.rows,
            labels,
            chosen,
            self.classifier.preprocess,
            batch_size=BATCH_SIZE,
            device=self.device,
            memory_format=torch.channels_last,
            prefetch=True,
        )

    def images(self, indices: Ints) -> torch.Tensor:
        """Those at `indices` as the network takes them, (N, C, size, size) float32."""
        squares = torch.from_numpy(self.rows[self.indices[indices]]).to(self.device).permute(0, 3, 1, 2)
        return self.classifier.preprocess.normalise(squares)

    def pictures(self, indices: Ints) -> Pixels:
        """The same as they are looked at, (N, size, size, 1 | 3) uint8: what the network sees of them."""
        squares = self.rows[self.indices[indices]]
        offset = (squares.shape[1] - self.size) // 2
        return squares[:, offset : offset + self.size, offset : offset + self.size]

    def name(self, index: int) -> str:
        """What to call a picture: the end of its path, or the source and its number."""
        name = self.dataset.pictures.name(index)
        return "/".join(Path(name).parts[-2:])

    def identity(self, *asked: object) -> str:
        """A digest of the weights, the preprocessing, the pictures, and what was `asked` for."""
        sum_ = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.classifier.network.state_dict().items()):
            sum_.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        said = (self.classifier.config.model_dump_json(), self.dataset.names, self.dataset.labels.tolist(), asked)
        sum_.update(repr(said).encode(errors="surrogatepass") + b"".join(self.digests))
        return sum_.hexdigest()


def open_inputs(
    run: str | PathLike[str],
    source: str | PathLike[str] | None,
    *,
    pictures: int | None,
    include_training: bool = False,
    place: torch.device,
    threads: int,
    cache_limit: int | None,
    max_pixels: int | None = None,
) -> AtlasInputs:
    """The classifier of `run` with the test pictures it was trained beside, or with those of `source`.

    `pictures`: how many at most, drawn at random but always the same ones. `include_training`: as for `select`.
    `max_pixels`: of a picture that is read.

    Raises:
        UsageError: neither a run nor a source says which pictures; `pictures` below 1; no such source.
        DataError: there is no picture, or the run's own are gone. RunError: the run is missing or damaged.
    """
    if pictures is not None and pictures < 1:
        raise UsageError(f"pictures={pictures} must be at least 1")
    classifier = Classifier.load(run, place)
    trained_on = _training_source(run)
    dataset = _open_dataset(run, source, trained_on).decoded_as(Decoding.up_to(max_pixels))
    names = tuple(name_of(name) for name in dataset.names)
    dataset = Dataset(dataset.source, names, dataset.pictures, dataset.labels, dataset.parts)
    chosen = select_images(
        [run],
        dataset,
        classifier.preprocess,
        None,
        include_training=include_training,
        threads=threads,
        cache_limit=cache_limit,
    )
    kept = np.arange(len(chosen.indices))
    if pictures is not None and pictures < len(kept):
        kept = np.sort(np.random.default_rng(0).permutation(kept)[:pictures])
    indices = chosen.indices[kept]
    digests = [chosen.digests[i] for i in kept]
    return AtlasInputs(classifier, trained_on, dataset.take(indices), chosen.rows, indices, digests, chosen.scope)


def _training_source(run: str | PathLike[str]) -> str | None:
    try:
        return str(Run(run).settings()["source"])
    except (RunError, KeyError):  # of the zoo, or a classifier saved by itself
        return None


def _suggested_command(run: str | PathLike[str]) -> str:
    """The command line that looks at `run` with images that are still to be named."""
    return f"{command('look', Path(run))} SOURCE"


def _open_labelled(run: str | PathLike[str], source: str) -> Dataset:
    """The images of `source`, labelled as for the training of `run`."""
    return open_source(source, to_train=False, columns=training_columns(run, source), boxes=training_boxes(run, source))


def _open_dataset(run: str | PathLike[str], source: str | PathLike[str] | None, trained_on: str | None) -> Dataset:
    if source is not None:
        return _open_labelled(run, fspath(source))
    if trained_on is None:
        raise UsageError(f"say which pictures to look at: {_suggested_command(run)}")
    try:
        return _open_labelled(run, trained_on)
    except (UsageError, DataError, FetchError) as error:
        raise DataError(
            f"the pictures that {fspath(run)} was trained on are gone ({error}); give others: {_suggested_command(run)}"
        ) from error
