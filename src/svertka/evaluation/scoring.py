"""Run a classifier over labelled pictures and count."""

from dataclasses import dataclass
from os import PathLike, fspath

import numpy as np
import torch
from torch import nn

from svertka import distributed
from svertka.classifier import Classifier
from svertka.data.batches import Batches
from svertka.data.dataset import PARTS, Dataset, Ints
from svertka.data.pictures import Rows, prepare
from svertka.data.preprocess import Preprocess
from svertka.data.sources import open_source
from svertka.data.split import split
from svertka.device import autocast, choose_device, set_threads
from svertka.errors import DataError, RunError, UsageError
from svertka.evaluation.metrics import Evaluation, Tally
from svertka.models.imagenet import name_of
from svertka.progress import progress
from svertka.run import Run


@torch.inference_mode()
def score(network: nn.Module, batches: Batches, names: tuple[str, ...], title: str | None = None) -> Evaluation:
    """What `network` does on `batches`, all processes together; it is left in evaluation mode.

    `title`: of the progress shown; None shows none.
    """
    network.eval()
    tally = Tally(len(names))
    with progress(title or "", batches.steps if title else 0) as shown:
        for batch in batches.epoch(0):
            with autocast(batch.images.device):
                logits = network(batch.images)
            tally.update(logits, batch.labels, torch.from_numpy(batch.indices))
            shown.advance()
    return tally.total().result(names)


def evaluate(
    run: str | PathLike[str],
    source: str | PathLike[str],
    *,
    part: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
) -> Evaluation:
    """How the classifier of `run` does on the pictures of `source`.

    `run`: a run folder, or a network with its weights, as for `Classifier.load`.
    `part`: "train", "val", "test" or "all"; None is the test part where there is one, then the val part, then all.
    The parts of the source that the run was trained on are those of that training.

    Raises:
        DataError: the source holds classes that the run does not know.
        RunError: the run is missing or damaged.
        UsageError: the source has no such part, or there are no such weights.
    """
    place = choose_device(device)
    count = set_threads(threads)
    classifier = Classifier.load(run, place)
    dataset = with_names_of(classifier.names, open_source(fspath(source), to_train=False))
    chosen = select(run, dataset, classifier.preprocess, part, threads=count, cache_limit=cache_limit)
    batches = Batches(
        chosen.rows,
        dataset.labels,
        chosen.indices,
        classifier.preprocess,
        batch_size=batch_size,
        device=place,
        rank=distributed.rank(),
        world=distributed.world(),
    )
    return score(classifier.network, batches, classifier.names, "evaluating")


@dataclass(frozen=True, eq=False)
class Selection:
    """The pictures of a data set that are looked at: the readable ones of one part.

    `rows`: the squares of the whole data set. `indices`: (N,) of the pictures chosen, and `digests`: of their contents.
    """

    rows: Rows
    indices: Ints
    digests: list[bytes]


def select(
    run: str | PathLike[str],
    dataset: Dataset,
    preprocess: Preprocess,
    part: str | None,
    *,
    threads: int,
    cache_limit: int | None = None,
) -> Selection:
    """The pictures of `part` of `dataset`, as for `evaluate`; each is decoded, the unreadable are left out.

    Raises:
        DataError: none can be read.
        UsageError: there is no such part.
    """
    prepared = prepare(
        dataset,
        preprocess.resize,
        preprocess.channels,
        pad_to=preprocess.size,
        threads=threads,
        cache_limit=cache_limit,
    )
    good = np.array([i for i in range(len(dataset)) if i not in prepared.bad], dtype=np.int64)
    if not len(good):
        raise DataError(f"{dataset.source}: no picture can be read; see `svertka check {dataset.source}`")
    chosen = good[_chosen(Run(run), dataset.take(good), [prepared.digests[i] for i in good], part)]
    return Selection(prepared.rows, chosen, [prepared.digests[i] for i in chosen])


def with_names_of(names: tuple[str, ...], dataset: Dataset) -> Dataset:
    """`dataset` with its labels counted in `names`; the pictures stay where they are.

    A class of ImageNet may be called by its name or, as in ImageNet's own folders, by its WordNet id.

    Raises:
        DataError: a class that has pictures is not among `names`.
    """
    place = {name_of(name): index for index, name in enumerate(names)}
    place |= {name: index for index, name in enumerate(names)}
    place |= {name: place[name_of(name)] for name in dataset.names if name not in place and name_of(name) in place}
    counts = dataset.counts()
    unknown = [name for name, count in zip(dataset.names, counts, strict=True) if count and name not in place]
    if unknown:
        few = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        raise DataError(
            f"{dataset.source} holds classes that the run does not know: {few}; it knows {', '.join(names[:5])}"
            + (" …" if len(names) > 5 else "")
        )
    labels = np.array([place.get(name, 0) for name in dataset.names], dtype=np.int64)[dataset.labels]
    return Dataset(dataset.source, names, dataset.pictures, labels, dataset.parts)


def _chosen(run: Run, dataset: Dataset, digests: list[bytes], part: str | None) -> Ints:
    shares = _shares(run, dataset.source)
    parts = split(digests, dataset.labels, dataset.parts, *shares)
    everything = np.arange(len(dataset), dtype=np.int64)
    if part is None:
        return next((parts[name] for name in ("test", "val") if len(parts[name])), everything)
    if part not in (*PARTS, "all"):
        raise UsageError(f"part={part} is not a part; use train, val, test or all")
    chosen = everything if part == "all" else parts[part]
    if not len(chosen):
        raise UsageError(f"{dataset.source} has no {part} part; leave --part out to score all its pictures")
    return chosen


def _shares(run: Run, source: str) -> tuple[float, float]:
    """The val and test shares with which the run split `source`; none if it was trained on something else."""
    try:
        settings = run.settings()
    except RunError:  # a Classifier saved by itself
        return 0.0, 0.0
    return (settings["val"], settings["test"]) if settings.get("source") == source else (0.0, 0.0)
