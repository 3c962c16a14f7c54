"""Figure: what units respond to early, in the middle and late in a network: their strongest patches and projections.

SqueezeNet 1.1 on the photographs of `cats-dogs`, LeNet-5 (trained here as by `svertka train mnist`) on MNIST's test
set, ResNet-20 on CIFAR-10's. Six units of each layer are drawn, evenly spaced among those that some image activates;
none is selected by hand. Each is shown with its nine strongest patches, one per image, and their projections to pixels
below. The table has, for all units of a layer, the size of the receptive field, the number of dead units, the fraction
of images that activate the others, and the share of a unit's activation from its preferred class relative to the share
of images.

    SVERTKA_DATA=… python experiments/unit_visualization.py
    python experiments/unit_visualization.py --draw      # only the table, from the stored results
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from harness import FIGURES, figure, main, print_table, trained
from PIL import Image

from svertka.data.builtin import data_folder
from svertka.data.dataset import Ints, Pixels
from svertka.inspection import project, to_images, top_patches
from svertka.inspection.atlas.classifier_and_images import AtlasInputs, open_atlas_inputs
from svertka.inspection.maximally_activating_patches import LayerPatches
from svertka.run import Run

NETWORKS = {
    "squeezenet1_1": ("features.0", "features.4.expand3x3", "features.7.expand3x3", "features.12.expand3x3"),
    "lenet5": ("c1", "c3", "c5"),
    "resnet20": ("conv1", "layer1.2.conv2", "layer2.2.conv2", "layer3.2.conv2"),
}
UNITS = 6
SIDE = 48  # side of a patch in the figure, pixels


def subject(name: str) -> AtlasInputs:
    """Return the network called `name` and its images."""
    data = data_folder()
    run: str | Run
    match name:
        case "squeezenet1_1":
            run, source = f"{name}:{data}/weights/squeezenet1_1-imagenet.safetensors", str(data / "cats-dogs")
        case "resnet20":
            run, source = f"{name}:{data}/weights/resnet20-cifar10.safetensors", "cifar10"
        case _:
            run, source = trained(f"units-{name}", "mnist", val=0.03), "mnist"
    return open_atlas_inputs(run, source, images=None, device=torch.device("cpu"), threads=1, cache_limit=None)


def measure() -> list[dict[str, Any]]:
    """Return a row for each layer, and draw the figures, which the rows do not contain."""
    rows = []
    for name, layers in NETWORKS.items():
        shown = subject(name)
        pictures = ((batch.images, batch.labels) for batch in shown.batches().epoch(0))  # numbered in this order
        found = top_patches(shown.classifier.network, pictures, layers)
        draw_units(name, shown, list(found.values()))
        rows += [row(name, len(shown), one, shown.image_size) for one in found.values()]
    return rows


def row(name: str, pictures: int, found: LayerPatches, size: int) -> dict[str, Any]:
    """Return the statistics of a layer's units."""
    boxes = found.boxes[found.images >= 0]
    alive = ~found.is_dead
    assert found.class_shares is not None
    assert found.class_frequencies is not None
    return {
        "network": name,
        "pictures": pictures,
        "side": size,
        "layer": found.layer,
        "units": len(found.is_dead),
        "sees": int((boxes[:, 2:] - boxes[:, :2]).max()),
        "dead": int(found.is_dead.sum()),
        "active": float(np.median(found.activation_rate[alive])),
        "preference": float(np.median((found.class_shares - found.class_frequencies).max(1)[alive])),
    }


def draw_units(name: str, shown: AtlasInputs, layers: list[LayerPatches]) -> None:
    """Write docs/figures/units_NAME.webp, with a row for each layer and a column for each unit."""
    with figure(f"units_{name}.webp") as (drawn, axes):
        axes.remove()
        drawn.set_size_inches(1.15 * UNITS + 0.3, 2.2 * len(layers))
        for line, found in zip(drawn.subplots(len(layers), UNITS), layers, strict=True):
            alive = np.flatnonzero(~found.is_dead)
            chosen = alive[np.linspace(0, len(alive) - 1, UNITS).round().astype(int)]
            for place, unit in zip(line, chosen, strict=True):
                place.imshow(card(shown, found, unit), interpolation="nearest")
                place.set_title(f"unit {unit}", fontsize=7, pad=2)
                place.set(xticks=[], yticks=[], frame_on=False)
            line[0].set_ylabel(found.layer, fontsize=7)


def card(shown: AtlasInputs, found: LayerPatches, unit: int) -> Pixels:
    """Return the patches of a unit, three by three, with their projections below, as one image."""
    there = found.images[unit] >= 0
    pictures, boxes = found.images[unit][there], found.boxes[unit][there]
    places = found.positions[unit][there]
    projected = as_pictures_in(shown, found, unit, pictures, places, boxes)
    patches = [
        square(np.broadcast_to(one[top:bottom, left:right], (bottom - top, right - left, 3)))
        for one, (top, left, bottom, right) in zip(shown.pixels(pictures), boxes, strict=True)
    ]
    return np.concatenate([mosaic(patches), np.full((6, 3 * SIDE + 2, 3), 255, np.uint8), mosaic(projected)])


def as_pictures_in(
    shown: AtlasInputs, found: LayerPatches, unit: int, pictures: Ints, places: Ints, boxes: Ints
) -> list[Pixels]:
    """Return the projections of a unit's patches as images."""
    images = shown.network_inputs(pictures)
    whole = project(shown.classifier.network, images, found.layer, unit, places)
    parts = [one[None, :, top:bottom, left:right] for one, (top, left, bottom, right) in zip(whole, boxes, strict=True)]
    return [square(to_images(one)[0]) for one in parts]


def square(picture: npt.NDArray[np.uint8]) -> Pixels:
    """Return `image` at the size in the figure; enlarged images stay crisp."""
    way = Image.Resampling.NEAREST if max(picture.shape[:2]) < SIDE else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((SIDE, SIDE), way))


def mosaic(pictures: list[Pixels]) -> Pixels:
    """Return nine images in a grid, one pixel apart, with white for missing ones."""
    whole = np.full((3 * SIDE + 2, 3 * SIDE + 2, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (SIDE + 1) * (number // 3), (SIDE + 1) * (number % 3)
        whole[top : top + SIDE, left : left + SIDE] = picture
    return whole


def draw(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print_table(
        ("network", "layer", "sees, pixels", "units", "dead", "active in", "favorite class, beyond its share"),
        [
            (
                one["network"],
                f"`{one['layer']}`",
                f"{one['sees']} of {one['side']}",
                one["units"],
                one["dead"],
                f"{one['active']:.0%}",
                f"{one['preference']:.1%}",
            )
            for one in rows
        ],
    )
    print("figures:", *sorted(path.name for path in FIGURES.glob("units_*")))


if __name__ == "__main__":
    main(__doc__, "unit_visualization", measure, draw)
