"""Data sets from a folder of images or a table that names them.

photos/cat/*.jpg, photos/dog/*.jpg                      class folders, or another layout of `folder_layout`
photos.csv: path,label,part,group                       or another table of `label_tables`
val/ILSVRC2012_val_00000001.JPEG and a label file       ImageNet's validation images, see `imagenet`
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import numpy as np

from svertka.data import imagenet
from svertka.data.dataset import PARTS, Dataset, FileImages
from svertka.data.file_accounting import HIDDEN, NO_CLASS, NO_PART, OWN, UNREAD_FORMAT, FileAccount, count_by_suffix
from svertka.data.file_tree import SOME_SUFFIXES, FileTree, detect_output_kind, list_tree
from svertka.data.filename_label_hint import suggest_labeling
from svertka.data.folder_layout import (
    FolderLayout,
    LabeledImage,
    detect_layout,
    merge_class_spellings,
    normalize_unicode_name,
)
from svertka.data.label_tables import TABLE_SUFFIXES, Table, read_table
from svertka.data.split_names import match_split_name
from svertka.data.target_columns import Kind
from svertka.errors import DataError, UsageError
from svertka.escaping import join_first, shell_quote
from svertka.files import parse_path
from svertka.garbage_collection import without_garbage_collection
from svertka.tasks import SINGLE_LABEL, AnyTask, MultiLabel, Regression, Targets, split_labels

ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar"}
OWN_FOLDERS = "put the images of each class into a folder of its own, such as photos/cat and photos/dog"
# Files that hold many images, or arrays.
CONTAINERS = {".parquet", ".arrow", ".tfrecord", ".tfrecords", ".rec", ".lmdb", ".mdb", ".h5", ".hdf5", ".npy", ".npz"}
CONTAINERS |= {".mat", ".pkl", ".pickle", ".pt", ".pth", ".idx", ".bin", ".mp4", ".avi", ".mov", ".mkv", ".pdf"}
SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}


@dataclass(frozen=True)
class FolderListing:
    """Contents of a folder or a table; all paths are relative to `root`.

    Attributes:
        source: The folder or table.
        root: Folder that paths are relative to.
        entries: The labeled images.
        empty_classes: Class folders without images.
        ignored: Empty folders and folders in no part.
        hidden: Hidden files and folders.
        others: Visible files that are not images or not used.
        account: Every file that is not used, and why.
        tables: The tables that label the images, and the folder that their paths are relative to.
    """

    source: Path
    root: Path
    entries: tuple[LabeledImage, ...]
    empty_classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    account: FileAccount = field(default_factory=FileAccount)
    tables: tuple[tuple[Table, str], ...] = ()

    @property
    def kind(self) -> Kind:
        """What the label of an entry is, as in `tasks`: several labels if it is so in one of the tables."""
        return next((table.kind for table, _ in self.tables if table.kind != "single-label"), "single-label")

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes or labels in natural order; of a number, its column."""
        if self.kind == "regression":
            return (self.tables[0][0].target,)
        labels = {entry.label for entry in self.entries}
        return tuple(sorted({name for label in labels for name in self._split(label)}, key=natural_sort_key))

    def _split(self, label: str) -> Sequence[str]:
        """Return the class or the labels that the label of an entry means."""
        return split_labels(label) if self.kind == "multi-label" else [label]

    def problems(self) -> list[str]:
        """Return why training is impossible, a sentence per problem; empty if it is possible."""
        if not self.entries:
            left_out = self.account.sentence()
            left_out = "; ".join(filter(None, (left_out, self._containers())))
            unlabeled = [one.path for one in self.account.left_out if one.reason in (NO_CLASS, NO_PART)]
            return [
                f"{self.source} holds no image ({SOME_SUFFIXES}) in a class folder; "
                + (suggest_labeling(unlabeled) or OWN_FOLDERS)
                + (f" ({left_out})" if left_out else "")
            ]
        names = self.names()
        if (mixture := self._mixture()) is not None:
            return [mixture]
        if self.kind == "regression":
            return []
        found = [
            f"{sentence}; add some or remove the folder"
            for path, sentence in self._without_images().items()
            if len(names) < 2 or self._has_unread(path)
        ]
        learned = {one for one in {entry.label for entry in self.entries} if match_split_name(one) in (None, "train")}
        to_learn = [entry for entry in self.entries if entry.label in learned] or self.entries
        first, paths = to_learn[0].label, [entry.path for entry in to_learn]
        if all(match_split_name(name) for name in names):
            to_do = suggest_labeling(paths) or (
                f"put those of each class into a folder of its own, such as {first}/cat and {first}/dog, or list their "
                "classes in a CSV file of path,label,part"
            )
            found.append(f"{self.source} has images in {_in_order(self.names())} outside class folders; {to_do}")
        elif len(names) < 2 and self.kind == "multi-label":
            listed = f"only one label, {names[0]}" if names else "no label"
            found.append(
                f"{self.source} has {listed}; several labels need two names or more, and yes or no needs two classes"
            )
        elif len(names) < 2:
            advice = self._suggest_wrapped_classes() or suggest_labeling(paths)
            needed = f"a classifier needs two or more{f'; {advice}' if advice else ''}"
            found.append(f"{self.source} has only one class, {first}; {needed}")
        classes = self._classes()
        if not classes["train"]:
            found.append(f"{self.source} has nothing to train on; put class folders into {self.root / 'train'}")
        for part in ("val", "test"):
            only = classes[part] - classes["train"] if classes["train"] else ()
            if only:
                found.append(
                    f"classes of {part} of {self.source} must be in train, but {_in_order(only)} is only in {part}; "
                    "add training images or rename the class"
                )
        return found

    def _mixture(self) -> str | None:
        """Return why the tables, which label the images in different ways, cannot be used together; None if they can.

        A table of one class an image can be one of several labels in which no image has two.
        """
        kinds = {table.kind for table, _ in self.tables}
        numbers = {table.target for table, _ in self.tables if table.kind == "regression"}
        if kinds <= {"single-label", "multi-label"} or (kinds == {"regression"} and len(numbers) == 1):
            return None
        listed = "; ".join(
            f"{table.file} has {table.target or table.kind.replace('-', ' ')}" for table, _ in self.tables
        )
        return f"the tables of {self.source} label images in different ways ({listed}); use one way in all of them"

    def warnings(self) -> list[str]:
        """Return what may be wrong, a sentence per finding."""
        if self.kind == "regression":
            return list(self.account.warnings)
        classes = self._classes()
        missing = [
            f"{part} of {self.source} has no image of {_in_order(only)}, so it does not measure the error on it"
            for part in ("val", "test")
            if classes[part] and (only := classes["train"] - classes[part])
        ]
        groups = self._groups()
        if len(groups) == 1 and groups != {""}:
            missing.append(f"all images of {self.source} are of one group, {groups.pop()}; they are split individually")
        unlearned = [f"{sentence}, so that the class is not learned" for sentence in self._without_images().values()]
        return [*self.account.warnings, *unlearned, *missing]

    def _without_images(self) -> dict[str, str]:
        """Return the folder of each class without images in any part -> the beginning of a sentence on it."""
        names = set(self.names())
        unlearned = [path for path in self.empty_classes if normalize_unicode_name(Path(path).name) not in names]
        return {path: f"{self.root / path} holds no image{self._left_out_in(path)}" for path in unlearned}

    def _suggest_wrapped_classes(self) -> str:
        """Return advice if the only class folder holds several folders with images, which may be the classes."""
        folders = {PurePath(entry.path).parent.parts[:2] for entry in self.entries}
        if self.tables or len(folders) < 2 or len({parts[:1] for parts in folders}) > 1:
            return ""
        inside = join_first(sorted(parts[1] for parts in folders if len(parts) > 1))
        wrapper = self.root / min(folders)[0]
        return f"if the folders in it ({inside}) are the classes, give {wrapper} as SOURCE"

    def _has_unread(self, folder: str) -> bool:
        """Return whether `folder` has images in unsupported formats, so that it was meant as a class."""
        return any(one.reason == UNREAD_FORMAT and one.path.startswith(f"{folder}/") for one in self.account.left_out)

    def _classes(self) -> dict[str, set[str]]:
        """Return the classes or labels in each part."""
        pairs = {(entry.part or "train", entry.label) for entry in self.entries}
        return {part: {name for of, label in pairs if of == part for name in self._split(label)} for part in PARTS}

    def _containers(self) -> str | None:
        """Return sentences on archives and files that may hold images or labels; None if there are none."""
        said = []
        for suffixes, to_do in (
            (ARCHIVES, "unpack them first"),
            (CONTAINERS, "save the images in them as files first"),
            (SPREADSHEETS, "if they list the classes of the images, save them as CSV"),
        ):
            counts = [f"{count:,} {suffix}" for suffix, count in self.account.not_images if suffix in suffixes]
            if counts:
                said.append(f"there are {', '.join(counts)}: {to_do}")
        return "; ".join(said) or None

    def _left_out_in(self, folder: str) -> str:
        """Return what is left out of `folder`, in parentheses; "" if nothing."""
        inside = tuple(one for one in self.account.left_out if one.path.startswith(f"{folder}/"))
        said = FileAccount(inside).sentence()
        return f" that can be used ({said})" if said else ""

    def dataset(self) -> Dataset:
        """Return the images by class, part and path, or by part and path, regardless of `problems`.

        Raises:
            DataError: The tables label the images in different ways.
        """
        if (mixture := self._mixture()) is not None:
            raise DataError(mixture)
        names = self.names()
        index = {name: number for number, name in enumerate(names)}
        parts = ("", *PARTS)
        places = index if self.kind == "single-label" else {}
        entries = sorted(
            self.entries, key=lambda entry: (places.get(entry.label, 0), parts.index(entry.part), entry.path)
        )
        task, targets = self._targets(entries, index)
        return Dataset(
            source=str(self.source.absolute()),
            names=names,
            images=FileImages(self.root, [entry.path for entry in entries]),
            labels=targets,
            parts=np.array([entry.part for entry in entries], dtype="<U5"),
            account=replace(self.account, warnings=tuple(self.warnings())),
            groups=np.array([entry.group for entry in entries], dtype=np.str_) if len(self._groups()) > 1 else None,
            task=task,
        )

    def _targets(self, entries: Sequence[LabeledImage], index: Mapping[str, int]) -> tuple[AnyTask, Targets]:
        """Return the task and the targets of `entries`, as in `Dataset`; `index`: name -> number."""
        if self.kind == "regression":
            return Regression(), np.array([float(entry.label) for entry in entries], dtype=np.float64)
        if self.kind == "single-label":
            return SINGLE_LABEL, np.array([index[entry.label] for entry in entries], dtype=np.int64)
        targets = np.zeros((len(entries), len(index)), np.float32)
        for row, entry in zip(targets, entries, strict=True):
            row[[index[name] for name in self._split(entry.label)]] = 1
        return MultiLabel(), targets

    def _groups(self) -> set[str]:
        return {entry.group for entry in self.entries}


