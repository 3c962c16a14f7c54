"""Images that are labelled by the boxes drawn on them, in the layouts that annotation tools leave.

photos/images/*.jpg, photos/annotations/*.xml           and JPEGImages/ with Annotations/, as in VOC
photos/*.jpg, photos/*.xml                              annotations beside the images
photos/train/*.jpg, photos/valid/*.jpg                  either of these in parts

Folders of two classes or more that are named like boxes, or are no images/, label their images themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from svertka.data.bounding_boxes import BACKGROUND, Annotation, match_to_images, read_boxes
from svertka.data.dataset import PARTS, Dataset, FileImages
from svertka.data.file_accounting import NO_BOXES, FileAccount, LeftOut, count_by_suffix
from svertka.data.file_tree import FileTree, list_tree
from svertka.data.folder_dataset import Listing, list_folder, natural_order
from svertka.data.folder_layout import WRAPPERS, clean_name
from svertka.data.split_names import part_of
from svertka.errors import DataError


def label_by_boxes(source: Path, boxes: Path, columns: Mapping[str, str]) -> Dataset | None:
    """The images in the folder `source` with the class of their largest box; None if its folders or a table label them.

    Images without an object are of the class background where an annotation says so, and are left out where none does,
    unless they are in the folder of a class. `columns`: as for `data.label_tables.read_table`.

    Raises:
        UsageError: `boxes` is not there, or of no known format.
        DataError: it is damaged, or no box is of any of the images.
    """
    try:
        listing = list_folder(source, columns)
    except DataError:  # a table beside the images may be about their boxes
        listing = Listing(source, source, ())
    names = listing.names()
    if columns or (len(names) > 1 and not any(_is_no_class(name) for name in names)):
        return None
    annotations = read_boxes(boxes)
    drawn = {clean_name(box.name) for annotation in annotations for box in annotation.boxes}
    if len(names) > 1 and drawn & set(names):
        return None
    tree = list_tree(source)
    paths = sorted(tree.images())
    found = match_to_images(annotations, paths)
    if not any(annotation.boxes for annotation in found.values()):
        raise DataError(
            f"{source} has no two class folders, and no box in {boxes} is of any of its images; check which folder "
            "holds the images, and the file names in the annotations"
        )
    folders = {entry.path: entry.label for entry in listing.entries if entry.label in drawn}
    labels = {path: _label(found.get(index), folders.get(path)) for index, path in enumerate(paths)}
    return _dataset(tree, {path: label for path, label in labels.items() if label}, found)


def _is_no_class(name: str) -> bool:
    """Whether a folder called `name` is more likely to hold images of all classes."""
    return name.lower() in WRAPPERS or part_of(name) is not None


def _label(annotation: Annotation | None, folder: str | None) -> str | None:
    """The class of an image by its boxes, or else by the class folder in which it is; None if neither says one."""
    if annotation is None:
        return folder
    areas: Counter[str] = Counter()
    for box in annotation.boxes:
        areas[clean_name(box.name)] += max(1, round(box.area))
    return areas.most_common(1)[0][0] if areas else BACKGROUND


def _dataset(tree: FileTree, labels: Mapping[str, str], found: Mapping[int, Annotation]) -> Dataset:
    names = tuple(sorted(set(labels.values()), key=natural_order))
    index, parts = {name: number for number, name in enumerate(names)}, _parts(list(labels))
    paths = sorted(labels, key=lambda path: (index[labels[path]], ("", *PARTS).index(parts[path]), path))
    left_out = [*tree.left_out, *(LeftOut(path, NO_BOXES) for path in tree.images() if path not in labels)]
    not_images = [folder.inside(name) for folder in tree.root.walk() for name in folder.other]
    counts = Counter(labels.values())
    notes = ["labels are read from boxes: " + ", ".join(f"{counts[name]:,} images of {name}" for name in names)]
    mixed = sum(len({box.name for box in annotation.boxes}) > 1 for annotation in found.values())
    if mixed:
        notes.append(f"{mixed:,} images show several classes; each is labelled with the one of the largest boxes")
    return Dataset(
        source=str(tree.root.path.absolute()),
        names=names,
        images=FileImages(tree.root.path, paths),
        labels=np.array([index[labels[path]] for path in paths], dtype=np.int64),
        parts=np.array([parts[path] for path in paths], dtype="<U5"),
        account=FileAccount(tuple(sorted(left_out)), count_by_suffix(not_images + tree.hidden_others), tuple(notes)),
    )


def _parts(paths: Sequence[str]) -> dict[str, str]:
    """The part of each image, by the first folder on its path that means one; "" for all if there is no train part."""
    said = {
        path: next(filter(None, (part_of(folder) for folder in PurePosixPath(path).parts[:-1])), "") for path in paths
    }
    return said if "train" in said.values() else dict.fromkeys(said, "")
