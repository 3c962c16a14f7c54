"""What is said of the time that is left."""

from pathlib import Path

import numpy as np
import torch

from svertka.graph.summary import trace
from svertka.inspection import top_patches
from svertka.inspection.atlas.image_data import select_images
from svertka.inspection.atlas.inputs import open_inputs
from svertka.inspection.atlas.layer_data import AtlasLayer
from svertka.inspection.atlas.remaining_time import RemainingTime
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.progress import Progress


def test_it_counts_to_a_hundred_and_what_is_done_is_not_expected_again(
    squeezed: Path, photographs: Path, tmp_path: Path
) -> None:
    place = torch.device("cpu")
    subject = open_inputs(squeezed, photographs, pictures=6, place=place, threads=1, cache_limit=None)
    network = subject.classifier.network
    traced = trace(network, subject.shape)
    found = top_patches(network, subject.images(np.arange(6)))
    layers = {layer.name: layer for layer in traced.layers}
    rooms = [AtlasLayer(k, layers[name], one, None, subject.size) for k, (name, one) in enumerate(found.items())]
    portraits = select_images(list(found.values()), subject.dataset.labels)
    schedule = RemainingTime(traced, rooms, portraits, per_picture=0.01, size=subject.size)
    parts = ResumableFolder(tmp_path, "a")
    everything = schedule.left(parts)
    parts.put(rooms[0].script, b"")
    first_done = schedule.left(parts)
    parts.put(rooms[-1].script, b"")
    last_done = schedule.left(parts)
    # Behind the last layer is the whole network, behind the first next to nothing.
    assert 0 < (everything - first_done) / rooms[0].units < (first_done - last_done) / rooms[-1].units
    shown = Progress("drawing", 100, None)
    for room in rooms[1:-1]:
        schedule.units(shown, room)(room.units)
    assert 0 < shown.done < 100
    schedule.pictures(shown)(len(portraits.shown))
    assert shown.done == 100