def open_folder(path: str | Path, *, to_train: bool = True, columns: Mapping[str, str] | None = None) -> Dataset:
    """Open a folder of images or a table that names them.

    Args:
        path: The folder or table.
        to_train: Whether the images must suffice for training.
        columns: Meaning -> column, as for `label_tables.read_table`.

    Raises:
        UsageError: There is no such folder or file.
        DataError: There are no images, or a row has no label; or, for training, there is only one class, an empty
            class, or a class that is only in val or test.
    """
    listing = list_folder(path, columns)
    problems = listing.problems()
    if problems and (to_train or not listing.entries):
        raise DataError(problems[0])
    return listing.dataset()


def list_folder(path: str | Path, columns: Mapping[str, str] | None = None) -> FolderListing:
    """List a folder of images or a table that names them.

    Args:
        path: The folder or table.
        columns: Meaning -> column, as for `label_tables.read_table`.

    Raises:
        UsageError: There is no such folder or file.
        DataError: The folder or table cannot be read, or a table has other columns.
    """
    path = parse_path(path)
    if path.is_dir():
        return _list_folder(path, columns or {})
    if not path.exists():
        raise UsageError(f"there is no folder {path}; check the path")
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        raise UsageError(f"{path} is an archive; unpack it ({_unpack_command(path)}) and give the folder")
    if suffix not in TABLE_SUFFIXES:
        raise UsageError(f"{path} is a file; give a folder of class folders, or a .csv file of path,label,part")
    table = read_table(path, columns)
    entries = [LabeledImage(row.path, normalize_unicode_name(row.label), row.part, row.group) for row in table.rows]
    notes: list[str] = []
    warnings: list[str] = []
    if table.kind != "regression":
        entries, notes, warnings = merge_class_spellings(entries, several=table.kind == "multi-label")
    account = FileAccount(notes=(*table.notes, *notes), warnings=tuple(warnings))
    return FolderListing(source=path, root=path.parent, entries=tuple(entries), account=account, tables=((table, ""),))


