"""Benchmark of the disk cache of decoded images against SQLite and LMDB: writing, reading, two processes, damage.

Rows are real images of 224 × 224 × 3 bytes under 16-byte keys. Every store verifies a CRC-32 of key and row whenever it
reads, appends 100 rows per transaction, and syncs each transaction to the disk. Each measurement runs in its own
process; stores take turns.

    read, cached        random order, with the file in the page cache; 1 thread and 2 threads
    read, disk          2 threads, after the file was dropped from the page cache, for the first reading of a process
    two processes read  rows per second of both together, cached
    two processes write the same rows in the same order; rows per second of the slower process
    growth              resident memory that the reading process gains
    damage              one bit of a file flipped or its end cut off, in a store of 50 rows: how many rows are right,
                        missing or wrong, and how often the process crashes

Needs `make bench-peers` and SVERTKA_DATA, or `--images FOLDER`.

    .venv-bench/bin/python bench/disk_cache_vs_lmdb.py
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shared_data import data_folder

SIDE = 224
PER_TRANSACTION = 100
IMAGES = 300  # decoded; further rows are the same images shifted by some pixels
DAMAGED_ROWS = 50
Row = npt.NDArray[np.uint8]


class Store(Protocol):
    """The interface of a store."""

    def append(self, keys: list[bytes], rows: list[Row]) -> None:
        """Store those of `rows` whose `keys` are absent, and sync them."""

    def read(self, keys: list[bytes], into: Row) -> int:
        """Read the rows of `keys` into `into`, (n, bytes); return how many are present and undamaged."""


class Svertka:
    """`svertka.data.disk_cache`."""

    def __init__(self, folder: Path) -> None:
        from svertka.data.disk_cache import RecordStore  # imports torch, which the others do not need

        self.store = RecordStore(folder / "rows", limit=10**11)

    def append(self, keys: list[bytes], rows: list[Row]) -> None:
        """Store rows."""
        self.store.append_bytes(keys, rows)

    def read(self, keys: list[bytes], into: Row) -> int:
        """Read every row once in random order; return rows per second and the growth of this process, MB.

        `first`: measure the first reading of this process, in which a store may read its index and verify rows.
        """
        count = 0
        for position, row in zip(self.store.find(keys).tolist(), into, strict=True):
            data = self.store.read(position) if position >= 0 else None
            if data is not None:
                row[: len(data)] = data
                count += 1
        return count


class Sqlite:
    """One table in a database with a write-ahead log or a rollback journal; one connection per thread."""

    def __init__(self, folder: Path, journal: str) -> None:
        self.path, self.journal = folder / "rows.sqlite", journal
        self.local = threading.local()
        self._connection().execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, crc INTEGER, data BLOB)")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self.local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            connection.execute("PRAGMA page_size = 65536")
            connection.execute(f"PRAGMA journal_mode = {self.journal}")
            connection.execute("PRAGMA synchronous = FULL")
            self.local.connection = connection
        return connection

    def append(self, keys: list[bytes], rows: list[Row]) -> None:
        """Store rows."""
        values = [(key, checksum(key, row), row.data) for key, row in zip(keys, rows, strict=True)]
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?)", values)
        connection.execute("COMMIT")

    def read(self, keys: list[bytes], into: Row) -> int:
        """Read rows."""
        count, connection = 0, self._connection()
        for key, row in zip(keys, into, strict=True):
            found = connection.execute("SELECT crc, data FROM rows WHERE key = ?", (key,)).fetchone()
            if found is not None and found[0] == zlib.crc32(found[1], zlib.crc32(key)):
                row[:] = np.frombuffer(found[1], np.uint8)
                count += 1
        return count


class Lmdb:
    """One LMDB environment, which maps its file into memory, with a CRC before each row."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        self.environment = lmdb.open(str(folder / "lmdb"), map_size=2**34, readahead=False)

    def append(self, keys: list[bytes], rows: list[Row]) -> None:
        """Store rows."""
        with self.environment.begin(write=True) as transaction:
            for key, row in zip(keys, rows, strict=True):
                transaction.put(key, checksum(key, row).to_bytes(4, "little") + row.tobytes(), overwrite=False)

    def read(self, keys: list[bytes], into: Row) -> int:
        """Read rows."""
        count = 0
        with self.environment.begin(buffers=True) as transaction:
            for key, row in zip(keys, into, strict=True):
                found = transaction.get(key)
                if found is not None and int.from_bytes(found[:4], "little") == zlib.crc32(found[4:], zlib.crc32(key)):
                    row[:] = np.frombuffer(found[4:], np.uint8)
                    count += 1
        return count


