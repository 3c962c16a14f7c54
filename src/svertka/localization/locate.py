"""locate(): where in images the classes are."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from svertka.classifier import Classifier
from svertka.data.box_annotations import Annotation, check_box_classes, match_to_images, read_boxes
from svertka.data.dataset import Pixels
from svertka.data.image_io import DecodingOptions
from svertka.data.prediction_inputs import describe_files, list_inputs, load_pixels
from svertka.data.preprocessing import ImageLike
from svertka.device import choose_device, set_threads, with_preserved_settings
from svertka.errors import DataError, ImageError
from svertka.evaluation.held_out import TrainingImageFilter
from svertka.localization.heatmap import Region, find_hottest_region, make_heat_map
from svertka.localization.overlays import PAGE, OverlayFolder, describe_pointing_result
from svertka.localization.pointing_game import Point, PointingGame
from svertka.localization.score_maps import PatchScorer, average_class_scores
from svertka.output_paths import HTML, prepare_output_folder
from svertka.pages.notebook_block import NotebookBlock, Thumbnail, thumbnail_uri
from svertka.pages.number_format import count_with_noun
from svertka.progress import progress, say
from svertka.type_checking import check_types

MAX_THUMBNAILS = 24  # in a notebook


@dataclass(frozen=True)
class LocatedClass:
    """A class in an image.

    Attributes:
        name: Class name.
        score: Its score, 0 to 1, by `score_maps.average_class_scores`.
        region: The region that shows it.
    """

    name: str
    score: float
    region: Region

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: `peak` is [x, y], `box` is [left, top, right, bottom], pixels of the upright image.

        Returns:
            The keys name, score, peak and box.
        """
        box = self.region.box
        edges = [box.left, box.top, box.right, box.bottom]
        peak = [round(value, 1) for value in self.region.peak]
        return {"name": self.name, "score": self.score, "peak": peak, "box": [round(edge, 1) for edge in edges]}


@dataclass(frozen=True)
class LocatedImage:
    """The classes located in one image.

    Attributes:
        path: Path of the image, or its number.
        classes: The classes, the highest score first.
        overlay: File that shows the first of them; None if no output was requested.
        error: Why the image was not processed; None if it was.
    """

    path: str
    classes: tuple[LocatedClass, ...] = ()
    overlay: Path | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `overlay` and `error` only if they are not None.

        Returns:
            The keys path and classes, and overlay and error.
        """
        optional = {"overlay": self.overlay and str(self.overlay), "error": self.error}
        classes = [one.to_dict() for one in self.classes]
        return {"path": self.path, "classes": classes} | {name: text for name, text in optional.items() if text}


@dataclass(frozen=True, repr=False)
class LocatedImages:
    """Images with the classes located in them.

    Attributes:
        images: The images, in the order given.
        judgement: Result of the pointing game, as `PointingGame.to_dict` and `EvaluationScope.to_dict`; None without
            boxes.
        page: Page that shows all images; None if no output was requested.
    """

    images: tuple[LocatedImage, ...]
    judgement: dict[str, Any] | None
    page: Path | None

    @property
    def sentence(self) -> str:
        """Summary, "12 images, 1 of them not processed"."""
        failed = sum(one.error is not None for one in self.images)
        return count_with_noun(len(self.images), "image") + (f", {failed:,} of them not processed" if failed else "")

    def __repr__(self) -> str:
        page = f"; open {self.page}" if self.page else ""
        return f"LocatedImages({self.sentence}{page})"

    def _repr_html_(self) -> str:
        sentences = [describe_pointing_result(self.judgement)] if self.judgement else []
        if self.page:
            sentences.append(f"open {self.page}")
        rows = [
            (image.path, one.name, f"{one.score:.3f}", *(f"{edge:.0f}" for edge in one.to_dict()["box"]))
            for image in self.images
            for one in image.classes
        ]
        header = ("image", "class", "score", "left", "top", "right", "bottom")
        thumbnails = [
            Thumbnail(_thumbnail(one.overlay), (Path(one.path).name, one.classes[0].name))
            for one in self.images
            if one.overlay is not None and one.classes
        ]
        return NotebookBlock(
            self.sentence, sentences, header=header, rows=rows, thumbnails=thumbnails[:MAX_THUMBNAILS]
        ).render()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `svertka locate --json` prints them.

        Returns:
            The keys images, judgement and page.
        """
        return {
            "images": [one.to_dict() for one in self.images],
            "judgement": self.judgement,
            "page": self.page and str(self.page),
        }