@without_garbage_collection()
def _list_folder(path: Path, columns: Mapping[str, str]) -> FolderListing:
    tree = list_tree(path)
    kind = detect_output_kind(path, {*tree.root.other, *(folder.name for folder in tree.root.folders)})
    if kind == "an atlas":
        raise UsageError(f"{path} is {kind} that svertka wrote, not a source of images; give the folder of the images")
    file = imagenet.find_label_file(path) if tree.root.images and not tree.root.full and not columns else None
    layout = detect_layout(tree, columns) if file is None else _labeled_flat(tree, file)
    left_out = tuple(sorted({*tree.left_out, *layout.left_out}))
    not_images = [folder.inside(name) for folder in tree.root.walk() for name in folder.other]
    notes = list(layout.notes)
    if tree.misnamed:
        notes.append(f"used, although their names lack the suffix of an image: {join_first(tree.misnamed)}")
    account = FileAccount(
        left_out, count_by_suffix(not_images + tree.hidden_others), tuple(notes), warnings=tuple(layout.warnings)
    )
    ignored = {*layout.ignored, *tree.empty} - set(layout.empty_classes)
    elsewhere = (HIDDEN, NO_PART, OWN)
    return FolderListing(
        source=path,
        root=path,
        entries=tuple(sorted(layout.entries)),
        empty_classes=tuple(layout.empty_classes),
        ignored=tuple(sorted(ignored)),
        hidden=tuple(sorted(tree.hidden)),
        others=tuple(sorted(not_images + [one.path for one in left_out if one.reason not in elsewhere])),
        account=account,
        tables=tuple(layout.tables),
    )


