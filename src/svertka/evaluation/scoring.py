"""A network over batches, counted; and which pictures of a data set a run is judged on."""

from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch
from torch import nn

from svertka.data.batches import Batches
from svertka.data.dataset import Dataset, Ints
from svertka.data.pictures import Rows, prepare
from svertka.data.preprocess import Preprocess
from svertka.data.split import split
from svertka.device import autocast
from svertka.errors import DataError, RunError, UsageError
from svertka.evaluation.metrics import Evaluation, Tally
from svertka.models.imagenet import name_of
from svertka.progress import progress
from svertka.run import Run


@torch.inference_mode()
def score(network: nn.Module, batches: Batches, names: tuple[str, ...], title: str = "scoring") -> Evaluation:
    """What `network` does on `batches`, all processes together; it is left in evaluation mode.

    `title`: of the progress shown.
    """
    network.eval()
    tally = Tally(len(names))
    with progress(title, batches.steps) as shown:
        for batch in batches.epoch(0):
            with autocast(batch.images.device):
                logits = network(batch.images)
            tally.update(logits, batch.labels, torch.from_numpy(batch.indices))
            shown.advance()
    return tally.total().result(names)


@dataclass(frozen=True, eq=False)
class Selection:
    """The pictures of a data set that are looked at: the readable ones of one part.

    `rows`: the squares of the whole data set. `part`: which it is. `indices`: (N,) of the pictures chosen, and
    `digests`: of their contents.
    """

    rows: Rows
    part: str
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
    found, inside = _chosen(Run(run), dataset.take(good), [prepared.digests[i] for i in good], part)
    chosen = good[inside]
    return Selection(prepared.rows, found, chosen, [prepared.digests[i] for i in chosen])


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
    return replace(dataset, names=names, labels=labels)


def _chosen(run: Run, dataset: Dataset, digests: list[bytes], part: str | None) -> tuple[str, Ints]:
    shares = _shares(run, dataset.source)
    parts = split(digests, dataset.labels, dataset.parts, *shares)
    parts["all"] = np.arange(len(dataset), dtype=np.int64)
    if part is None:
        part = next(name for name in ("test", "val", "all") if len(parts[name]))
    if part not in parts:
        raise UsageError(f"part={part} is not a part; use train, val, test or all")
    if not len(parts[part]):
        raise UsageError(f"{dataset.source} has no {part} part; leave --part out to score all its pictures")
    return part, parts[part]


def _shares(run: Run, source: str) -> tuple[float, float]:
    """The val and test shares with which the run split `source`; none if it was trained on something else."""
    try:
        settings = run.settings()
    except RunError:  # a Classifier saved by itself
        return 0.0, 0.0
    return (settings["val"], settings["test"]) if settings.get("source") == source else (0.0, 0.0)
