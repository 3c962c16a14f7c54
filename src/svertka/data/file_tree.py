"""Listing of everything below a folder, each file once: images, files left out and why, and other files.

All commands list folders with this module, so that they see the same images.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from svertka.data.file_accounting import (
    HIDDEN,
    LEADS_BACK,
    LISTED_ALREADY,
    NOT_REGULAR,
    OWN,
    UNLISTED,
    UNREAD_FORMAT,
    UnusedFile,
)
from svertka.data.image_io import DECODERS, SUFFIXES
from svertka.data.multiband_npy import HEADER_BYTES, may_be_bands
from svertka.errors import DataError
from svertka.files import read_json
from svertka.progress import Progress, progress

# Names that systems and tools leave behind, in lower case. Names that begin with a dot are junk, too.
JUNK = {"__macosx", "@eadir", "#recycle", "lost+found", "$recycle.bin", "recycler", "system volume information"}
JUNK |= {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__pycache__",
    "found.000",
    "node_modules",
    "site-packages",
    "venv",
}

# Images in unsupported formats, and raw photographs, many of which are TIFF with only a thumbnail inside.
UNREAD_SUFFIXES = {
    f".{suffix}"
    for line in (
        "jxl jxr hdp wdp svg svgz psd psb xcf ai eps exr hdr dds tga pcx ico icns cur",
        "pam pfm xbm xpm sgi ras fits fit dcm dicom nii mha nrrd svs ndpi czi lif nd2 qoi flif bpg mng",
        "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f",
    )
    for suffix in line.split()
}
SOME_SUFFIXES = ".jpg, .png, .webp, .heic, .tif, …"  # of supported formats, for sentences
SIGNATURE = 32  # bytes that identify a format
BMP = re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)  # with a valid header size
Identity = tuple[int, int]

ALBUM_TITLE = b"<title>locate \xe2\x80\x93 svertka</title>"


@dataclass(eq=False)
class Folder:
    """Folder in the tree, with its contents sorted by name.

    Attributes:
        path: Path of the folder.
        relative: Path from the root; "" for the root.
        identity: Device and inode.
        linked: Whether it is reached through a link.
        images: Names of the images.
        arrays: Names of the .npy files that may be images, until it is known whether they are.
        other: Names of the other files.
        folders: The subfolders.
        total: Number of images in it and below.
        own: Whether svertka wrote something into it.
        listed: Whether its contents are known.
    """

    path: Path
    relative: str
    identity: Identity
    linked: bool
    images: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    total: int = 0
    own: bool = False
    listed: bool = True

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def full(self) -> list["Folder"]:
        """Subfolders that contain images, at any depth."""
        return [folder for folder in self.folders if folder.total]

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all below it, parents first, in order of names."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(reversed(folder.folders))

    def all_images(self) -> Iterator[str]:
        """Yield the images in it and below, as paths from the root."""
        for folder in self.walk():
            yield from map(folder.inside, folder.images)

    def inside(self, name: str) -> str:
        """Return the path from the root of `name` in this folder."""
        return f"{self.relative}/{name}" if self.relative else name


@dataclass(eq=False)
class FileTree:
    """Contents of a folder; all paths are relative to `root`.

    Attributes:
        root: The folder.
        left_out: Images that are not used, and why.
        hidden: Hidden files and folders.
        hidden_others: Hidden files that are not images.
        empty: Empty folders.
        misnamed: Images without the suffix of an image.
        made: Folders that svertka wrote.
    """

    root: Folder
    left_out: list[UnusedFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    hidden_others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def images(self) -> list[str]:
        """Return all images as paths from the root; a folder that is also reached through a link counts once."""
        real = {folder.identity for folder in self.root.walk() if not folder.linked}
        return [
            folder.inside(name)
            for folder in self.root.walk()
            if not (folder.linked and folder.identity in real)
            for name in folder.images
        ]


def list_tree(path: Path) -> FileTree:
    """List everything below a folder; links are followed, to each folder once.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        status = path.stat()
        os.scandir(path).close()
    except OSError as error:
        raise DataError(f"cannot list {path}: {(error.strerror or str(error)).lower()}") from error
    lister = _Lister(Folder(path, "", (status.st_dev, status.st_ino), linked=False))
    with progress("listing", 0) as shown:
        lister.run(shown)
    return lister.tree


