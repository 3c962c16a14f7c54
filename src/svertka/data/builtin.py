"""Built-in data sets in their published files: digits, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100."""

import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import ArrayImages, Dataset, Pixels
from svertka.data.hash_split import split_by_hash
from svertka.download import download_file
from svertka.errors import DataError, StorageError, UsageError
from svertka.files import cache_folder, lock_file, write_atomic
from svertka.progress import progress

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")

SYSTEM_FOLDER = Path("/usr/share/datasets")  # of Debian's package dataset-fashion-mnist
DIGITS_TEST_SHARE = 0.2
VALUES = 3 * 32 * 32  # bytes per CIFAR image
SHORT = 100_000  # bytes; limit of a list of class names


@dataclass(frozen=True)
class IdxFiles:
    """The four gzip files of a data set in MNIST's layout.

    Attributes:
        folder: Folder that holds the files.
        names: Class names.
        mirrors: URLs of the folder.
        checksums: File name -> published MD5.
    """

    folder: str
    names: tuple[str, ...]
    mirrors: tuple[str, ...]
    checksums: Mapping[str, str]


@dataclass(frozen=True)
class CifarArchive:
    """Archive of CIFAR records: label bytes, of which the last counts, then 32×32 red, green and blue values.

    Attributes:
        archive: Name of the archive.
        folder: Folder inside the archive.
        label_bytes: Labels per record.
        train: File name -> number of records.
        test: File name -> number of records.
        names_file: File of class names.
        classes: Number of classes.
        mirrors: URLs of the folder that holds the archive.
        checksum: Published MD5.
    """

    archive: str
    folder: str
    label_bytes: int
    train: Mapping[str, int]
    test: Mapping[str, int]
    names_file: str
    classes: int
    mirrors: tuple[str, ...]
    checksum: str

    def sizes(self) -> dict[str, int]:
        """Return the size of each file of records, bytes."""
        files = {**self.train, **self.test}
        return {name: count * (self.label_bytes + VALUES) for name, count in files.items()}


