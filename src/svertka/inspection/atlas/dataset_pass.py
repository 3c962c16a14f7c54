"""The forward pass over all images of an atlas, stored until the atlas is complete."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from svertka.errors import RunError
from svertka.inspection.atlas.classifier_and_images import AtlasInputs
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.maximally_activating_patches import LayerPatches, top_patches
from svertka.progress import progress
from svertka.tensor_files import read_tensors_and_header, write_tensors

PASS_FILE = "patches.safetensors"


@dataclass(frozen=True, eq=False)
class DatasetPassResult:
    """The result of a pass: the `patches` of each layer by its name, and `seconds_per_image`."""

    patches: dict[str, LayerPatches]
    seconds_per_image: float


def run_dataset_pass(inputs: AtlasInputs, folder: ResumableFolder, layers: Sequence[str]) -> DatasetPassResult:
    """Run all images through the network, or read the results of an earlier pass from `folder`.

    Raises:
        UsageError: A layer has no feature maps, or the network rejects the images.
        StorageError: The disk is full or the folder cannot be written.
    """
    path = folder.path / PASS_FILE
    if PASS_FILE in folder:
        try:
            tensors, header = read_tensors_and_header(path)
            patches = {name: _read_layer(name, tensors, header[name]) for name in layers}
            return DatasetPassResult(patches, header["seconds_per_image"])
        except (RunError, KeyError, TypeError):
            pass  # damaged: repeat the pass
    started = time.monotonic()
    batches, kind = inputs.batches(), inputs.classifier.task.kind
    with progress("finding patches", batches.steps, "batches") as shown:

        def with_progress() -> Iterator[torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
            # Without the batches' indices, so that `top_patches` numbers the images from 0.
            for batch in batches.epoch(0):
                if kind == "regression":  # a number is no class that units could prefer
                    yield batch.images
                else:
                    yield batch.images, batch.labels > 0.5 if kind == "multi-label" else batch.labels
                shown.advance()

        patches = top_patches(inputs.classifier.network, with_progress(), layers)
    result = DatasetPassResult(patches, (time.monotonic() - started) / len(inputs))
    tensors = {}
    header = {"seconds_per_image": result.seconds_per_image}
    for name, one in patches.items():
        values = {field.name: getattr(one, field.name) for field in fields(one)}
        arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
        tensors |= {f"{name}/{key}": torch.from_numpy(value) for key, value in arrays.items()}
        header[name] = {key: value for key, value in values.items() if key not in arrays}
    write_tensors(path, tensors, header)
    return result


def _read_layer(name: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> LayerPatches:
    values: dict[str, Any] = header | {"feature_map_size": tuple(header["feature_map_size"])}
    prefix = f"{name}/"
    values |= {key.removeprefix(prefix): one.numpy() for key, one in tensors.items() if key.startswith(prefix)}
    return LayerPatches(**values)
