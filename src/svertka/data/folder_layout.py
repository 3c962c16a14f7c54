"""Layouts of image folders: which folders are parts, classes or wrappers, and what is not used.

photos/cat/*.jpg, photos/dog/*.jpg                      class folders; their subfolders belong to the class
photos/train/cat/*.jpg, photos/val/cat/*.jpg            class folders in parts, named as in `split_names`
photos/cat/train/*.jpg, photos/cat/test/*.jpg           parts in class folders
photos/PetImages/cat/*.jpg                              a wrapper: the only folder that leads to images
photos/metadata.csv, photos/*.jpg                       images in a flat folder, labeled by a table beside them
photos/train/n01443537/images/*.JPEG, photos/val/images/*.JPEG, photos/val/val_annotations.txt      Tiny-ImageNet
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from svertka.data import imagenet
from svertka.data.file_accounting import LISTED_ALREADY, NO_CLASS, NO_LABEL, NO_PART, UnusedFile
from svertka.data.file_tree import FileTree, Folder
from svertka.data.label_tables import TABLE_SUFFIXES, Table, read_table
from svertka.data.split_names import match_split_name, match_split_names
from svertka.errors import DataError, UsageError
from svertka.escaping import escape_undecodable, join_first
from svertka.tasks import SEPARATOR, split_labels

# Folders that accompany images without being classes; ignored if they hold no image.
COMPANIONS = {"annotations", "annotation", "labels", "label", "xml", "xmls", "docs", "doc", "scripts", "code", "meta"}
COMPANIONS |= {"metadata", "imagesets", "logs", "checkpoints", "weights", "models", "runs"}
WRAPPERS = {"images", "image", "imgs", "img", "data", "dataset", "photos", "pictures", "jpegimages", "classes"}
# Segmentation masks: images that label the pixels of other images.
MASK_FOLDERS = {"mask", "masks", "ground_truth", "groundtruth", "gt", "segmentation", "segmentations", "seg", "trimaps"}
MASK_FOLDERS |= {"segmentationclass", "segmentationobject", "labelmaps", "label_maps"}
MASK = re.compile(r"(.+?)[ _.-](?:mask|masks|seg|segmentation|gt|groundtruth|ground_truth|label|labels)(?:[ _.-]?\d+)?")
MASK_WORD = re.compile("mask|seg|gt|ground|label", re.IGNORECASE)  # in each name that matches MASK
UNLABELED = {"unknown", "unlabeled", "unlabelled", "unclassified"}  # folders of images without a class
EXAMPLE = re.compile(r"submission|sample", re.IGNORECASE)  # tables of a challenge, whose labels are placeholders
INVISIBLE = ("Cc", "Cf")  # categories of characters that show nothing
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")  # names that spreadsheets rewrite, 007 as 7 and 1 as 1.0
SHOWN = 5  # names in a sentence
PLAIN_PARTS = ("train", "val", "valid", "validation", "test")


class LabeledImage(NamedTuple):
    """Image with its label.

    Attributes:
        path: Path of the image.
        label: Class name; several labels, joined by |; or a number.
        part: "train", "val", "test" or "".
        group: Group, or "".
    """

    path: str
    label: str
    part: str
    group: str = ""


@dataclass
class FolderLayout:
    """Interpretation of a tree of folders; all paths are relative to its root.

    Attributes:
        entries: The labeled images.
        empty_classes: Class folders without images.
        ignored: Folders without images, or in no part.
        left_out: Images that are not used, and why.
        notes: Sentences on how the folders were interpreted.
        warnings: Sentences on what may be wrong.
        tables: The tables that label images, and the folder that their paths are relative to.
    """

    entries: list[LabeledImage] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    left_out: list[UnusedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[tuple[Table, str]] = field(default_factory=list)


def detect_layout(tree: FileTree, columns: Mapping[str, str] | None = None) -> FolderLayout:
    """Detect how the folders of `tree` label its images.

    Args:
        tree: The folders.
        columns: Meaning -> column, as for `read_table`, for a table in the tree.

    Raises:
        DataError: A table that labels the images cannot be read, or there are several.
    """
    reader = _Reader(tree, columns or {})
    reader.read()
    return reader.layout


def normalize_unicode_name(name: str) -> str:
    """Return `name` as NFC text, with bytes that are not UTF-8 as escapes."""
    # macOS decomposes é in file names, and a class from two machines must be one class.
    return escape_undecodable(unicodedata.normalize("NFC", name))


def normalize_class_name(name: str) -> str:
    """Return a key equal for class names that differ only in case, width, spaces, dashes or invisible characters."""
    words = re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name).casefold())
    return "".join(one for one in words if unicodedata.category(one) not in INVISIBLE).strip()


def merge_class_spellings(
    entries: Sequence[LabeledImage], *, several: bool = False
) -> tuple[list[LabeledImage], list[str], list[str]]:
    """Give one name to classes whose names differ between parts only in spelling.

    Within a part, such classes stay apart, with a warning that they may be one.

    Args:
        entries: The images.
        several: Whether the label of an image is several labels, joined by |.

    Returns:
        The images, notes and warnings.
    """

    def labels(label: str) -> list[str]:
        return split_labels(label) if several else [label]

    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    parts: dict[str, set[str]] = defaultdict(set)
    for (label, part), count in Counter((entry.label, entry.part) for entry in entries).items():
        for name in labels(label):
            spellings[normalize_class_name(name)][name] += count
            parts[name].add(part or "train")
    called: dict[str, str] = {}
    notes, warnings = [], []
    for names in spellings.values():
        if len(names) < 2:
            continue
        ordered = sorted(names, key=lambda name: ("train" not in parts[name], -names[name], name))
        listed = " and ".join(ordered)
        if any(parts[one] & parts[other] for one in ordered for other in ordered if one < other):
            warnings.append(
                f"the classes {listed} differ only in case, spaces, dashes or invisible characters: if they are one "
                "class, give them one name"
            )
        else:
            notes.append(f"the classes {listed} of different parts are merged to {ordered[0]}")
            called |= dict.fromkeys(ordered[1:], ordered[0])
    numbers: dict[float, list[str]] = defaultdict(list)
    for name in sorted(parts):
        if NUMBER.fullmatch(name):
            numbers[float(name)].append(name)
    warnings += [
        f"the classes {' and '.join(names)} are one number, written differently: if they are one class, give them one "
        "name"
        for names in numbers.values()
        if len(names) > 1
    ]
    if not called:
        return list(entries), notes, warnings
    renamed = [
        one._replace(label=SEPARATOR.join(dict.fromkeys(called.get(name, name) for name in labels(one.label))))
        if any(name in called for name in labels(one.label))
        else one
        for one in entries
    ]
    return renamed, notes, warnings


class _Reader:
    """Builder of a FolderLayout."""

    def __init__(self, tree: FileTree, columns: Mapping[str, str]) -> None:
        self.tree, self.columns, self.layout = tree, columns, FolderLayout()
        self.found: list[tuple[LabeledImage, Folder | None]] = []
        self.reasons: list[
            tuple[bool, str]
        ] = []  # why tables were not read, and whether they belong to another part than train
        self.in_no_part: set[str] = set()  # folders in class folders, beside parts
        self.in_tables: set[str] = set()  # images in the folders of tables

    def read(self) -> None:
        """Try one layout after another."""
        top = self._unwrapped(self.tree.root)
        parts = _parts_in(top)
        inner = _parts_inside_classes(top)
        if self.columns or not self._read_labeled_folders(top, parts, inner):
            self._read_tables(self.tree.root)
            if not self.found and self.reasons:
                raise DataError(min(self.reasons, key=lambda reason: reason[0])[1])
            if not self.found and self.columns:
                raise UsageError(
                    f"{self.tree.root.path} has no table that labels its images; leave out --columns or give the table"
                )
            if not self.found:
                self._read_classes(top.folders, "")
        self._keep_once()
        self._name_wordnet_ids(top)
        kinds = {table.kind for table, _ in self.layout.tables}
        if "regression" not in kinds:
            several = "multi-label" in kinds
            self.layout.entries, notes, warnings = merge_class_spellings(self.layout.entries, several=several)
            self.layout.notes += notes
            self.layout.warnings += warnings
        self._note_rest(top, parts)
        self._question_masks()

    def _read_labeled_folders(
        self, top: Folder, parts: Mapping[str, str], inner: Sequence[tuple[Folder, Mapping[str, str]]]
    ) -> bool:
        """Read folders named after classes; return False if there are none."""
        if parts:
            self._read_parts(top, parts)
        elif inner:
            self._read_parts_of_classes(inner)
        elif len(top.full) > 1:
            tables = self._tables_in(top)
            if tables and any(_is_wrapper(folder, top) for folder in top.full):
                return False  # images/ and test/ beside labels.csv are not classes
            self._read_classes(top.folders, "")
            self._question_subfolders(top.full)
            self._question_tables(tables, top)
        return bool(self.found)

    # Folders

    def _unwrapped(self, root: Folder) -> Folder:
        """Return the folder that holds parts or classes: `root`, or one inside wrappers."""
        folder = root
        while not folder.images and not _parts_in(folder) and len(folder.full) == 1 and _leads_on(folder.full[0]):
            self.layout.ignored += [other.relative for other in folder.folders if other is not folder.full[0]]
            folder = folder.full[0]
        if folder is not root:
            self.layout.notes.append(f"the images are in {folder.path}")
        return folder

    def _read_parts(self, top: Folder, parts: Mapping[str, str]) -> None:
        folders = [folder for folder in top.folders if folder.name in parts]
        inner = {folder.name: _without_wrapper(folder, folders) for folder in folders}
        notes, ignored = [], []
        if any(name.lower() not in PLAIN_PARTS for name in parts):
            notes.append(f"parts of {top.path}: " + ", ".join(f"{name} is {part}" for name, part in parts.items()))
        for folder in folders:
            inside, part = inner[folder.name], parts[folder.name]
            if _holds_classes(inside):
                if inside is not folder:
                    notes.append(f"the classes of {folder.path} are in {inside.path}")
                self._read_classes(inside.folders, part)
            elif tables := self._tables_in(folder):
                self._use_table(tables[0], folder, part)
            else:
                ignored.append(folder.relative)
                if not folder.listed:
                    self.layout.warnings.append(f"{folder.path} cannot be listed, so that its {part} part is not used")
                if folder.total:
                    notes.append(
                        f"{folder.path} holds {folder.total} images, neither in class folders nor in a table, so they "
                        "are not used"
                    )
        if not self.found:
            return  # a table beside the parts may label them
        self.layout.notes += notes
        self.layout.ignored += [*ignored, *(one.relative for one in top.folders if one.name not in parts)]
        self._question_subfolders(
            [one for name, part in parts.items() if part == "train" and name in inner for one in inner[name].full]
        )
        self._question_tables(self._tables_in(top), top)

    def _read_parts_of_classes(self, inner: Sequence[tuple[Folder, Mapping[str, str]]]) -> None:
        names = sorted({name for _, parts in inner for name in parts})
        self.layout.notes.append(f"each class folder has its own parts: {', '.join(names)}")
        for folder, parts in inner:
            for inside in folder.folders:
                if inside.name in parts:
                    self._read_class(inside, folder.name, parts[inside.name])
                else:
                    self.layout.ignored.append(inside.relative)
                    self.in_no_part.add(inside.relative)
        kinds = sorted(
            {kind.name for folder, parts in inner for part in folder.full if part.name in parts for kind in part.full}
        )
        if kinds:
            self.layout.warnings.append(
                f"the parts of the class folders have subfolders, {join_first(kinds, SHOWN)}, which are merged; "
                "if those are the classes, as in MVTec's data sets, give one of the folders "
                f"{join_first([one.name for one, _ in inner])} as SOURCE"
            )

    def _read_classes(self, folders: Iterable[Folder], part: str) -> None:
        for folder in folders:
            if folder.total:
                self._read_class(folder, folder.name, part)
            elif folder.own or folder.name.lower() in COMPANIONS:
                self.layout.ignored.append(folder.relative)
            else:
                self.layout.empty_classes.append(folder.relative)

    def _read_class(self, folder: Folder, name: str, part: str) -> None:
        label = normalize_unicode_name(name)
        self.found += [
            (LabeledImage(inside.inside(image), label, part), inside)
            for inside in folder.walk()
            for image in inside.images
        ]

    # Tables

    def _read_tables(self, root: Folder) -> None:
        """Read the images that tables label, in `root` or in the only folder with images below."""
        folder = root
        while True:
            tables = self._tables_in(folder)
            parts = match_split_names([table.file.stem for table in tables])
            if len(tables) > 1 and set(parts) != {table.file.stem for table in tables}:
                named = ", ".join(table.file.name for table in tables)
                raise DataError(
                    f"{folder.path} has several tables that label its images: {named}; give one of them as SOURCE"
                )
            for table in tables:
                self._use_table(table, folder, parts[table.file.stem] if len(tables) > 1 else "")
            if tables or folder.images or len(folder.full) != 1:
                return
            folder = folder.full[0]

    def _tables_in(self, folder: Folder) -> list[Table]:
        """Return the tables in `folder` that label images in it."""
        found = []
        images = set(folder.all_images())
        for name in folder.other:
            suffix = Path(name).suffix.lower()
            if not images or suffix not in TABLE_SUFFIXES or EXAMPLE.search(name):
                continue
            try:
                table = read_table(folder.path / name, self.columns)
            except DataError as error:
                if suffix != ".txt":  # a text file may be anything
                    self.reasons.append((match_split_name(Path(name).stem) != "train", str(error)))
                continue
            if any(folder.inside(row.path) in images for row in table.rows):
                found.append(table)
            elif suffix != ".txt":
                missing = f"there is no {table.rows[0].path}; correct its paths"
                reason = f"{table.file} names no image in {folder.path}: {missing}"
                self.reasons.append((match_split_name(table.file.stem) != "train", reason))
        return found

    def _use_table(self, table: Table, folder: Folder, part: str) -> None:
        self.layout.notes += [f"labels are read from {table.file}", *table.notes]
        self.layout.tables.append((table, folder.relative))
        self.in_tables.update(folder.all_images())
        left_out = {one.path for one in self.tree.left_out}
        for row in table.rows:
            path = PurePosixPath(folder.relative, row.path).as_posix()
            if path in left_out:
                continue
            self.found.append(
                (LabeledImage(path, normalize_unicode_name(row.label), part or row.part, row.group), None)
            )

    # Checks

    def _keep_once(self) -> None:
        """Leave out images that are reached through a link if their folder is used directly."""
        plain = {folder.identity for _, folder in self.found if folder is not None and not folder.linked}
        for entry, folder in self.found:
            if folder is not None and folder.linked and folder.identity in plain:
                self.layout.left_out.append(UnusedFile(entry.path, LISTED_ALREADY))
            else:
                self.layout.entries.append(entry)

    def _question_subfolders(self, classes: Sequence[Folder]) -> None:
        """Say which subfolders are merged into classes, and warn if they may be the classes."""
        plain = [folder for folder in classes if not folder.images]
        names = Counter(inside.name for folder in plain for inside in folder.full)
        common = sorted(name for name, count in names.items() if count > 1 and 2 * count > len(plain))
        if len(common) > 1:
            self.layout.warnings.append(
                f"the class folders {join_first([folder.name for folder in plain], SHOWN)} have the same subfolders, "
                f"{join_first(common, SHOWN)}; if those are the classes, put all images of each into one folder"
            )
        elif merged := [folder for folder in plain if len(folder.full) > 1]:
            listed = [f"{folder.name} ({join_first([one.name for one in folder.full], SHOWN)})" for folder in merged]
            self.layout.notes.append(f"the subfolders of a class folder are one class: {join_first(listed, SHOWN)}")
        beside = {folder.name for folder in classes}
        for folder in plain:
            inside = sorted(one.name for one in folder.full if one.name in beside)
            if inside:
                self.layout.warnings.append(
                    f"the class folder {folder.path} has subfolders named like the classes beside it, "
                    f"{join_first(inside, SHOWN)}; if it is a copy or a wrapper of them, move it away"
                )

    def _question_tables(self, tables: Sequence[Table], top: Folder) -> None:
        """Warn of tables whose labels differ from the folders of the images."""
        labels = {entry.path: entry.label for entry, _ in self.found}
        for table in (one for one in tables if one.kind == "single-label"):
            rows = [(labels.get(top.inside(row.path)), row) for row in table.rows]
            other = next(
                (
                    row
                    for label, row in rows
                    if label and normalize_class_name(label) != normalize_class_name(row.label)
                ),
                None,
            )
            if other is not None:
                self.layout.warnings.append(
                    f"{table.file} gives {other.path} the label {other.label}, but its folder is used as its class; "
                    f"give {table.file} as SOURCE if the table is right"
                )

    def _question_masks(self) -> None:
        """Warn of images that look like segmentation masks, beside other images or in folders of their own."""
        used = {entry.path for entry in self.layout.entries}
        found = []
        for folder in self.tree.root.walk():
            named = [name for name in folder.images if MASK_WORD.search(name)]
            stems = {PurePosixPath(name).stem.lower() for name in folder.images} if named else set()
            masks = [MASK.fullmatch(PurePosixPath(name).stem.lower()) for name in named]
            found += [folder.inside(name) for name, mask in zip(named, masks, strict=True) if mask and mask[1] in stems]
            found += [path for inside in folder.full if _holds_masks(inside, folder) for path in inside.all_images()]
        found = [path for path in dict.fromkeys(found) if path in used]
        if found:
            self.layout.warnings.append(
                f"{len(found):,} of {len(used):,} images look like segmentation masks of other images and are "
                f"used as images: {join_first(found)}; if they are masks, move them away"
            )

    def _name_wordnet_ids(self, top: Folder) -> None:
        """Rename classes from WordNet ids to the names in a words.txt beside them."""
        ids = {entry.label for entry in self.layout.entries}
        if "words.txt" not in top.other or not ids or not all(map(imagenet.WORDNET.fullmatch, ids)):
            return
        names = imagenet.read_wordnet_names(top.path / "words.txt", ids)
        counts = Counter(names.values())
        called = {one: name if counts[name] == 1 else f"{name} ({one})" for one, name in sorted(names.items())}
        self.layout.notes.append(
            f"class names are taken from {top.path / 'words.txt'}: {join_first([*called.values()], SHOWN)}"
        )
        self.layout.entries = [one._replace(label=called[one.label]) for one in self.layout.entries]

    def _note_rest(self, top: Folder, parts: Mapping[str, str]) -> None:
        """Record every other image as left out."""
        known = {one.path for one in self.layout.left_out} | {one.path for one in self.layout.entries}
        beside = {one.relative: NO_PART for one in top.folders if one.name not in parts} if parts else {}
        beside |= dict.fromkeys(self.in_no_part, NO_PART)
        for folder in self.tree.root.walk():
            under = next((beside[str(place)] for place in _places(folder.relative) if str(place) in beside), NO_CLASS)
            for path in map(folder.inside, folder.images):
                if path not in known:
                    reason = NO_LABEL if path in self.in_tables else under
                    self.layout.left_out.append(UnusedFile(path, reason))


def _parts_in(folder: Folder) -> dict[str, str]:
    """Return the folders in `folder` that are parts, and which; none if its folders are classes."""
    found = match_split_names([one.name for one in folder.folders])
    if not any(one.name in found for one in folder.full):
        return {}
    # "train" is a class beside "bus" and "car", and a part beside "val".
    if all(one.name in found for one in folder.full) or {"train"} < set(found.values()):
        return found
    return {}


def _parts_inside_classes(top: Folder) -> list[tuple[Folder, Mapping[str, str]]]:
    """Return the class folders in `top`, each with its parts, if all of them contain parts.

    Their other subfolders, such as MVTec's ground_truth/, are in no part; but not beside a train/ alone.
    """
    found: list[tuple[Folder, Mapping[str, str]]] = [
        (folder, match_split_names([one.name for one in folder.full])) for folder in top.full
    ]
    if len(found) < 2 or any(folder.images or "train" not in parts.values() for folder, parts in found):
        return []
    alone = all(len(parts) == len(folder.full) for folder, parts in found)
    return found if alone or all(len(set(parts.values())) > 1 for _, parts in found) else []


def _holds_masks(folder: Folder, parent: Folder) -> bool:
    """Return whether `folder` has masks of the images beside it, and is not a class such as "mask" beside "no mask"."""
    if folder.name.lower() not in MASK_FOLDERS:
        return False
    return bool(parent.images) or any(one.name.lower() in WRAPPERS for one in parent.full)


def _leads_on(folder: Folder) -> bool:
    """Return whether `folder` has parts or several folders with images, directly or through single folders."""
    while not folder.images:
        if _parts_in(folder) or len(folder.full) > 1:
            return True
        if not folder.full:
            return False
        folder = folder.full[0]
    return False


def _without_wrapper(part: Folder, parts: Sequence[Folder]) -> Folder:
    """Return the folder in `part` that holds its classes: seg_train/seg_train, or `part` itself."""
    elsewhere = {inside.name for other in parts if other is not part for inside in other.full}
    folder = part
    while not folder.images and len(folder.full) == 1:
        only = folder.full[0]
        alone = only.name not in elsewhere and len(only.full) > 1
        if only.images or not only.full or not (alone or _is_wrapper(only, folder)):
            break
        folder = only
    return folder


def _holds_classes(folder: Folder) -> bool:
    """Return whether the folders in `folder` are classes, not a single folder for all images."""
    full = folder.full
    alone = len(full) == 1 and bool(full[0].images)
    return bool(full) and not (alone and (_is_wrapper(full[0], folder) or full[0].name.lower() in UNLABELED))


def _is_wrapper(folder: Folder, parent: Folder) -> bool:
    name = folder.name.lower()
    return name in WRAPPERS or name == parent.name.lower() or match_split_name(name) is not None


def _places(relative: str) -> list[PurePosixPath]:
    place = PurePosixPath(relative)
    return [place, *place.parents]
