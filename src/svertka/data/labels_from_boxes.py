"""Images labeled by their bounding boxes, in the layouts that annotation tools write.

photos/images/*.jpg, photos/annotations/*.xml           also JPEGImages/ with Annotations/, as in VOC
photos/*.jpg, photos/*.xml                              annotations beside the images
photos/train/*.jpg, photos/valid/*.jpg                  either of these in parts

Two or more folders named like the classes of boxes, or named otherwise than images/, label their images themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from svertka.data.box_annotations import BACKGROUND, Annotation, match_to_images, read_boxes
from svertka.data.dataset import PARTS, Dataset, FileImages
from svertka.data.file_accounting import NO_BOXES, FileAccount, UnusedFile, count_by_suffix
from svertka.data.file_tree import FileTree, list_tree
from svertka.data.folder_and_table_sources import FolderListing, list_folder, natural_sort_key
from svertka.data.folder_layout import WRAPPERS, normalize_unicode_name
from svertka.data.split_names import match_split_name
from svertka.errors import DataError


def label_by_boxes(source: Path, boxes: Path, columns: Mapping[str, str]) -> Dataset | None:
    """Label the images in a folder with the class of their largest box.

    An image without an object is of the class "background" if an annotation says so; an image without an annotation is
    left out, unless it is in a class folder.

    Args:
        source: The folder.
        boxes: As for `read_boxes`.
        columns: Meaning -> column, as for `label_tables.read_table`.

    Returns:
        The data set; None if folders or a table label the images.

    Raises:
        UsageError: `boxes` does not exist or has an unknown format.
        DataError: `boxes` is damaged, or no box belongs to any of the images.
    """
    try:
        listing = list_folder(source, columns)
    except DataError:  # a table beside the images may be that of their boxes
        listing = FolderListing(source, source, ())
    names = listing.names()
    if columns or (len(names) > 1 and not any(_is_no_class(name) for name in names)):
        return None
    annotations = read_boxes(boxes)
    drawn = {normalize_unicode_name(box.name) for annotation in annotations for box in annotation.boxes}
    if len(names) > 1 and drawn & set(names):
        return None
    tree = list_tree(source)
    paths = sorted(tree.images())
    found = match_to_images(annotations, paths)
    if not any(annotation.boxes for annotation in found.values()):
        raise DataError(
            f"{source} has fewer than two class folders, and no box in {boxes} is of its images; check which folder "
            "holds the images, and the file names in the annotations"
        )
    folders = {entry.path: entry.label for entry in listing.entries if entry.label in drawn}
    labels = {path: _label(found.get(index), folders.get(path)) for index, path in enumerate(paths)}
    return _dataset(tree, {path: label for path, label in labels.items() if label}, found)


def _is_no_class(name: str) -> bool:
    """Return whether a folder called `name` is more likely to hold images of all classes."""
    return name.lower() in WRAPPERS or match_split_name(name) is not None


def _label(annotation: Annotation | None, folder: str | None) -> str | None:
    """Return the class of an image by its boxes, else by its class folder; None if it has neither."""
    if annotation is None:
        return folder
    areas: Counter[str] = Counter()
    for box in annotation.boxes:
        areas[normalize_unicode_name(box.name)] += max(1, round(box.area))
    return areas.most_common(1)[0][0] if areas else BACKGROUND


def _dataset(tree: FileTree, labels: Mapping[str, str], found: Mapping[int, Annotation]) -> Dataset:
    names = tuple(sorted(set(labels.values()), key=natural_sort_key))
    index, parts = {name: number for number, name in enumerate(names)}, _parts(list(labels))
    paths = sorted(labels, key=lambda path: (index[labels[path]], ("", *PARTS).index(parts[path]), path))
    left_out = [*tree.left_out, *(UnusedFile(path, NO_BOXES) for path in tree.images() if path not in labels)]
    not_images = [folder.inside(name) for folder in tree.root.walk() for name in folder.other]
    counts = Counter(labels.values())
    notes = ["labels are read from boxes: " + ", ".join(f"{counts[name]:,} images of {name}" for name in names)]
    mixed = sum(len({box.name for box in annotation.boxes}) > 1 for annotation in found.values())
    if mixed:
        notes.append(f"{mixed:,} images show several classes; each is labeled with that of its largest boxes")
    return Dataset(
        source=str(tree.root.path.absolute()),
        names=names,
        images=FileImages(tree.root.path, paths),
        labels=np.array([index[labels[path]] for path in paths], dtype=np.int64),
        parts=np.array([parts[path] for path in paths], dtype="<U5"),
        account=FileAccount(tuple(sorted(left_out)), count_by_suffix(not_images + tree.hidden_others), tuple(notes)),
    )


def _parts(paths: Sequence[str]) -> dict[str, str]:
    """Return the part of each image by the first folder that names one; "" for all if there is no train part."""
    said = {
        path: next(filter(None, (match_split_name(folder) for folder in PurePosixPath(path).parts[:-1])), "")
        for path in paths
    }
    return said if "train" in said.values() else dict.fromkeys(said, "")