@check_types
@with_preserved_settings
def locate(
    run: str | PathLike[str] | Classifier | nn.Module,
    *images: ImageLike,
    boxes: str | PathLike[str] | None = None,
    include_training: bool = False,
    top: int = 1,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
    trust_builder: bool = False,
    precision: str | None = None,
) -> LocatedImages:
    """Locate the classes or labels with the highest scores in images.

    Args:
        run: A run folder, a network with weights as for `Classifier.load`, a `Classifier` or an nn.Module. Any
            classifier works; a run that was trained with boxes works best.
        *images: Images, files or folders, as for `predict`.
        boxes: Bounding boxes to evaluate with: a folder of VOC .xml files, a COCO .json or a .csv. Images that the
            run was trained on are left out of the evaluation.
        include_training: Whether to evaluate on images that the run was trained on, too.
        top: Number of classes per image.
        output: Folder for overlays and a page that shows them. None: no files.
        overwrite: Whether `output` may be a folder that svertka did not write.
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads, at least 1. None: all cores.
        max_pixels: Largest image that is decoded, pixels. None: `data.image_io.PIXEL_LIMIT`.
        trust_builder: As for `Classifier.load`.
        precision: "fp32" to use the weights of a run even if it has an optimized network. On the CPU, its layers from
            the first that is computed patch by patch are used otherwise; those that all patches share stay float32.

    Returns:
        The classes, their scores and regions in each image. Images that cannot be read have an `error`.

    Raises:
        UsageError: The run predicts a number; there is no image; the weights or the precision do not exist; the
            network cannot be traced; or `output` exists.
        DataError: No box belongs to any of the images, or a box lies outside its image or has an unknown class.
        RunError: The run is missing or damaged.
        StorageError: The folder cannot be written.
    """
    torch_device, _ = choose_device(device), set_threads(threads)
    classifier = Classifier.open(run, torch_device, of_patches=True, trust_builder=trust_builder, precision=precision)
    classifier.require_names("locate")
    scorer = PatchScorer(classifier)
    inputs = list_inputs(images, classifier.preprocess.bands)
    annotations = _read_annotations(boxes, [path for path, _ in inputs], scorer.names)
    folder = None if output is None else OverlayFolder(prepare_output_folder(output, PAGE, HTML, overwrite=overwrite))
    game, training_filter = PointingGame(), TrainingImageFilter(classifier.origin, include_training=include_training)
    decoding = DecodingOptions.up_to(max_pixels).with_intensity_range(scorer.preprocess.intensity_range)
    located = []
    with progress("locating", len(inputs), "images") as shown:
        for number, (path, image) in enumerate(inputs):
            try:
                pixels, annotation = load_pixels(image, decoding), annotations.get(number)
                is_evaluated = (
                    annotation is not None and not isinstance(image, ImageError) and training_filter.is_allowed(image)
                )
                located.append(
                    _locate_in_image(scorer, path, pixels, top, annotation, game if is_evaluated else None, folder)
                )
            except ImageError as error:
                located.append(LocatedImage(path, error=str(error)))
            shown.advance()
    for note in describe_files((image for _, image in inputs), decoding):
        say(note)
    judgement = None
    if boxes is not None:
        judgement = game.to_dict() | training_filter.scope(", ".join(map(str, images))).to_dict()
    page = None if folder is None else folder.write_page(judgement)
    return LocatedImages(tuple(located), judgement, page)


def _read_annotations(
    boxes: str | PathLike[str] | None, paths: list[str], names: tuple[str, ...]
) -> dict[int, Annotation]:
    """Return the annotations by number of the image."""
    if boxes is None:
        return {}
    annotations = read_boxes(Path(boxes))
    check_box_classes(annotations, names)
    matched = match_to_images(annotations, paths)
    if not matched:
        raise DataError(f"the boxes in {boxes} belong to none of the images, such as {paths[0]}; check the file names")
    return matched


def _locate_in_image(
    scorer: PatchScorer,
    path: str,
    image: Pixels,
    top: int,
    annotation: Annotation | None,
    game: PointingGame | None,
    folder: OverlayFolder | None,
) -> LocatedImage:
    """Locate the `top` classes in `image` (H, W, 3) uint8, add it to `game`, and its overlay to `folder`."""
    height, width = image.shape[:2]
    if annotation is not None:
        annotation.check(width, height)
    maps = scorer.score_maps(image)
    of_all = average_class_scores(maps).tolist()
    scores = {name: of_all[index] for name, index in scorer.index.items()}
    best = sorted(scores, key=lambda name: -scores[name])[:top]
    heats = {name: make_heat_map(maps, scorer.index[name], height, width) for name in best}
    classes = tuple(
        LocatedClass(name, scores[name], find_hottest_region(heats[name], name, height, width)) for name in best
    )
    if annotation is not None and game is not None:

        def locate_class(name: str) -> Point:
            heat = heats[name] if name in heats else make_heat_map(maps, scorer.index[name], height, width)
            return find_hottest_region(heat, name, height, width).peak

        game.add(annotation, (width, height), scores, locate_class)
    overlay = None
    if folder is not None:
        overlay = folder.add(path, image, heats[best[0]], classes[0].region, classes[0].score, annotation)
    return LocatedImage(path, classes, overlay)


def _thumbnail(overlay: Path) -> str | None:
    """Return a `data:` URI of an overlay; None if the file is gone."""
    try:
        return thumbnail_uri(np.asarray(Image.open(overlay).convert("RGB")))
    except OSError:
        return None