def _labeled_flat(tree: FileTree, file: Path) -> FolderLayout:
    """Return the images in the root of `tree`, labeled by ImageNet's label file."""
    found = zip(tree.root.images, imagenet.read_validation_labels(file, tree.root.images), strict=True)
    return FolderLayout(entries=[LabeledImage(path, label, "") for path, label in found])


def _unpack_command(path: Path) -> str:
    """Return the command that unpacks the archive `path` beside it."""
    folder = path.with_name(path.name.partition(".")[0] or "images")
    simple: dict[str, tuple[str | Path, ...]] = {
        ".zip": ("unzip", path, "-d", folder),
        ".7z": ("7z", "x", path, f"-o{folder}"),
        ".rar": ("unrar", "x", path),
    }
    if path.suffix.lower() in simple:
        return shell_quote(*simple[path.suffix.lower()])
    return f"{shell_quote('mkdir', folder)} && {shell_quote('tar', '-xf', path, '-C', folder)}"


def _in_order(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=natural_sort_key))


def natural_sort_key(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts names as people do: ignoring case, numbers by value."""
    # Python converts at most 4300 digits to a number.
    pieces = re.split(r"(\d+)", name.casefold())  # strings and numbers alternate, so that keys are comparable
    return [int(piece[:4000]) if number % 2 else piece for number, piece in enumerate(pieces)], name