STORES: dict[str, Callable[[Path], Store]] = {
    "svertka": Svertka,
    "sqlite, WAL": partial(Sqlite, journal="WAL"),
    "sqlite, journal": partial(Sqlite, journal="TRUNCATE"),
    "lmdb": Lmdb,
}


def checksum(key: bytes, row: Row) -> int:
    """Return the CRC-32 of key and row."""
    return zlib.crc32(row.data, zlib.crc32(key))


def make_keys(count: int) -> list[bytes]:
    """Return keys in random order, as hashes are."""
    return [np.random.default_rng(number).bytes(16) for number in range(count)]


def make_row(images: Row, number: int) -> Row:
    """Return row `number`, a shifted image if there are more rows than images."""
    return np.roll(images[number % len(images)], 3 * (number // len(images)))


def write(store: Store, images: Row, count: int) -> float:
    """Write `count` rows; return rows per second."""
    keys, seconds = make_keys(count), 0.0
    for start in range(0, count, PER_TRANSACTION):
        some = range(start, min(start + PER_TRANSACTION, count))
        rows = [make_row(images, number) for number in some]
        begin = time.perf_counter()
        store.append([keys[number] for number in some], rows)
        seconds += time.perf_counter() - begin
    return count / seconds


def read(store: Store, count: int, threads: int, *, first: bool) -> tuple[float, float]:
    """Read every row once, in random order; return rows per second and the growth of this process in MB.

    `first`: as the first reading of this process, in which a store may read its index and check rows twice.
    """
    keys, before = make_keys(count), resident()
    order = np.random.default_rng(os.getpid()).permutation(count)
    batches = [order[start : start + 64] for start in range(0, count, 64)]
    with ThreadPoolExecutor(threads) as pool:
        into = [np.ones((64, SIDE * SIDE * 3), np.uint8) for _ in range(threads)]
        for key in [] if first else keys:
            store.read([key], into[0][:1])
        begin = time.perf_counter()

        def share(which: int) -> int:
            some = batches[which::threads]
            return sum(store.read([keys[number] for number in one], into[which][: len(one)]) for one in some)

        found = sum(pool.map(share, range(threads)))
        seconds = time.perf_counter() - begin
    assert found == count, (found, count)
    return count / seconds, resident() - before


def resident() -> float:
    """Return the resident memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def drop_from_page_cache(folder: Path) -> None:
    """Drop the files in `folder` from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(*args: object) -> subprocess.Popen[str]:
    """Start this script in another process."""
    command = [sys.executable, __file__, "--child", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    """Return the printed result of a child; None if it crashed."""
    output, _ = process.communicate()
    return json.loads(output) if process.returncode == 0 else None


def measure(name: str, folder: Path, images: Path, count: int) -> dict[str, float]:
    """Return the results of one round with one store."""
    row: dict[str, float] = {"write": result(child("write", name, folder, images, count))}
    for threads in (1, 2):
        row[f"read, cached, {threads} threads"], row[f"growth, {threads} threads"] = result(
            child("read", name, folder, threads, count)
        )
    row["read, disk"], _ = result(child("read-disk", name, folder, 2, count))
    both = [child("read", name, folder, 1, count) for _ in range(2)]
    row["two processes read"] = sum(result(one)[0] for one in both)
    row["bytes per byte"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / (
        count * SIDE * SIDE * 3
    )
    shutil.rmtree(folder)
    folder.mkdir()
    both = [child("write", name, folder, images, count // 2) for _ in range(2)]
    row["two processes write"] = min(result(one) for one in both)
    found, _ = result(child("read", name, folder, 1, count // 2))
    assert found
    return row


def damage(name: str, folder: Path, images: Path, trials: int) -> dict[str, int]:
    """Flip a bit of a file, or cut off its end, and read all rows."""
    result(child("write", name, folder, images, DAMAGED_ROWS))
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.name != "lock.mdb"]
    whole = {path: path.read_bytes() for path in files}
    counts = dict.fromkeys(("right", "missing", "wrong", "refused", "died"), 0)
    rng = np.random.default_rng(0)
    for trial in range(trials):
        for intact, before in whole.items():
            intact.write_bytes(before)
        path = files[int(rng.integers(len(files)))]
        content = bytearray(whole[path])
        if trial % 2:
            content = content[: int(rng.integers(len(content)))]
        else:  # half of the bits near the beginning, where databases store their structure
            within = len(content) if trial % 4 else min(len(content), 2**16)
            content[int(rng.integers(within))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        process = child("check", name, folder, images)
        found = result(process)
        if found is None:
            counts["died" if process.returncode < 0 else "refused"] += 1
        else:
            for kind, number in found.items():
                counts[kind] += number
    return counts


def check(store: Store, images: Row) -> dict[str, int]:
    """Return how many rows are right, missing and wrong."""
    counts, into = dict.fromkeys(("right", "missing", "wrong"), 0), np.zeros((1, SIDE * SIDE * 3), np.uint8)
    for number, key in enumerate(make_keys(DAMAGED_ROWS)):
        found = store.read([key], into)
        kind = "missing" if not found else "right" if (into[0] == make_row(images, number)).all() else "wrong"
        counts[kind] += 1
    return counts


def run_child(action: str, name: str, folder: str, *rest: str) -> Any:
    """Run one measurement in this process."""
    if action == "read-disk":
        drop_from_page_cache(Path(folder))
    store = STORES[name](Path(folder))
    if action == "write":
        return write(store, np.load(rest[0]), int(rest[1]))
    if action == "check":
        return check(store, np.load(rest[0]))
    return read(store, int(rest[1]), int(rest[0]), first=action == "read-disk")


def decode(folder: Path) -> Row:
    """Return the first images under `folder`, in the order of their names, (n, bytes)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:IMAGES]
    return np.stack(
        [np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), (SIDE, SIDE))).reshape(-1) for path in paths]
    )


def main() -> None:
    """Print medians over the rounds, and the results with damage."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder (default: cats-dogs of SVERTKA_DATA)")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200, help="damaged stores")
    parser.add_argument("--folder", type=Path, help="where the stores are written (default: the temporary folder)")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in STORES}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        images = Path(name) / "images.npy"
        np.save(images, decode(options.images or data_folder() / "cats-dogs"))

        def fresh(store: str) -> Path:
            folder = Path(name) / store
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return folder

        for number in range(options.rounds):
            for store in list(STORES)[number % 3 :] + list(STORES)[: number % 3]:
                rounds[store].append(measure(store, fresh(store), images, options.rows))
                shutil.rmtree(Path(name) / store)
        damages = {store: damage(store, fresh(store), images, options.trials) for store in STORES}
    print(f"{'rows/s, MB; median':26}" + "".join(f"{store:>16}" for store in STORES))
    for key in rounds["svertka"][0]:
        print(
            f"{key:26}" + "".join(f"{statistics.median(one[key] for one in rounds[store]):16.2f}" for store in STORES)
        )
    for key in damages["svertka"]:
        print(f"{'damage: ' + key:26}" + "".join(f"{damages[store][key]:16}" for store in STORES))


if __name__ == "__main__":
    main()
