"""The atlas of a network: a folder with a page in which one walks through its layers and sees what each unit looks for.

atlas/index.html      the entrance: opens from the disk, asks for nothing beyond its folder
atlas/data/*.js       what is said about each layer's units and about each picture
atlas/layers/K/       the patches and projections of a layer, 32 units a file
atlas/pictures/       whole pictures, as the network sees them;  overlays/  maps over some of them
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from svertka.device import choose_device, keeps_settings, set_threads
from svertka.errors import Interrupted, UsageError
from svertka.evaluation.evaluated_images import EvaluationScope
from svertka.files import given_path
from svertka.graph.summary import Trace, trace
from svertka.inspection import activations
from svertka.inspection.atlas.dataset_pass import PASS_FILE, run_dataset_pass
from svertka.inspection.atlas.image_data import select_images, write_image_data
from svertka.inspection.atlas.index_page import IndexPage
from svertka.inspection.atlas.inputs import AtlasInputs, open_inputs
from svertka.inspection.atlas.layer_data import AtlasLayer, take_first_units, write_layer_data
from svertka.inspection.atlas.network_diagram import build_diagram
from svertka.inspection.atlas.remaining_time import RemainingTime
from svertka.inspection.atlas.resumable_folder import ResumableFolder
from svertka.inspection.deconvnet import Deconvnet, describe_missing_layers
from svertka.inspection.first_layer_filters import FirstLayerFilters, get_first_layer_filters
from svertka.progress import duration, progress, say
from svertka.run import Run
from svertka.type_checking import check_types

FORMAT_VERSION = 1  # of what an atlas is made of; an unfinished one of another is not gone on with
PAGE = "index.html"


@dataclass(frozen=True)
class Atlas:
    """A finished atlas: `page`, the file to open, and what is in it; `bytes` of its folder; `seconds` it took now.

    `scope`: which images of what source are in it.
    """

    page: Path
    network: str
    layers: int
    units: int
    dead: int
    pictures: int
    bytes: int
    seconds: float
    scope: EvaluationScope

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON file."""
        facts = {name: value for name, value in asdict(self).items() if name != "scope"}
        return facts | {"page": str(self.page)} | self.scope.to_dict()


@check_types
@keeps_settings
def look(
    run: str | PathLike[str],
    source: str | PathLike[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    units: int | None = None,
    pictures: int | None = None,
    include_training: bool = False,
    output: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    cache_limit: int | None = None,
    max_pixels: int | None = None,
) -> Atlas:
    """The atlas of the network of `run`, made; interrupted and called again, it goes on where it was.

    `run`: a run folder, or a network with its weights, as for `Classifier.load`. `source`: the pictures that it is
    shown, as for `train`; None: those that the run was tested on. `layers`: their names; None: every convolution.
    `units`: how many of each layer, the first; `pictures`: how many, drawn at random; None: all. `include_training`:
    show it the images that it was trained on, too. `output`: the folder;
    None: RUN/atlas, or atlas-NAME for a network of the zoo. `cache_limit`: bytes of decoded pictures kept on disk.
    `max_pixels`: of a picture that is read; None: `images.PIXEL_LIMIT`.

    Raises:
        Interrupted: Ctrl-C; what is done is kept.
        UsageError: no such layer, or it has no maps; no such source; the folder exists and is not this atlas.
        DataError: there are no pictures, or the run's own are gone. RunError: the run is missing or damaged.
        StorageError: the disk is full or the folder cannot be written.
    """
    if units is not None and units < 1:
        raise UsageError(f"units={units} must be at least 1")
    began = time.monotonic()
    place, workers = choose_device(device), set_threads(threads)
    subject = open_inputs(
        run,
        source,
        pictures=pictures,
        include_training=include_training,
        place=place,
        threads=workers,
        cache_limit=cache_limit,
        max_pixels=max_pixels,
    )
    say(subject.scope.sentence)
    traced = trace(subject.classifier.network, subject.shape)
    names = _select_layers(traced, layers)
    folder = _atlas_folder(run, output)
    parts = ResumableFolder(folder, subject.identity(FORMAT_VERSION, names, units))
    if parts.summary is None:
        try:
            _build(subject, parts, traced, names, units)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; what is done stays in {folder}, and the same command goes on with it"
            ) from error
    return Atlas(page=folder / PAGE, seconds=time.monotonic() - began, scope=subject.scope, **parts.summary or {})


def _build(
    subject: AtlasInputs, parts: ResumableFolder, traced: Trace, names: Sequence[str], units: int | None
) -> None:
    """Make what is missing in `parts`, the page last: as long as there is none, the atlas is not done."""
    walked = run_dataset_pass(subject, parts, names)
    by_name = {layer.name: layer for layer in traced.layers}
    filters = _first_layer_filters(subject)
    rooms = [
        AtlasLayer(
            number=number,
            layer=by_name[name],
            found=take_first_units(walked.found[name], units),
            filters=filters if filters is not None and filters.layer == name else None,
            picture=subject.size,
        )
        for number, name in enumerate(names)
    ]
    portraits = select_images([room.found for room in rooms], subject.dataset.labels)
    entrance = IndexPage(
        subject=subject,
        rail=build_diagram(traced),
        rooms=rooms,
        all_units=[len(walked.found[name].values) for name in names],
        portraits=portraits,
        note=describe_missing_layers(subject.classifier.network, subject.shape) or "",
    )
    schedule = RemainingTime(traced, rooms, portraits, walked.per_picture, subject.size)
    say(f"{entrance.sentence} The rest takes about {duration(schedule.left(parts))}.")
    back = Deconvnet(subject.classifier.network, subject.shape)
    with progress("drawing, per cent", 100) as shown:
        for room in rooms:
            if room.script not in parts:
                write_layer_data(room, subject, back, parts, portraits.slots, schedule.units(shown, room))
        write_image_data(portraits, rooms, subject, parts, schedule.pictures(shown))
    parts.put(PAGE, entrance.html().encode())
    summary = {
        "network": entrance.name,
        "layers": len(rooms),
        "units": entrance.units,
        "dead": entrance.dead,
        "pictures": len(subject),
        "bytes": parts.bytes(without=PASS_FILE),
    }
    parts.finish(summary, PASS_FILE)


def _select_layers(traced: Trace, layers: Sequence[str] | None) -> list[str]:
    """The layers asked for, in the order in which they run."""
    known = list(traced.layers)
    if layers is None:
        names = activations.convolution_names(known)
        if not names:
            raise UsageError("the network has no convolution; name the layers to look at with --layers")
        return names
    wanted = {activations.find_layer(known, name).name for name in layers}
    return [layer.name for layer in known if layer.name in wanted]


def _first_layer_filters(subject: AtlasInputs) -> FirstLayerFilters | None:
    try:
        return get_first_layer_filters(subject.classifier.network)
    except UsageError:  # its first layer is of another kind: there are none to be seen
        return None


def _atlas_folder(run: str | PathLike[str], output: str | PathLike[str] | None) -> Path:
    if output is not None:
        return given_path(output)
    if given_path(run).is_dir():
        return Run(run).folder / "atlas"
    return Path(f"atlas-{fspath(run).partition(':')[0]}")