IDX_SETS = {
    # LeCun, Cortes & Burges 1998; the original site requires a password, so use the common mirrors.
    "mnist": IdxFiles(
        folder="mnist",
        names=tuple("0123456789"),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    # Xiao, Rasul & Vollgraf 2017.
    "fashion-mnist": IdxFiles(
        folder="fashion-mnist",
        names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}

# Krizhevsky 2009; checksums from https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR_SETS = {
    "cifar10": CifarArchive(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        label_bytes=1,
        train={f"data_batch_{batch}.bin": 10_000 for batch in range(1, 6)},
        test={"test_batch.bin": 10_000},
        names_file="batches.meta.txt",
        classes=10,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": CifarArchive(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        label_bytes=2,
        train={"train.bin": 50_000},
        test={"test.bin": 10_000},
        names_file="fine_label_names.txt",
        classes=100,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        checksum="md5:03b5dce01913d631647c71ecec9e9cb8",
    ),
}


def open_builtin(name: str) -> Dataset:
    """Open a built-in data set.

    Looks in $SVERTKA_DATA, then in the cache, then where Debian installs it; otherwise downloads it to the cache. Files
    are checked by their layout (sizes, magic numbers, labels). CIFAR's pickled version is not read, because a pickle
    can execute code.

    Args:
        name: One of NAMES.

    Returns:
        The data set, images (N, H, W, 1 or 3) uint8, those of the training part first.

    Raises:
        UsageError: There is no such data set.
        DataError: A file has another layout.
        FetchError: The data set is not on this machine and cannot be downloaded.
    """
    if name == "digits":
        return _digits()
    if name in IDX_SETS:
        images, labels, parts = _read_idx_set(name, _idx_folder(name))
        return _dataset(name, IDX_SETS[name].names, images, labels, parts)
    if name in CIFAR_SETS:
        names, images, labels, parts = _read_cifar(name, _cifar_folder(name))
        return _dataset(name, names, images, labels, parts)
    raise UsageError(f"no data set is called {name}; use one of: {', '.join(NAMES)}")


def data_folder() -> Path:
    """Return the folder of data sets that the environment variable SVERTKA_DATA names, for benchmarks and experiments.

    Raises:
        UsageError: It is not set, or is no folder.
    """
    given = os.environ.get("SVERTKA_DATA")
    if not given or not Path(given).is_dir():
        found = f"SVERTKA_DATA={given} is no folder" if given else "SVERTKA_DATA is not set"
        raise UsageError(f"{found}; set it to the folder of the data sets that docs/results.md lists")
    return Path(given).resolve()


def _dataset(
    name: str, names: tuple[str, ...], images: Pixels, labels: npt.NDArray[np.integer[Any]], parts: list[str]
) -> Dataset:
    return Dataset(name, names, ArrayImages(images, name), labels.astype(np.int64), np.array(parts))


def _digits() -> Dataset:
    """Return scikit-learn's 1,797 digits, 8×8, their values 0 to 16 scaled to 0 to 255.

    They have no test part, so a fifth of them, chosen by content hash, becomes it.
    """
    values, labels = _read_digits()
    pixels = np.rint(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = ArrayImages(pixels, "digits")
    digests = [images.digest(index) for index in range(len(images))]
    unknown = np.full(len(labels), "", dtype="<U5")
    test = split_by_hash(digests, labels, unknown, val=0, test=DIGITS_TEST_SHARE)["test"]
    parts = np.where(np.isin(np.arange(len(labels)), test), "test", "train")
    return _dataset("digits", tuple("0123456789"), pixels, labels, parts.tolist())


def _read_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the 64 values of each digit, 0 to 16, and the labels, without importing scikit-learn, if possible."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    return bunch.data, bunch.target.astype(np.int64)


def _roots() -> Iterator[Path]:
    if given := os.environ.get("SVERTKA_DATA"):
        yield Path(given)
    with suppress(StorageError):  # the files may be elsewhere
        yield cache_folder("data")
    yield SYSTEM_FOLDER


# ---- MNIST's layout


def _idx_folder(name: str) -> Path:
    """Return the folder of the four files, compressed or not; download them if they are nowhere."""
    published = IDX_SETS[name]
    for root in _roots():
        folder = root / published.folder
        if all(_packed_or_not(folder / file).exists() for file in published.checksums):
            return folder
    folder = cache_folder("data", published.folder)
    for file, checksum in published.checksums.items():
        download_file(
            [mirror + file for mirror in published.mirrors],
            folder / file,
            checksum,
            instead=f"put {', '.join(published.checksums)} into {folder}",
        )
    return folder


def _packed_or_not(path: Path) -> Path:
    """Return `path` (ending in .gz), or the uncompressed file if only that exists."""
    plain = path.with_suffix("")
    return plain if plain.exists() and not path.exists() else path


def _read_idx_set(name: str, folder: Path) -> tuple[Pixels, Pixels, list[str]]:
    images, labels = [], []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images.append(_read_idx(_packed_or_not(folder / f"{part}-images-idx3-ubyte.gz"), (count, 28, 28)))
        labels.append(_read_idx(path := _packed_or_not(folder / f"{part}-labels-idx1-ubyte.gz"), (count,)))
        _check_labels(path, labels[-1], len(IDX_SETS[name].names))
    return np.concatenate(images)[..., None], np.concatenate(labels), ["train"] * 60_000 + ["test"] * 10_000


def _read_idx(path: Path, shape: tuple[int, ...]) -> Pixels:
    """Return the unsigned bytes of an IDX file, which must have this shape."""
    header = b"".join(value.to_bytes(4) for value in (0x0800 | len(shape), *shape))
    size = len(header) + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{path} cannot be read ({reason}); replace it with the published file") from error
    if content[: len(header)] != header or len(content) != size:
        layout = "×".join(map(str, shape))
        raise DataError(
            f"{path} must hold {layout} unsigned bytes in IDX format, {size} bytes that begin with "
            f"{header.hex(' ', 4)}; "
            f"it begins with {content[: len(header)].hex(' ', 4)} and has "
            f"{'more' if len(content) > size else len(content)}; replace it with the published file"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


# ---- CIFAR's layout


def _cifar_folder(name: str) -> Path:
    """Return the folder of the unpacked files; download the archive if they are nowhere."""
    published = CIFAR_SETS[name]
    stem = published.archive.removesuffix(".gz")
    for root in _roots():
        if (root / published.folder).is_dir():
            return root / published.folder
        for archive in sorted(root.glob(f"{stem}*")):
            if archive.suffix != ".part":
                return _ensure_unpacked(archive, published)
    folder = cache_folder("data")
    archive = download_file(
        [mirror + published.archive for mirror in published.mirrors],
        folder / published.archive,
        published.checksum,
        instead=f"put {published.archive} into {folder}",
    )
    return _ensure_unpacked(archive, published)


def _ensure_unpacked(archive: Path, published: CifarArchive) -> Path:
    """Return a folder in the cache with the files of the archive, which is unpacked once."""
    facts = archive.stat()
    key = hashlib.blake2b(f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode(), digest_size=8)
    folder = cache_folder("data", "unpacked", f"{published.folder}-{key.hexdigest()}")
    with lock_file(folder / "lock"):
        files = {**published.sizes(), published.names_file: None}
        missing = {name: size for name, size in files.items() if not (folder / name).exists()}
        if missing:
            _unpack(archive, folder, missing)
    return folder


def _unpack(archive: Path, folder: Path, missing: dict[str, int | None]) -> None:
    """Write the `missing` files of the archive into `folder`.

    `missing` maps names to sizes in bytes; None for a short file of any size.
    """
    try:
        with tarfile.open(archive) as tar, progress(f"unpacking {archive.name}", len(missing), "files") as bar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if name in missing else None
                if file is None:
                    continue
                size = missing.pop(name)
                if not (member.size <= SHORT if size is None else member.size == size):
                    raise DataError(f"{archive} holds a {name} of {member.size} bytes, not {size or SHORT}; replace it")
                write_atomic(folder / name, file.read())
                bar.advance()
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":").lower()
        raise DataError(f"{archive} cannot be unpacked ({reason}); replace it with the published file") from error
    if missing:
        raise DataError(f"{archive} lacks {', '.join(sorted(missing))}; use CIFAR's binary version")


def _read_cifar(name: str, folder: Path) -> tuple[tuple[str, ...], Pixels, Pixels, list[str]]:
    published = CIFAR_SETS[name]
    count = sum(published.train.values()) + sum(published.test.values())
    images = np.empty((count, 32, 32, 3), np.uint8)
    labels = np.empty(count, np.uint8)
    start = 0
    for file, size in published.sizes().items():
        records = _read_exactly(folder / file, size).reshape(-1, published.label_bytes + VALUES)
        _check_labels(folder / file, records[:, published.label_bytes - 1], published.classes)
        rows = slice(start, start + len(records))
        labels[rows] = records[:, published.label_bytes - 1]
        images[rows] = records[:, published.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        start += len(records)
    names_file = folder / published.names_file
    names = tuple(names_file.read_text(errors="replace").split()) if names_file.exists() else ()
    if len(names) != published.classes:
        raise DataError(f"{names_file} must hold {published.classes} class names, not {len(names)}; replace it")
    parts = ["train"] * sum(published.train.values()) + ["test"] * sum(published.test.values())
    return names, images, labels, parts


def _read_exactly(path: Path, size: int) -> Pixels:
    """Return the bytes of a file, which must have `size` of them."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}); replace it") from error
    if len(content) != size:
        raise DataError(f"{path} has {len(content)} bytes, and must have {size}; replace it with the published file")
    return content


def _check_labels(path: Path, labels: Pixels, classes: int) -> None:
    if labels.max() >= classes:
        raise DataError(f"{path} holds the label {labels.max()}, and labels must be below {classes}; replace it")
