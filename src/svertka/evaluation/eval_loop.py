"""A network over batches, counted; and the labels of a data set as a network counts them."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from svertka.data.dataset import Dataset
from svertka.data.folder_layout import alike
from svertka.data.imagenet import name_of
from svertka.data.loader import Batches
from svertka.device import autocast
from svertka.errors import DataError
from svertka.escaping import few
from svertka.evaluation.metrics import Evaluation, Tally
from svertka.progress import progress

NAMED = 5  # classes in a sentence


@torch.inference_mode()
def score(network: nn.Module, batches: Batches, names: tuple[str, ...], title: str = "scoring") -> Evaluation:
    """What `network` does on `batches`, all processes together; it is left in evaluation mode.

    `title`: of the progress shown.
    """
    network.eval()
    tally = Tally(len(names))
    with progress(title, batches.steps) as shown:
        for batch in batches.epoch(0):
            if len(batch.labels):  # of a small last batch another process may have all
                with autocast(batch.images.device):
                    logits = network(batch.images)
                tally.update(logits, batch.labels, torch.from_numpy(batch.indices))
            shown.advance()
    return tally.total().result(names)


def with_names_of(names: tuple[str, ...], dataset: Dataset) -> Dataset:
    """`dataset` with its labels counted in `names`; the pictures stay where they are.

    A class of ImageNet may be called by its name or, as in ImageNet's own folders, by its WordNet id; any class
    otherwise in case, spaces and dashes, which is said.

    Raises:
        DataError: a class that has pictures is not among `names`.
    """
    place = {name_of(name): index for index, name in enumerate(names)}
    place |= {name: index for index, name in enumerate(names)}
    place |= {name: place[name_of(name)] for name in dataset.names if name not in place and name_of(name) in place}
    near = [alike(name) for name in names]
    written_otherwise = {
        name: near.index(alike(name)) for name in dataset.names if name not in place and near.count(alike(name)) == 1
    }
    place |= written_otherwise
    counts = dataset.counts()
    unknown = [name for name, count in zip(dataset.names, counts, strict=True) if count and name not in place]
    if unknown:
        raise DataError(
            f"{dataset.source} holds classes that the run does not know: {few([*map(_named, unknown)], NAMED)}; "
            f"it knows {few([*map(_named, names)], NAMED)}"
        )
    labels = np.array([place.get(name, 0) for name in dataset.names], dtype=np.int64)[dataset.labels]
    notes = [f"the class {name} is taken for {names[index]}" for name, index in written_otherwise.items()]
    account = replace(dataset.account, notes=(*dataset.account.notes, *notes))
    return replace(dataset, names=names, labels=labels, account=account)


def _named(name: str) -> str:
    """The class `name`, after a WordNet id with what it is called."""
    known = name_of(name)
    return name if known == name else f"{name} ({known})"
