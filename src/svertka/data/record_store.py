"""Rows on disk, found by a 16-byte key: safe with several processes, bounded in size, checked whenever they are read.

    PARENT/lock           held while anything under PARENT is opened, changed or removed
    PARENT/STORE/format.json  version, row shape and type; a store of another format is begun anew
                 keys     a record a row: its key, where it begins, its length, and the CRC-32 of key and row
                 rows     the rows, in the order of the keys
                 use      held (shared) by every process that has the store open; its time is that of the last opening

Rows are synced before their keys are written: what a killed process leaves behind a last whole record is overwritten.
The checksum costs 0.4 µs a KB, so that each reading can afford it.

They are read by position, not mapped: the system keeps them in memory as long as it has some to spare, and nothing of
it counts as this process's. Mapped, every row touched brings in up to 2 MB around it (Linux 6.18 on ext4): a batch of
64 rows of 12 KB added 80 MB to the process, and to give that back after each batch cost 6 µs a row. Reading costs 3.
"""

import fcntl
import os
import shutil
import sys
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.errors import StorageError
from svertka.files import format_bytes, free_bytes, lock_file, read_json, storage_errors, write_json
from svertka.progress import say

Bytes = npt.NDArray[np.uint8]

VERSION = 2
RECORD = np.dtype([("key", "V16"), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
ANNOUNCED = 10**6  # bytes that are stored without a word
LIMIT = 20 * 10**9  # bytes of all stores under one folder, if a quarter of the free space is not less


class ByteStore:
    """The rows stored in `folder`, each any number of bytes; made if absent.

    `limit`: bytes that this store and its neighbours (the folders beside it) may take together; None is 20 GB, or a
    quarter of the free space where that is less. Neighbours that no process has open are removed, least recently
    opened first, to make room. Several threads may read at once.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int | None = None, layout: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._records = np.zeros(0, RECORD)
        self._index: dict[bytes, int] = {}
        self._sound = np.zeros(0, bool)  # rows that were compared with their CRC, or written, by this object
        self._damaged: set[int] = set()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self._lock), storage_errors(folder):
            self._begin(layout or {"rows": "bytes"})
            self._use, self._keys_file, self._rows_file = files = [
                os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644) for name in ("use", "keys", "rows")
            ]
            weakref.finalize(self, _close, files)
            fcntl.flock(self._use, fcntl.LOCK_SH)
            os.utime(self._use)
            self._refresh()
            by_default = min(LIMIT, (free_bytes(folder) + self._taken()) // 4)
            self.limit = by_default if limit is None else min(limit, sys.maxsize)

    def __len__(self) -> int:
        """How many rows are stored."""
        return len(self._records)

    def find(self, keys: Sequence[bytes]) -> Ints:
        """Where the rows of `keys` are, (n,) int64: a position to read at, or -1 if it is absent or damaged.

        Each row is compared with its checksum the first time that it is found.
        """
        with lock_file(self._lock), storage_errors(self.folder):
            self._refresh()
        positions = np.array([self._index.get(key, -1) for key in keys], dtype=np.int64)
        for place, position in enumerate(positions):
            if position >= 0 and not self._is_sound(int(position)):
                positions[place] = -1
        return positions

    def read(self, position: int, count: int | None = None) -> Bytes | None:
        """The row at `position`, (n,) uint8, None if it is damaged; or its first `count` bytes, which are not checked.

        Raises:
            StorageError: the disk cannot be read.
        """
        length = int(self._records["length"][position])
        row = np.empty(length if count is None else min(count, length), np.uint8)
        return row if self._read(position, row, check=count is None) else None

    def append_bytes(self, keys: Sequence[bytes], rows: Sequence[Bytes]) -> Ints:
        """Store `rows`, each (n,) uint8, under `keys`; their positions, (n,) int64, -1 for those beyond the limit.

        What another process stored meanwhile is not stored twice.

        Raises:
            StorageError: the disk is full or cannot be written; what was stored before stays.
        """
        with lock_file(self._lock), storage_errors(self.folder):
            self._refresh()
            fresh = {key: place for place, key in enumerate(keys) if not self._has(key)}
            places = list(fresh.values())
            ends = np.cumsum([len(rows[place]) + RECORD.itemsize for place in places])
            places = places[: np.searchsorted(ends, self._space(int(ends[-1]) if places else 0), side="right")]
            if places:
                self._write([keys[place] for place in places], [rows[place] for place in places])
        return np.array([self._index[key] if self._has(key) else -1 for key in keys], dtype=np.int64)

    def room_for(self, row_bytes: int) -> int:
        """How many rows of `row_bytes` can still be appended, neighbours that nobody uses being removed for them."""
        with lock_file(self._lock):
            return self._space(self.limit, remove=False) // (row_bytes + RECORD.itemsize)

    def clear(self) -> bool:
        """Forget every row, to make room for others; False, and nothing done, while another has the store open."""
        with lock_file(self._lock), storage_errors(self.folder):
            try:
                fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._use, fcntl.LOCK_SH)  # a failed change gives the old lock up
                return False
            os.ftruncate(self._keys_file, 0)
            os.ftruncate(self._rows_file, 0)
            fcntl.flock(self._use, fcntl.LOCK_SH)
            self._records = self._records[:0]
            self._index.clear()
            self._damaged.clear()
            self._refresh()
        return True

    @property
    def _lock(self) -> Path:
        return self.folder.parent / "lock"

    def _begin(self, layout: dict[str, Any]) -> None:
        """Make the folder one of this layout, empty if it was of another."""
        header = {"version": VERSION} | layout
        path = self.folder / "format.json"
        try:
            known = read_json(path)
        except (OSError, ValueError):
            known = None
        _clear(path, self.folder / "use", self.folder / "keys", self.folder / "rows", only_odd=True)
        if known != header:
            # Not emptied in place: a process of another version may have them open.
            _clear(self.folder / "keys", self.folder / "rows")
            write_json(path, header)

    def _refresh(self) -> None:
        """Take in what other processes have appended."""
        old = len(self._records)
        count = os.fstat(self._keys_file).st_size // RECORD.itemsize
        if count > old:
            records = np.empty(count - old, RECORD)
            _read(self._keys_file, old * RECORD.itemsize, _bytes(records))
            records = records[: self._whole(records)]
            self._records = np.concatenate([self._records, records])
            self._index.update((bytes(key), old + place) for place, key in enumerate(self._records["key"][old:]))
        elif count < old:
            self._records = self._records[:count]
        count = len(self._records)
        self._sound = np.concatenate([self._sound[:count], np.zeros(max(count - len(self._sound), 0), bool)])

    def _whole(self, records: npt.NDArray[np.void]) -> int:
        """How many of these next `records` follow each other as they were written, and have their rows on disk."""
        ends = records["offset"] + records["length"]
        begins = np.concatenate([[self._end()], ends[:-1]])
        good = (records["offset"] == begins) & (ends <= os.fstat(self._rows_file).st_size)
        return len(good) if good.all() else int(good.argmin())

    def _end(self) -> int:
        return int(self._records["offset"][-1] + self._records["length"][-1]) if len(self._records) else 0

    def _has(self, key: bytes) -> bool:
        position = self._index.get(key)
        return position is not None and position < len(self._records) and position not in self._damaged

    def _is_sound(self, position: int) -> bool:
        if position >= len(self._records):
            return False
        return bool(self._sound[position]) or self.read(position) is not None

    def _read(self, position: int, row: Bytes, *, check: bool = True) -> bool:
        """Read the row at `position` into `row`; False if it is damaged."""
        record = self._records[position]
        try:
            _read(self._rows_file, int(record["offset"]), _bytes(row))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StorageError(
                f"cannot read {self.folder / 'rows'}: {reason}; remove the folder and start again"
            ) from error
        if check:
            self._sound[position] = _checksum(record["key"].tobytes(), row) == record["crc"]
            if not self._sound[position]:
                self._damaged.add(position)
                return False
        return True

    def _write(self, keys: list[bytes], rows: Sequence[Bytes]) -> None:
        count, end = len(self._records), self._end()
        records = np.zeros(len(keys), RECORD)
        records["key"] = [np.void(key) for key in keys]
        records["length"] = lengths = [len(row) for row in rows]
        records["offset"] = end + np.cumsum([0, *lengths[:-1]], dtype=np.uint64)
        records["crc"] = [_checksum(key, row) for key, row in zip(keys, rows, strict=True)]
        try:
            os.ftruncate(self._keys_file, count * RECORD.itemsize)
            _write(self._rows_file, end, memoryview(b"".join(rows)))  # type: ignore[arg-type]
            os.fsync(self._rows_file)
            _write(self._keys_file, count * RECORD.itemsize, _bytes(records))
            os.fsync(self._keys_file)
        except OSError:
            os.ftruncate(self._keys_file, count * RECORD.itemsize)
            os.ftruncate(self._rows_file, end)
            raise
        self._refresh()
        self._sound[count:] = True

    def _space(self, wanted: int, *, remove: bool = True) -> int:
        """How many more bytes may be written; if they are fewer than `wanted`, neighbours that nobody has open go."""
        left = self.limit - self._taken()
        for neighbour in sorted(self._neighbours(), key=_last_use):
            if left >= wanted:
                break
            left += _remove(neighbour, really=remove)
        return max(left, 0)

    def _neighbours(self) -> list[Path]:
        return [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]

    def _taken(self) -> int:
        return sum(_size(folder) for folder in (self.folder, *self._neighbours()))


class Store(ByteStore):
    """Rows of one shape and type, as `ByteStore` keeps them."""

    def __init__(
        self, folder: Path, row_shape: tuple[int, ...], dtype: npt.DTypeLike, limit: int | None = None
    ) -> None:
        self.row_shape, self.dtype = row_shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(row_shape)) * self.dtype.itemsize
        super().__init__(folder, limit, {"row_shape": list(row_shape), "dtype": self.dtype.str})

    def gather(self, positions: Ints) -> npt.NDArray[Any]:
        """The rows at `positions` (n,), each as `find` or `append` gave it: (n, *row_shape).

        Raises:
            StorageError: the disk cannot be read, or a row is no longer what was written.
        """
        if len(positions) and positions.min() < 0:
            raise IndexError("a position is -1: that row is not stored")
        rows = np.empty((len(positions), *self.row_shape), self.dtype)
        for place, position in enumerate(positions.tolist()):
            if not self._read(position, rows[place : place + 1].reshape(-1).view(np.uint8)):
                raise StorageError(
                    f"{self.folder / 'rows'} was damaged since it was written; remove the folder and start again"
                )
        return rows

    def append(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> Ints:
        """Store `rows` (n, *row_shape) under `keys`, as `append_bytes`."""
        rows = np.ascontiguousarray(rows, self.dtype).reshape(len(keys), *self.row_shape)
        return self.append_bytes(keys, [row.reshape(-1).view(np.uint8) for row in rows])

    def room(self) -> int:
        """How many rows can still be appended, neighbours that nobody uses being removed for them."""
        return self.room_for(self.row_bytes)


def announce(what: str, size: float, store: ByteStore) -> None:
    """Say that `what` will take about `size` bytes on disk and where, before it is written into `store`."""
    if size >= ANNOUNCED:
        say(
            f"{what} will take about {format_bytes(min(size, store.limit))} in {store.folder.parent}, "
            f"of at most {format_bytes(store.limit)}"
        )


def _remove(folder: Path, *, really: bool) -> int:
    """Bytes that removing a store gives back; 0 while somebody has it open."""
    try:
        with storage_errors(folder):
            use = os.open(folder / "use", os.O_RDWR | os.O_CREAT, 0o644)
    except StorageError:
        return 0
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = _size(folder)
        if really:
            shutil.rmtree(folder)
        return size
    except OSError:
        return 0
    finally:
        os.close(use)


def _clear(*paths: Path, only_odd: bool = False) -> None:
    """Remove what is at `paths`; `only_odd`: where it is no regular file, which a store never makes."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not (only_odd and path.is_file() and not path.is_symlink()):
            path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for name in ("keys", "rows") if (path := folder / name).exists())


def _last_use(folder: Path) -> float:
    use = folder / "use"
    return use.stat().st_mtime if use.exists() else 0.0


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(key: bytes, row: npt.NDArray[Any]) -> int:
    return zlib.crc32(_bytes(row), zlib.crc32(key))


def _read(file: int, offset: int, into: memoryview) -> None:
    while into:
        count = os.preadv(file, [into], offset)
        if not count:
            raise OSError("it is shorter than it was")
        offset, into = offset + count, into[count:]


def _write(file: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        offset, data = offset + written, data[written:]
