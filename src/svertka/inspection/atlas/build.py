"""The atlas: a folder with a page that shows what each unit of a network responds to.

atlas/index.html      the page; opens from disk and loads nothing from outside its folder
atlas/data/*.js       data about each layer's units and about each image
atlas/layers/K/       patches and projections of a layer, 32 units per file
atlas/pictures/       whole images as network input;  overlays/  saliency overlays for some of them
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from svertka.classifier import Classifier
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import Interrupted, UsageError
from svertka.evaluation.evaluation_scope import EvaluationScope
from svertka.files import format_bytes, parse_cache_limit_option, parse_path
from svertka.graph.summary import Trace, trace
from svertka.inspection.activations import convolution_names, find_layer, last_layers_of_stages, unit_count
from svertka.inspection.atlas.classifier_and_images import AtlasInputs, open_atlas_inputs
from svertka.inspection.atlas.dataset_pass import PASS_FILE, run_dataset_pass
from svertka.inspection.atlas.image_data import choose_overlay_count, select_atlas_images, write_image_data
from svertka.inspection.atlas.index_page import IndexPage
from svertka.inspection.atlas.layer_data import DEAD, AtlasLayer, take_first_units, write_layer_data
from svertka.inspection.atlas.network_diagram import build_diagram
from svertka.inspection.atlas.remaining_time import RemainingTime
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.deconvolution.deconvnet import Deconvnet, describe_missing_relu_pooling
from svertka.inspection.first_layer_filters import FirstLayerFilters, get_first_layer_filters
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.progress import format_duration, progress, say
from svertka.run import Run
from svertka.type_checking import check_types

FORMAT_VERSION = 4  # an atlas of another version is not resumed
PAGE = "index.html"
UNITS_PER_LAYER = 12  # by default


@dataclass(frozen=True, repr=False)
class Atlas:
    """A finished atlas.

    Attributes:
        page: The file to open.
        network: Name of the model.
        layers: Number of layers.
        units: Number of units.
        dead: Number of units that are never above 0 and constant over the images; see `LayerPatches`.
        images: Number of images in the data set.
        bytes: Size of the folder, bytes.
        seconds: Duration of this call, seconds.
        left_out: A sentence about the units that are not shown; None if every unit is.
        scope: Which images of which source were used.
    """

    page: Path
    network: str
    layers: int
    units: int
    dead: int
    images: int
    bytes: int
    seconds: float
    left_out: str | None
    scope: EvaluationScope

    @property
    def sentence(self) -> str:
        """Summary, "3 layers, 142 units, 1 dead (constant, never above 0), 384 images; 1.2 MB"."""
        dead = f", {self.dead:,} dead ({DEAD})" if self.dead else ""
        counts = f"{count_with_noun(self.layers, 'layer')}, {count_with_noun(self.units, 'unit')}{dead}"
        return f"{counts}, {count_with_noun(self.images, 'image')}; {format_bytes(self.bytes)}"

    def __repr__(self) -> str:
        return f"Atlas({str(self.page)!r}: {self.network}, {self.sentence})"

    def _repr_html_(self) -> str:
        lines = tuple(filter(None, (self.sentence, self.left_out, f"open {self.page}")))
        return NotebookBlock(f"Atlas of {self.network}", lines).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka look --json` prints them.

        Returns:
            The attributes by name, the path of the page, and the scope of the images.
        """
        facts = {name: value for name, value in asdict(self).items() if name != "scope"}
        return facts | {"page": str(self.page)} | self.scope.to_dict()


UNSAFE = re.compile(r"[^\w.-]+")  # in names of networks of others; not in the default name of a folder


@check_types
@with_preserved_settings
def look(
    run: str | PathLike[str] | Classifier | nn.Module,
    source: str | PathLike[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    units: int | None = None,
    images: int | None = None,
    all: bool = False,  # noqa: A002 - the name of the option
    part: str | None = None,
    output: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: float | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
) -> Atlas:
    """Build the atlas of a network. An interrupted build resumes when called again.

    By default, it shows 12 units of the last layer of each stage, and takes about a minute for a thousand photographs.
    A stage is a run of convolutions whose feature maps have the same size.

    Args:
        run: A run folder, or a network with weights, as for `Classifier.load`; a Classifier or an nn.Module.
        source: Images, as for `train`; all of them are shown, those of the training set, too. None: the test set of
            the run.
        layers: Names of layers. None: the last of each stage, or with `all`, every convolution.
        units: Number of units per layer, taken from the first. None: 12, or with `all`, every unit.
        images: Number of images, drawn at random. None: all.
        all: Whether to show every unit, and saliency overlays of 40 images. Large networks take hours.
        part: "train", "val", "test" or "all": the images of `source` that are shown. None: all, if `source` is given.
        output: Folder for the atlas. None: RUN/atlas, or atlas-NAME for a pretrained model; with `all`, RUN/atlas-all
            or atlas-NAME-all.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        cache_limit: Size limit of the image cache, GB (10⁹ bytes). None: a share of the free disk.
        max_pixels: Largest image that is decoded, pixels. None: `image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.

    Returns:
        The page, counts, and which images were used.

    Raises:
        Interrupted: Ctrl-C; finished files are kept.
        UsageError: A layer does not exist or has no feature maps; the source does not exist; or the folder exists and
            is not this atlas.
        DataError: There are no images, or the source of the run no longer exists.
        RunError: The run is missing or damaged.
        StorageError: The disk is full or the folder cannot be written.
    """
    if units is not None and units < 1:
        raise UsageError(f"units={units} must be at least 1")
    started = time.monotonic()
    chosen_device, num_threads = choose_device(device), set_threads(threads)
    inputs = open_atlas_inputs(
        run,
        source,
        images=images,
        part=part,
        threads=num_threads,
        cache_limit=parse_cache_limit_option(cache_limit),
        device=chosen_device,
        max_pixels=max_pixels,
        trust_builder=trust_builder,
    )
    say(inputs.shown)
    traced = trace(inputs.classifier.network, inputs.input_shape)
    names = _select_layers(traced, layers, every=all)
    options = [name for name, given in (("--layers", layers), ("--units", units)) if given is not None]
    advice = "svertka look --all" + (f" without {' and '.join(options)}" if options else "")
    units = units if units is not None or all else UNITS_PER_LAYER
    selection = _describe_selection(units, is_named=layers is not None, every=all)
    selection = selection if options or all else f"by default {selection}"
    overlays = choose_overlay_count(traced, inputs.image_size, every=all)
    path = _atlas_folder(inputs.classifier, output, every=all)
    folder = ResumableFolder(path, inputs.fingerprint(FORMAT_VERSION, names, units, overlays))
    if folder.summary is None:
        try:
            _build(inputs, folder, traced, names, units, overlays, (selection, advice))
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; finished parts are kept in {path}; run the same command again to resume"
            ) from error
    return Atlas(page=path / PAGE, seconds=time.monotonic() - started, scope=inputs.scope, **folder.summary or {})


