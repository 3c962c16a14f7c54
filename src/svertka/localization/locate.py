"""locate(): where in pictures the classes are, and how sure that is."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from svertka.classifier import Classifier
from svertka.data.bounding_boxes import Annotation, check_classes, match_to_images, read_boxes
from svertka.data.dataset import Pixels
from svertka.data.image_io import Decoding, describe_misnamed
from svertka.data.prediction_inputs import find_misnamed_files, list_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.device import choose_device, preserves_settings, set_threads
from svertka.errors import DataError, ImageError
from svertka.evaluation.held_out import TrainingImageFilter
from svertka.localization.heatmap import Region, heat, region
from svertka.localization.overlays import PAGE, OverlayFolder
from svertka.localization.pointing_game import Point, Pointing
from svertka.localization.score_maps import Locator, scores
from svertka.output_paths import HTML, output_folder
from svertka.progress import progress, say
from svertka.type_checking import check_types


@dataclass(frozen=True)
class Sight:
    """A class in a picture: its score, 0 to 1, as `score_maps.scores` gives it, and where it is most to be seen."""

    name: str
    score: float
    region: Region

    def to_dict(self) -> dict[str, Any]:
        """`name`, `score`, `peak` [x, y] and `box` [left, top, right, bottom], pixels of the upright picture."""
        box = self.region.box
        edges = [box.left, box.top, box.right, box.bottom]
        peak = [round(value, 1) for value in self.region.peak]
        return {"name": self.name, "score": self.score, "peak": peak, "box": [round(edge, 1) for edge in edges]}


@dataclass(frozen=True)
class Found:
    """What was found in one picture: its classes, the best first; or why it could not be looked at.

    `overlay`: the file that shows where the first of them is, if one was asked for.
    """

    path: str
    classes: tuple[Sight, ...] = ()
    overlay: Path | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON file; `overlay` and `error` where there is one."""
        more = {"overlay": self.overlay and str(self.overlay), "error": self.error}
        classes = [sight.to_dict() for sight in self.classes]
        return {"path": self.path, "classes": classes} | {name: text for name, text in more.items() if text}


@dataclass(frozen=True)
class Located:
    """The pictures in order; `judgement`: how good it was, as `Pointing.to_dict` and `Scope.to_dict` say, where
    boxes were given.

    `page`: that shows all of them, if one was asked for.
    """

    pictures: tuple[Found, ...]
    judgement: dict[str, Any] | None
    page: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return {
            "pictures": [found.to_dict() for found in self.pictures],
            "judgement": self.judgement,
            "page": self.page and str(self.page),
        }


@check_types
@preserves_settings
def locate(
    run: str | PathLike[str] | Classifier,
    *pictures: ImageLike,
    boxes: str | PathLike[str] | None = None,
    include_training: bool = False,
    top: int = 5,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
) -> Located:
    """Where in each picture the `top` classes of highest score are.

    `run`, `pictures`: as for `classifier.predict`. Any classifier will do; a run that was trained with boxes knows
    background, too, which is not looked for (a `Classifier` of it only if it was loaded `of_patches`). `boxes`: as for
    `data.bounding_boxes.read_boxes`; pictures that have some are judged by them, but for those that the run was trained
    on, unless `include_training`. `output`: a folder for overlays and a page that shows them; `overwrite`: it may hold
    other things. `max_pixels`: of a picture that is read.

    Raises:
        UsageError: no picture is there, or no such weights, or the network cannot be followed step by step; `output`
            holds other things.
        DataError: no box is of any of the pictures, or one lies outside its picture or is of no class of the run.
        RunError: the run is missing or damaged. StorageError: the folder cannot be written.
    """
    place, _ = choose_device(device), set_threads(threads)
    locator = Locator(run if isinstance(run, Classifier) else Classifier.load(run, place, of_patches=True))
    everything = list_inputs(pictures)
    annotations = _annotations(boxes, [path for path, _ in everything], locator.names)
    album = None if output is None else OverlayFolder(output_folder(output, PAGE, HTML, overwrite=overwrite))
    pointing, admission = Pointing(), TrainingImageFilter(run, include_training=include_training)
    decoding = Decoding.up_to(max_pixels).with_intensity_range(locator.preprocess.intensity_range)
    found = []
    with progress("locating", len(everything)) as shown:
        for number, (path, picture) in enumerate(everything):
            try:
                rgb, annotation = load_pixels(picture, decoding), annotations.get(number)
                judges = (
                    annotation is not None and not isinstance(picture, ImageError) and admission.is_allowed(picture)
                )
                found.append(_found(locator, path, rgb, top, annotation, pointing if judges else None, album))
            except ImageError as error:
                found.append(Found(path, error=str(error)))
            shown.advance()
    if sentence := describe_misnamed(find_misnamed_files(picture for _, picture in everything)):
        say(sentence)
    judgement = None
    if boxes is not None:
        judgement = pointing.to_dict() | admission.scope(", ".join(map(str, pictures))).to_dict()
    page = None if album is None else album.write_page(judgement)
    return Located(tuple(found), judgement, page)


def _annotations(boxes: str | PathLike[str] | None, paths: list[str], names: tuple[str, ...]) -> dict[int, Annotation]:
    if boxes is None:
        return {}
    read = read_boxes(Path(boxes))
    check_classes(read, names)
    found = match_to_images(read, paths)
    if not found:
        raise DataError(
            f"{boxes} has boxes without a picture: none is of {paths[0]} or the others; check its file names"
        )
    return found


def _found(
    locator: Locator,
    path: str,
    rgb: Pixels,
    top: int,
    annotation: Annotation | None,
    pointing: Pointing | None,
    album: OverlayFolder | None,
) -> Found:
    height, width = rgb.shape[:2]
    if annotation is not None:
        annotation.check(width, height)
    maps = locator.maps(rgb)
    of_all = scores(maps).tolist()
    by_class = {name: of_all[index] for name, index in locator.index.items()}
    best = sorted(by_class, key=lambda name: -by_class[name])[:top]
    heats = {name: heat(maps, locator.index[name], height, width) for name in best}
    sights = tuple(Sight(name, by_class[name], region(heats[name], name, height, width)) for name in best)
    if annotation is not None and pointing is not None:

        def spot(name: str) -> Point:
            hot = heats[name] if name in heats else heat(maps, locator.index[name], height, width)
            return region(hot, name, height, width).peak

        pointing.add(annotation, (width, height), by_class, spot)
    overlay = (
        None if album is None else album.add(path, rgb, heats[best[0]], sights[0].region, sights[0].score, annotation)
    )
    return Found(path, sights, overlay)
