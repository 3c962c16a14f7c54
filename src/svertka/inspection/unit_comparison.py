"""compare_units(): which units of a network another one shares, and which are new, such as after fine-tuning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from svertka.classifier import Classifier
from svertka.data.dataset import Ints, Pixels
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import DataError, UsageError
from svertka.evaluation.evaluation_scope import format_image_count
from svertka.files import parse_cache_limit_option, write_atomic
from svertka.inspection.atlas.classifier_and_images import AtlasInputs, open_atlas_inputs
from svertka.inspection.maximally_activating_patches import LayerPatches, top_patches
from svertka.inspection.unit_matching import (
    NEW,
    SHARED,
    MatchedLayer,
    collect_activations,
    count_shared_by_chance,
    match_layers,
)
from svertka.output_paths import HTML, prepare_output_file
from svertka.pages.html_page import render_page
from svertka.pages.inline_images import render_strip
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.templates import render_template
from svertka.progress import progress, say
from svertka.type_checking import check_types

ENOUGH = 100  # images; shuffled ones then share 1 to 2 % of the units
SHOWN = 8  # units of each kind that the page shows for a layer
PATCHES = 5  # of each unit: a row fits into 360 pixels
SIDE = 64  # CSS pixels of a patch
HEADER = ("layer", "compared with", "units", "shared", "changed", "new", "constant", "CKA")
NUMBERS = tuple(range(2, len(HEADER)))  # the columns of numbers


@dataclass(frozen=True, repr=False)
class UnitComparison:
    """Which units of the network `second` the network `first` shares.

    Attributes:
        first: Name of the first run or network.
        second: Name of the second.
        layers: The layers of `second`, with the counterpart of each unit in `first`.
        images: Number of images.
        page: The page that shows the units; None without one.
        by_chance: With fewer than 100 images, how many units are shared on average if the images of `first` are
            shuffled; otherwise None.
    """

    first: str
    second: str
    layers: Sequence[MatchedLayer]
    images: int
    page: Path | None
    by_chance: int | None = None

    @property
    def sentence(self) -> str:
        """Summary, "of 142 units of B, A shares 120, 4 are new, 2 are constant; 361 images"."""
        units, shared, new, constant = (sum(values) for values in zip(*map(_count, self.layers), strict=True))
        same = f", {_count_are(constant)} constant" if constant else ""
        return (
            f"of {units:,} units of {self.second}, {self.first} shares {shared:,} (correlation of at least {SHARED}); "
            f"{_count_are(new)} new (below {NEW}){same}; {format_image_count(self.images)}"
        )

    @property
    def warning(self) -> str | None:
        """What chance alone finds on so few images; None with 100 images or more."""
        if self.by_chance is None:
            return None
        return (
            f"{format_image_count(self.images)} are too few: units also correlate by chance, and {self.first} shares "
            f"{self.by_chance:,} if its images are shuffled; give {ENOUGH} images or more"
        )

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of a table, a row for each layer."""
        found = []
        for one in self.layers:
            units, shared, new, constant = _count(one)
            numbers = (str(number) for number in (units, shared, units - shared - new - constant, new, constant))
            found.append((one.layer, one.counterpart, *numbers, f"{one.cka:.3f}"))
        return found

    def __repr__(self) -> str:
        return f"UnitComparison({self.sentence!r})"

    def _repr_html_(self) -> str:
        sentences = (*filter(None, (self.sentence, self.warning)), *([f"open {self.page}"] if self.page else []))
        title = f"Units of {self.first} and {self.second}"
        return NotebookBlock(title, sentences, header=HEADER, rows=self.rows, right=NUMBERS).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka compare-units --json` prints them.

        Returns:
            The keys first, second, images, page and layers.
        """
        layers = [
            {
                "layer": one.layer,
                "counterpart": one.counterpart,
                "cka": one.cka,
                "shared": one.num_shared,
                "new": one.new.tolist(),
                "constant": one.num_constant,
                "units": one.units.tolist(),
                "correlations": [None if np.isnan(value) else float(value) for value in one.correlations],
            }
            for one in self.layers
        ]
        page = None if self.page is None else str(self.page)
        return {"first": self.first, "second": self.second, "images": self.images, "page": page, "layers": layers}


def _count_are(number: int) -> str:
    """Return "1 is", "2 are" and so on."""
    return f"{number:,} {'is' if number == 1 else 'are'}"


def _count(layer: MatchedLayer) -> tuple[int, int, int, int]:
    """Return how many units a layer has, and how many of them are shared, new and constant."""
    return len(layer.units), layer.num_shared, len(layer.new), layer.num_constant


@check_types
@with_preserved_settings
def compare_units(
    first: str | PathLike[str] | Classifier | nn.Module,
    second: str | PathLike[str] | Classifier | nn.Module,
    source: str | PathLike[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    images: int | None = None,
    part: str | None = None,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> UnitComparison:
    """Find out which units of `second` the network `first` shares, and which are new, such as after fine-tuning.

    Both networks see the same images. The activation of a unit in an image is the maximum of its feature map. A unit is
    shared if its activations correlate with those of a unit of `first` by at least 0.7, and new if by less than 0.4
    with every one. Layers are compared with the layer of the same name, or else with the one of the highest linear CKA.

    Args:
        first: A run folder, or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module.
        second: The same, for example fine-tuned from `first`.
        source: Images, as for `train`; all of them are used. None: the test set of `first`.
        layers: Names of layers of `second`. None: every convolution.
        images: Number of images, drawn at random. None: all.
        part: "train", "val", "test" or "all": the images of `source` that are used. None: all, if `source` is given.
        output: HTML file for the page. None: no page is written.
        overwrite: Whether `output` may replace a file that svertka did not write.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The comparison of each layer.

    Raises:
        UsageError: A layer does not exist or has no feature maps, a network has no convolution, the networks read
            other bands, the source does not exist, or `output` exists.
        DataError: There are no images, or the source of `first` no longer exists.
        RunError: A run is missing or damaged.
        StorageError: The page cannot be written.
    """
    page = None if output is None else prepare_output_file(output, HTML, overwrite=overwrite)
    chosen_device, num_threads = choose_device(device), set_threads(threads)

    def opened(run: Any, source: Any, images: int | None, part: str | None) -> AtlasInputs:
        return open_atlas_inputs(
            run,
            source,
            images=images,
            part=part,
            device=chosen_device,
            threads=num_threads,
            cache_limit=parse_cache_limit_option(cache_limit),
            max_pixels=max_pixels,
            trust_builder=trust_builder,
        )

    classifiers = [Classifier.open(run, chosen_device, trust_builder=trust_builder) for run in (first, second)]
    _require_same_bands(*classifiers)
    one = opened(classifiers[0], source, images, part)
    other = opened(classifiers[1], source if source is not None else one.training_source, None, "all")
    say(one.shown)
    here, there = _common_images(one, other)
    with progress("comparing units", 2 * len(here), "images") as shown:
        activations = [
            collect_activations(
                inputs.classifier.network, inputs.input_shape, _images(inputs, indices), names, also, shown.advance
            )
            for inputs, indices, names, also in ((one, here, None, layers or ()), (other, there, layers, ()))
        ]
    matched = match_layers(*activations)
    by_chance = count_shared_by_chance(activations[0], activations[1], matched) if len(here) < ENOUGH else None
    found = UnitComparison(_name(one, "A"), _name(other, "B"), matched, len(here), page, by_chance)
    if page is not None:
        _write_page(page, found, ((one, here), (other, there)))
    return found


def _require_same_bands(first: Classifier, second: Classifier) -> None:
    """Raise UsageError unless the same image files can be read for both networks."""
    bands = [one.preprocess.bands and one.preprocess.bands.describe() for one in (first, second)]
    if bands[0] != bands[1]:
        reads = [f"{one.origin} reads {one.preprocess.color}" for one in (first, second)]
        raise UsageError(
            f"{' and '.join(reads)}, so that no image is for both; compare networks that read the same kind of images"
        )


def _name(inputs: AtlasInputs, letter: str) -> str:
    origin = Path(str(inputs.classifier.origin)).name
    return f"{letter} ({origin or inputs.classifier.config.model})"


def _common_images(one: AtlasInputs, other: AtlasInputs) -> tuple[Ints, Ints]:
    """Return the indices of the same images in both, (N,) each.

    Raises:
        DataError: There are none.
    """
    places = {digest: index for index, digest in reversed(list(enumerate(other.digests)))}
    here = [index for index, digest in enumerate(one.digests) if digest in places]
    if len(here) < 2:
        raise DataError(f"{one.dataset.source} holds {len(here)} images that both networks can read; give at least 2")
    return np.array(here), np.array([places[one.digests[index]] for index in here])


def _images(inputs: AtlasInputs, indices: Ints) -> Iterator[Tensor]:
    for batch in inputs.batches(indices).epoch(0):
        yield batch.images


def _write_page(path: Path, found: UnitComparison, networks: Sequence[tuple[AtlasInputs, Ints]]) -> None:
    """Write the page that shows the patches of new and of shared units.

    Args:
        path: The file.
        found: The comparison.
        networks: Both networks, and the indices of the images of each.
    """
    counterparts = list(dict.fromkeys(layer.counterpart for layer in found.layers))
    patches = [
        top_patches(inputs.classifier.network, _images(inputs, indices), names, PATCHES)
        for (inputs, indices), names in zip(
            networks, (counterparts, [layer.layer for layer in found.layers]), strict=True
        )
    ]

    def strip(which: int, layer: str, unit: int) -> Any:
        inputs, indices = networks[which]
        crops = list(_crops(inputs, indices, patches[which][layer], unit))
        return render_strip(crops, SIDE, f"unit {unit} of {layer}") if crops else "dead"

    sections = []
    for layer in found.layers:
        order = np.argsort(-np.nan_to_num(layer.correlations, nan=-2), kind="stable")[:SHOWN]
        sections.append(
            {
                "name": layer.layer,
                "counterpart": layer.counterpart,
                "new": [
                    (int(unit), f"{layer.correlations[unit]:.2f}", strip(1, layer.layer, int(unit)))
                    for unit in layer.new[:SHOWN]
                ],
                "shared": [
                    (
                        int(unit),
                        int(layer.units[unit]),
                        f"{layer.correlations[unit]:.2f}",
                        strip(1, layer.layer, int(unit)),
                        strip(0, layer.counterpart, int(layer.units[unit])),
                    )
                    for unit in order
                    if layer.correlations[unit] >= SHARED
                ],
            }
        )
    body = render_template(
        "units.html",
        headline=f"Units: {found.sentence}.",
        warning=found.warning,
        header=HEADER,
        rows=found.rows,
        sections=sections,
        new=NEW,
    )
    write_atomic(path, render_page(f"Units of {found.first} and {found.second} – svertka", body).encode())


def _crops(inputs: AtlasInputs, indices: Ints, patches: LayerPatches, unit: int) -> Iterator[Pixels]:
    for image, (top, left, bottom, right) in zip(patches.images[unit], patches.boxes[unit], strict=True):
        if image >= 0:
            yield inputs.pixels(indices[[image]])[0][top:bottom, left:right]