def detect_output_kind(folder: Path, names: set[str]) -> str | None:
    """Return what svertka wrote to `folder`: "a run", "runs", "an atlas", "overlays"; None if it is not svertka's.

    Args:
        folder: The folder.
        names: Names in it.
    """
    begun = names <= {".lock", "checkpoint"} and ".lock" in names  # a training that is preparing its images
    if begun or {"config.json", "model.safetensors"} <= names or {"training.json", "metrics.jsonl"} <= names:
        return "a run"
    if "atlas.json" in names and _has_key(folder / "atlas.json", "identity"):
        return "an atlas"
    if "repeats.json" in names and _has_key(folder / "repeats.json", "runs"):
        return "runs"
    return "overlays" if folder.name == "overlays" and _is_album(folder.parent / "index.html") else None


def _has_key(path: Path, key: str) -> bool:
    try:
        if not path.is_file():
            return False
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content


def _is_album(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return ALBUM_TITLE in file.read(1 << 16)
    except OSError:
        return False


def is_junk_file_name(name: str) -> bool:
    """Return whether systems or tools leave files or folders called `name` behind."""
    return name.startswith(".") or name.lower() in JUNK


def is_image_content(start: bytes) -> bool:
    """Return whether a file that begins with `start` is in a supported format."""
    found = next((name for name, (pattern, _) in DECODERS.items() if pattern.match(start)), None)
    return found not in (None, "NumPy") and (found != "BMP" or BMP.match(start) is not None)


class _Lister:
    """Builder of a FileTree."""

    def __init__(self, root: Folder) -> None:
        self.tree = FileTree(root)
        self._through_links: set[Identity] = set()

    def run(self, shown: Progress) -> None:
        """List all folders, parents first, and count their images, also in the title of `shown`."""
        root, images = self.tree.root, 0
        waiting: list[tuple[Folder, Folder | None, frozenset[Identity]]] = [(root, None, _above(root))]
        order = []
        while waiting:
            folder, parent, above = waiting.pop()
            if self._list(folder, parent, above):
                order.append(folder)
                images += len(folder.images)
                shown.title = f"listing, {images:,} images"
                inner = above | {folder.identity}
                waiting.extend((inside, folder, inner) for inside in reversed(folder.folders))
            elif parent is not None:
                parent.folders.remove(folder)
        self._place_arrays(order, images)
        for folder in reversed(order):
            folder.total = len(folder.images) + sum(inside.total for inside in folder.folders)

    @staticmethod
    def _place_arrays(folders: list[Folder], images: int) -> None:
        """Count .npy files as images where there are more of them than of other images: else they belong to those."""
        are_images = sum(len(folder.arrays) for folder in folders) > images
        for folder in folders:
            if folder.arrays:
                kept = folder.images if are_images else folder.other
                kept[:] = sorted([*kept, *folder.arrays])

    def _list(self, folder: Folder, parent: Folder | None, above: frozenset[Identity]) -> bool:
        """Fill in the contents of `folder`; return False if the folder itself is left out."""
        try:
            with os.scandir(folder.path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._unlisted(folder.relative, error)
            folder.listed = False
            return parent is not None  # it may be a class or a part, of which something has to be said
        if parent is not None:
            if detect_output_kind(folder.path, {entry.name for entry in entries}):
                parent.own = True
                self.tree.made.append(folder.relative)
                self._leave_all(folder.path, folder.relative, OWN)
                return False
            if not entries:
                self.tree.empty.append(folder.relative)
        for entry in entries:
            path = folder.inside(entry.name)
            if _is_folder(entry):
                self._add_folder(folder, entry, path, above | {folder.identity})
            elif is_junk_file_name(entry.name):
                self.tree.hidden.append(path)
                self._leave(path, HIDDEN)
            else:
                self._add_file(folder, entry, path)
        return True

    def _unlisted(self, path: str, error: OSError) -> None:
        self.tree.left_out.append(UnusedFile(f"{path}/", f"{UNLISTED}: {(error.strerror or str(error)).lower()}"))

    def _add_folder(self, parent: Folder, entry: "os.DirEntry[str]", path: str, above: frozenset[Identity]) -> None:
        if is_junk_file_name(entry.name):
            self.tree.hidden.append(path)
            if not entry.is_symlink():
                self._leave_all(parent.path / entry.name, path, HIDDEN)
            return
        try:
            status = entry.stat()
        except OSError as error:
            self._unlisted(path, error)
            return
        identity = status.st_dev, status.st_ino
        linked = parent.linked or entry.is_symlink()
        if identity in above or (linked and identity in self._through_links):
            self.tree.left_out.append(UnusedFile(f"{path}/", LEADS_BACK if identity in above else LISTED_ALREADY))
            return
        if linked:
            self._through_links.add(identity)
        parent.folders.append(Folder(parent.path / entry.name, path, identity, linked))

    def _add_file(self, folder: Folder, entry: "os.DirEntry[str]", path: str) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - pathlib takes ten times as long
        regular = _is_regular(entry)
        if suffix in SUFFIXES:
            if regular is False:  # reading a pipe blocks, a device may be endless
                self.tree.left_out.append(UnusedFile(path, NOT_REGULAR))
            elif suffix == ".npy":
                may_be_image = regular is None or may_be_bands(_start(entry.path, HEADER_BYTES))
                (folder.arrays if may_be_image else folder.other).append(entry.name)
            else:  # a broken link is reported as an unreadable image
                folder.images.append(entry.name)
        elif suffix in UNREAD_SUFFIXES:
            self.tree.left_out.append(UnusedFile(path, UNREAD_FORMAT))
        elif regular and is_image_content(_start(entry.path)):
            self.tree.misnamed.append(path)
            folder.images.append(entry.name)
        else:
            folder.other.append(entry.name)

    def _leave(self, path: str, reason: str) -> None:
        """Record a file that is left out for its place or name."""
        if Path(path).suffix.lower() in SUFFIXES.keys() | UNREAD_SUFFIXES:
            self.tree.left_out.append(UnusedFile(path, reason))
        else:
            self.tree.hidden_others.append(path)

    def _leave_all(self, folder: Path, relative: str, reason: str) -> None:
        """Record all files below `folder` as left out; links are not followed."""
        waiting = [(folder, relative)]
        while waiting:
            place, path = waiting.pop()
            try:
                with os.scandir(place) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                self._unlisted(path, error)
                continue
            for entry in entries:
                inside = f"{path}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((place / entry.name, inside))
                elif not _is_folder(entry):
                    self._leave(inside, reason)


def _above(root: Folder) -> frozenset[Identity]:
    """Return the identities of the folders above `root`; a link to one of them would loop."""
    found = set()
    for folder in root.path.resolve().parents:
        with suppress(OSError):
            status = folder.stat()
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_regular(entry: "os.DirEntry[str]") -> bool | None:
    """Return whether an entry is a regular file; None for a broken link."""
    try:
        return stat.S_ISREG(entry.stat().st_mode) if entry.is_symlink() else entry.is_file()
    except OSError:
        return None


def _start(path: str, count: int = SIGNATURE) -> bytes:
    """Return the first bytes of a regular file, by system calls, because there may be as many text files as images."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError:
        return b""
    try:
        return os.read(file, count)
    except OSError:
        return b""
    finally:
        os.close(file)
