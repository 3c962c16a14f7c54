import dataclasses
import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from svertka.data import builtin
from svertka.data.builtin import CIFAR_SETS, IDX_SETS, NAMES, open_builtin
from svertka.data.dataset import ArrayImages
from svertka.errors import DataError, FetchError, UsageError

PARTS = {"train-images", "train-labels", "t10k-images", "t10k-labels"}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any data and without a network; an empty folder to put $SVERTKA_DATA in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SVERTKA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(builtin, "SYSTEM_FOLDER", tmp_path / "system")
    for sets in (IDX_SETS, CIFAR_SETS):
        for name, its in sets.items():
            monkeypatch.setitem(sets, name, dataclasses.replace(its, mirrors=("http://127.0.0.1:9/",)))  # type: ignore[type-var]
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def small_cifar100(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """CIFAR-100 with 30 + 10 random images: the archive, packed as published."""
    draws = np.random.default_rng(0)
    records = draws.integers(0, 256, (40, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = np.arange(40) % 20, np.arange(40) * 2
    names = "\n".join(f"fine_{number}" for number in range(100)) + "\n\n"
    files = {
        "train.bin": records[:30].tobytes(),
        "test.bin": records[30:].tobytes(),
        "fine_label_names.txt": names.encode(),
        "coarse_label_names.txt": b"coarse\n" * 20,
    }
    archive = packed(files, "cifar-100-binary/", "gz")
    small = dataclasses.replace(
        CIFAR_SETS["cifar100"],
        train={"train.bin": 30},
        test={"test.bin": 10},
        checksum=f"md5:{hashlib.md5(archive).hexdigest()}",
    )
    monkeypatch.setitem(CIFAR_SETS, "cifar100", small)
    return archive


def packed(files: dict[str, bytes], prefix: str, compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {Path(member.name).name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def array(dataset: object) -> np.ndarray:
    assert isinstance(dataset.images, ArrayImages)  # type: ignore[attr-defined]
    return dataset.images.array  # type: ignore[attr-defined]


def test_digits() -> None:
    from sklearn.datasets import load_digits

    dataset = open_builtin("digits")
    bunch = load_digits()
    assert array(dataset).shape == (1797, 8, 8, 1)
    assert np.abs(array(dataset)[..., 0] / 255 * 16 - bunch.images).max() < 0.04  # half a step of 255
    assert array(dataset).max() == 255
    assert (dataset.labels == bunch.target).all()
    assert dataset.names == tuple("0123456789")
    assert set(dataset.parts) == {"train", "test"}
    assert np.mean(dataset.parts == "test") == pytest.approx(0.2, abs=0.03)
    assert (np.bincount(dataset.labels[dataset.parts == "test"]) > 20).all()


def test_mnist_as_published(shared_data: Path) -> None:
    dataset = open_builtin("mnist")
    images = array(dataset)
    assert images.shape == (70_000, 28, 28, 1)
    assert images.dtype == np.uint8
    # The file's own digests of its uncompressed content, known from the wild, and the class counts of LeCun's page.
    raw = gzip.decompress((shared_data / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    assert hashlib.md5(raw).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert images[:60_000].tobytes() == raw[16:]
    assert dataset.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.labels[60_000:60_010].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(dataset.labels[60_000:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.parts.tolist() == ["train"] * 60_000 + ["test"] * 10_000
    assert dataset.images.name(60_000) == "mnist #60000"


def test_fashion_mnist_where_debian_puts_it() -> None:
    if not (builtin.SYSTEM_FOLDER / "fashion-mnist").is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    dataset = open_builtin("fashion-mnist")
    assert dataset.counts().tolist() == [7000] * 10
    assert dataset.names[dataset.labels[0]] == "Ankle boot"
    assert dataset.parts.tolist() == ["train"] * 60_000 + ["test"] * 10_000


@pytest.mark.large
def test_cifar10_as_published(shared_data: Path) -> None:
    dataset = open_builtin("cifar10")
    images = array(dataset)
    assert images.shape == (60_000, 32, 32, 3)
    assert dataset.names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert np.bincount(dataset.labels[50_000:]).tolist() == [1000] * 10
    # The means that everybody normalizes with, which hold in any order but only with the right channels.
    mean = images[:50_000].reshape(-1, 3).mean(axis=0) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


def test_every_set_is_asked_for_by_name() -> None:
    assert {"digits", *IDX_SETS, *CIFAR_SETS} == set(NAMES)
    with pytest.raises(UsageError, match="no data set is called emnist; use one of: digits, mnist"):
        open_builtin("emnist")


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2", ""])
def test_cifar100_in_any_packing(small_cifar100: bytes, nowhere: Path, compression: str) -> None:
    files = unpacked(small_cifar100)
    suffix = f".{compression}" if compression else ""
    (nowhere / f"cifar-100-binary.tar{suffix}").write_bytes(packed(files, "cifar-100-binary/", compression))
    dataset = open_builtin("cifar100")
    records = np.frombuffer(files["train.bin"] + files["test.bin"], np.uint8).reshape(40, 3074)
    assert dataset.labels.tolist() == records[:, 1].tolist()  # the fine label, not the coarse one before it
    assert dataset.names[78] == "fine_78"
    assert dataset.parts.tolist() == ["train"] * 30 + ["test"] * 10
    red, green, blue = records[7, 2:].reshape(3, 1024)
    assert (array(dataset)[7].reshape(1024, 3) == np.stack([red, green, blue], axis=1)).all()


def test_an_archive_is_unpacked_once(small_cifar100: bytes, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = nowhere / "cifar-100-binary.tar.gz"
    archive.write_bytes(small_cifar100)
    first = open_builtin("cifar100")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        again = open_builtin("cifar100")
    assert (array(first) == array(again)).all()
    # Another archive in its place is another set.
    files = unpacked(small_cifar100)
    files["test.bin"] = files["test.bin"][:-1] + bytes([files["test.bin"][-1] ^ 255])
    archive.write_bytes(packed(files, "cifar-100-binary/", "gz"))
    assert (array(open_builtin("cifar100")) != array(first)).sum() == 1


def test_interrupted_unpacking_is_resumed(small_cifar100: bytes, nowhere: Path) -> None:
    (nowhere / "cifar-100-binary.tar.gz").write_bytes(small_cifar100)
    first = open_builtin("cifar100")
    for name in ("test.bin", "fine_label_names.txt"):
        next((nowhere.parent / "cache").rglob(name)).unlink()
    assert (array(open_builtin("cifar100")) == array(first)).all()


def test_an_unpacked_folder_is_read_where_it_is(small_cifar100: bytes, nowhere: Path) -> None:
    folder = nowhere / "cifar-100-binary"
    folder.mkdir()
    for name, content in unpacked(small_cifar100).items():
        (folder / name).write_bytes(content)
    assert len(open_builtin("cifar100")) == 40
    assert not list((nowhere.parent / "cache").rglob("*.bin"))


def test_the_pickled_version_is_not_read(small_cifar100: bytes, nowhere: Path) -> None:
    trap = pickle.dumps({"data": np.zeros((30, 3072), np.uint8), "fine_labels": [0] * 30})
    for name in ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"):
        (nowhere / name).write_bytes(packed({"train": trap, "test": trap, "meta": trap}, "cifar-100-python/", "gz"))
    with pytest.raises(DataError, match=r"lacks fine_label_names.txt, test.bin, train.bin; .* binary version"):
        open_builtin("cifar100")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.bin", lambda content: content[:-1], "holds a train.bin of 92219 bytes, not 92220"),
        ("test.bin", lambda content: content + b"x", "holds a test.bin of 30741 bytes, not 30740"),
        (
            "test.bin",
            lambda content: b"\0\x64" + content[2:],
            "test.bin holds the label 100, and labels must be below 100",
        ),
        ("fine_label_names.txt", lambda content: b"cat\n", "must hold 100 class names, not 1"),
    ],
)
def test_a_damaged_cifar_file_is_named(small_cifar100: bytes, nowhere: Path, name, change, message: str) -> None:
    files = unpacked(small_cifar100)
    files[name] = change(files[name])
    (nowhere / "cifar-100-binary.tar.gz").write_bytes(packed(files, "cifar-100-binary/", "gz"))
    with pytest.raises(DataError, match=message):
        open_builtin("cifar100")


def test_a_damaged_file_in_an_unpacked_folder_is_named(small_cifar100: bytes, nowhere: Path) -> None:
    folder = nowhere / "cifar-100-binary"
    folder.mkdir()
    files = unpacked(small_cifar100)
    (folder / "train.bin").write_bytes(files["train.bin"][:-1])
    with pytest.raises(DataError, match=r"train\.bin has 92219 bytes, and must have 92220"):
        open_builtin("cifar100")
    (folder / "train.bin").write_bytes(files["train.bin"])
    with pytest.raises(DataError, match=r"test\.bin cannot be read \(no such file"):
        open_builtin("cifar100")


def test_no_cache_is_needed_where_the_files_are(
    shared_data: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "file"))
    monkeypatch.setattr(builtin, "SYSTEM_FOLDER", shared_data)
    assert len(open_builtin("mnist")) == 70_000


def test_a_damaged_archive_is_named(small_cifar100: bytes, nowhere: Path) -> None:
    archive = nowhere / "cifar-100-binary.tar.gz"
    for content in (
        small_cifar100[: len(small_cifar100) // 2],
        b"no archive",
        b"",
        small_cifar100[:5000] + b"\0" * 5000,
    ):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar-100-binary.tar.gz (cannot be unpacked|lacks)") as caught:
            open_builtin("cifar100")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "must hold 60000.* unsigned bytes in IDX format"),
        (lambda raw: raw + b"\0", "it begins with .* and has more; replace it"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "must hold 60000"),
        (lambda raw: raw[:7] + b"\x61" + raw[8:], "must hold 60000"),
        (lambda raw: b"", "must hold 60000"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_idx_file_is_named(shared_data: Path, nowhere: Path, file: str, change, message: str) -> None:
    folder = nowhere / "mnist"
    folder.mkdir()
    packed_file = (shared_data / "mnist" / f"{file}.gz").read_bytes()
    for part in PARTS:
        other = f"{part}-idx{3 if 'images' in part else 1}-ubyte"
        (folder / f"{other}.gz").symlink_to(shared_data / "mnist" / f"{other}.gz")
    (folder / f"{file}.gz").unlink()
    if change is None:
        (folder / f"{file}.gz").write_bytes(packed_file[: len(packed_file) // 2])
    else:
        (folder / file).write_bytes(change(gzip.decompress(packed_file)))  # unpacked ones are read too
    with pytest.raises(DataError, match=f"{file}.*{message}") as caught:
        open_builtin("mnist")
    assert "\n" not in str(caught.value)


def test_an_invalid_label_is_refused(shared_data: Path, nowhere: Path) -> None:
    shutil.copytree(shared_data / "mnist", nowhere / "mnist", copy_function=shutil.copyfile)
    (nowhere / "mnist").chmod(0o755)
    labels = nowhere / "mnist" / "t10k-labels-idx1-ubyte.gz"
    raw = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(raw[:-1] + b"\x0a"))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz holds the label 10"):
        open_builtin("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_offline_the_error_says_where_to_put_files(nowhere: Path, name: str) -> None:
    with pytest.raises(FetchError) as caught:
        open_builtin(name)
    message = str(caught.value)
    folder = nowhere.parent / "cache" / "svertka" / "data"
    if name in IDX_SETS:
        folder /= name
        assert all(file in message for file in IDX_SETS[name].checksums)
    else:
        assert CIFAR_SETS[name].archive in message
    assert message.endswith(f"into {folder}")
    assert "connection refused" in message
    assert "\n" not in message


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server on this machine gives its files away."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_missing_files_are_downloaded_once(
    small_cifar100: bytes, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = mirror
    (folder / "cifar-100-binary.tar.gz").write_bytes(small_cifar100)
    here = dataclasses.replace(CIFAR_SETS["cifar100"], mirrors=("http://127.0.0.1:9/", address))
    monkeypatch.setitem(CIFAR_SETS, "cifar100", here)
    assert len(open_builtin("cifar100")) == 40
    (folder / "cifar-100-binary.tar.gz").unlink()
    assert len(open_builtin("cifar100")) == 40


def test_the_four_files_are_fetched(
    shared_data: Path, nowhere: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = mirror
    checksums = {}
    for file in IDX_SETS["mnist"].checksums:
        content = (shared_data / "mnist" / file).read_bytes()
        (folder / file).write_bytes(content)
        checksums[file] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    here = dataclasses.replace(IDX_SETS["mnist"], mirrors=(address,), checksums=checksums)
    monkeypatch.setitem(IDX_SETS, "mnist", here)
    assert len(open_builtin("mnist")) == 70_000
    (folder / "train-images-idx3-ubyte.gz").unlink()
    assert len(open_builtin("mnist")) == 70_000