def _build(
    inputs: AtlasInputs,
    folder: ResumableFolder,
    traced: Trace,
    names: Sequence[str],
    units: int | None,
    overlays: int,
    described: tuple[str, str],
) -> None:
    """Write the missing files; the page comes last, so an atlas with a page is complete."""
    dataset_pass = run_dataset_pass(inputs, folder, names)
    by_name = {layer.name: layer for layer in traced.layers}
    filters = _first_layer_filters(inputs)
    layers = [
        AtlasLayer(
            index=index,
            layer=by_name[name],
            patches=take_first_units(dataset_pass.patches[name], units),
            filters=filters if filters is not None and filters.layer == name else None,
            image_size=inputs.image_size,
        )
        for index, name in enumerate(names)
    ]
    images = select_atlas_images([layer.patches for layer in layers], inputs.strata, overlays)
    page = IndexPage(
        inputs=inputs,
        diagram=build_diagram(traced),
        layers=layers,
        total_units=[len(dataset_pass.patches[name].values) for name in names],
        images=images,
        units_of_network=_count_units(traced, names),
        selection=described[0],
        advice=described[1],
        note=describe_missing_relu_pooling(inputs.classifier.network, inputs.input_shape) or "",
    )
    remaining = RemainingTime(traced, layers, images, dataset_pass.seconds_per_image, inputs.image_size)
    say(f"{page.headline} The rest takes about {format_duration(remaining.estimate(folder))}.")
    deconvnet = Deconvnet(inputs.classifier.network, inputs.input_shape)
    with progress("drawing", 100, "%") as shown:
        for layer in layers:
            if layer.script not in folder:
                advance = remaining.advance_units(shown, layer)
                write_layer_data(layer, inputs, deconvnet, folder, images.slots, advance)
        write_image_data(images, layers, inputs, folder, remaining.advance_images(shown))
    folder.write(PAGE, page.render().encode())
    summary = {
        "network": page.name,
        "layers": len(layers),
        "units": page.num_units,
        "left_out": page.left_out,
        "dead": page.num_dead,
        "images": len(inputs),
        "bytes": folder.num_bytes(exclude=PASS_FILE),
    }
    folder.finish(summary, PASS_FILE)


def _count_units(traced: Trace, shown: Sequence[str]) -> int:
    known = list(traced.layers)
    return sum(unit_count(find_layer(known, name)) for name in {*convolution_names(known), *shown})


def _describe_selection(units: int | None, *, is_named: bool, every: bool) -> str:
    """Return which units are shown, in words."""
    layers = "the named layers" if is_named else "every convolution" if every else "the last layer of each stage"
    each = "each named layer" if is_named else layers
    return f"those of {layers}" if units is None else f"the first {units} of {each}"


def _select_layers(traced: Trace, layers: Sequence[str] | None, *, every: bool) -> list[str]:
    """Return the names of the requested layers in the order in which they run."""
    known = list(traced.layers)
    if layers is None:
        names = convolution_names(known) if every else last_layers_of_stages(known)
        if not names:
            raise UsageError("the network has no convolution; name the layers to look at with --layers")
        return names
    wanted = {find_layer(known, name).name for name in layers}
    return [layer.name for layer in known if layer.name in wanted]


def _first_layer_filters(inputs: AtlasInputs) -> FirstLayerFilters | None:
    try:
        return get_first_layer_filters(inputs.classifier.network)
    except UsageError:  # the first layer is not a convolution of an image
        return None


def _atlas_folder(classifier: Classifier, output: str | PathLike[str] | None, *, every: bool) -> Path:
    if output is not None:
        return parse_path(output)
    suffix = "-all" if every else ""  # so that neither atlas stands in the way of the other
    if parse_path(classifier.origin).is_dir():
        return Run(classifier.origin).folder / f"atlas{suffix}"
    return Path(f"atlas-{UNSAFE.sub('-', classifier.config.model)}{suffix}")
