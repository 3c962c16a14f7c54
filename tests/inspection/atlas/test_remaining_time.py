"""Estimate of the remaining time."""

from pathlib import Path

import numpy as np
import torch

from svertka.graph.summary import trace
from svertka.inspection import top_patches
from svertka.inspection.atlas.classifier_and_images import open_atlas_inputs
from svertka.inspection.atlas.image_data import select_atlas_images
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.remaining_time import RemainingTime
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.progress import Progress


def test_progress_reaches_100_and_finished_files_are_not_counted(
    squeezenet_run: Path, photographs: Path, tmp_path: Path
) -> None:
    place = torch.device("cpu")
    inputs = open_atlas_inputs(squeezenet_run, photographs, images=6, device=place, threads=1, cache_limit=None)
    network = inputs.classifier.network
    traced = trace(network, inputs.input_shape)
    found = top_patches(network, inputs.network_inputs(np.arange(6)))
    layers = {layer.name: layer for layer in traced.layers}
    atlas_layers = [
        AtlasLayer(k, layers[name], one, None, inputs.image_size) for k, (name, one) in enumerate(found.items())
    ]
    images = select_atlas_images(list(found.values()), inputs.dataset.labels, 40)
    remaining = RemainingTime(traced, atlas_layers, images, seconds_per_image=0.01, size=inputs.image_size)
    folder = ResumableFolder(tmp_path, "a")
    everything = remaining.estimate(folder)
    folder.write(atlas_layers[0].script, b"")
    first_done = remaining.estimate(folder)
    folder.write(atlas_layers[-1].script, b"")
    last_done = remaining.estimate(folder)
    # A projection from the last layer runs through the whole network, from the first through almost nothing.
    assert (
        0
        < (everything - first_done) / atlas_layers[0].num_units
        < (first_done - last_done) / atlas_layers[-1].num_units
    )
    shown = Progress("drawing", 100)
    for one in atlas_layers[1:-1]:
        remaining.advance_units(shown, one)(one.num_units)
    assert 0 < shown.done < 100
    # Overlays take hundreds of forward passes, so the bar waits for them, whichever images have them.
    before = shown.done
    remaining.advance_images(shown)(len(images.indices) - 1, 0)
    assert shown.done - before < 100 - shown.done
    remaining.advance_images(shown)(1, len(images.with_overlays))
    assert shown.done == 100
