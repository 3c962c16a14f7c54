"""The pass over the pictures, remembered while the rest of an atlas is not done."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from svertka.errors import RunError
from svertka.inspection.atlas.inputs import AtlasInputs
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.maximally_activating_patches import LayerPatches, top_patches
from svertka.progress import progress
from svertka.tensor_files import read_tensors, write_tensors

PASS_FILE = "found.safetensors"


@dataclass(frozen=True, eq=False)
class DatasetPass:
    """What excites the units of each layer, by its name; `per_picture`: seconds that the pass took for each."""

    found: dict[str, LayerPatches]
    per_picture: float


def run_dataset_pass(subject: AtlasInputs, parts: ResumableFolder, layers: Sequence[str]) -> DatasetPass:
    """The pass over the pictures of `subject`; if it was made before, it is read from `parts`.

    Raises:
        UsageError: a layer has no maps, or the network does not take such pictures.
        StorageError: the disk is full or the folder cannot be written.
    """
    path = parts.folder / PASS_FILE
    if PASS_FILE in parts:
        try:
            tensors, header = read_tensors(path)
            return DatasetPass({name: _read(name, tensors, header[name]) for name in layers}, header["per_picture"])
        except (RunError, KeyError, TypeError):
            pass  # damaged: the pass is made again
    began = time.monotonic()
    batches = subject.batches()
    with progress("looking", batches.steps) as shown:

        def told() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            # Without their indices, so that pictures are counted as they come.
            for batch in batches.epoch(0):
                yield batch.images, batch.labels
                shown.advance()

        found = top_patches(subject.classifier.network, told(), layers)
    done = DatasetPass(found, (time.monotonic() - began) / len(subject))
    kept: dict[str, torch.Tensor] = {}
    others: dict[str, Any] = {"per_picture": done.per_picture}
    for name, one in found.items():
        values = {field.name: getattr(one, field.name) for field in fields(one)}
        arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
        kept |= {f"{name}/{key}": torch.from_numpy(value) for key, value in arrays.items()}
        others[name] = {key: value for key, value in values.items() if key not in arrays}
    write_tensors(path, kept, others)
    return done


def _read(name: str, tensors: dict[str, torch.Tensor], others: dict[str, Any]) -> LayerPatches:
    values: dict[str, Any] = others | {"feature_map_size": tuple(others["feature_map_size"])}
    start = f"{name}/"
    values |= {key.removeprefix(start): one.numpy() for key, one in tensors.items() if key.startswith(start)}
    return LayerPatches(**values)
