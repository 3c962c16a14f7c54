"""A disk cache of rows under 16-byte keys: of bounded size, shared by processes, and checked at every read.

    PARENT/lock              held while anything under PARENT is opened, changed or removed
    PARENT/STORE/format.json version, row shape and dtype; a store of another format is emptied
                 keys        an index entry for each row: key, offset, length, and the CRC-32 of key and row
                 rows        the rows, in the order of the keys
                 identity    a random name, by which processes know whether they share the store
                 use         locked (shared) by every process that has the store open; its mtime is the last opening

Rows are synced before their keys are written, so whatever a killed process leaves after the last complete entry is
overwritten. The checksum costs 0.4 µs per kB. Rows are read by position, not mapped: see docs/decisions/0003.
"""

import os
import shutil
import sys
import threading
import uuid
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svertka.data.dataset import Ints
from svertka.errors import StorageError
from svertka.files import (
    format_bytes,
    free_disk_bytes,
    lock_descriptor,
    lock_file,
    os_error_to_storage_error,
    read_json,
    write_json,
)
from svertka.progress import say

Bytes = npt.NDArray[np.uint8]

VERSION = 2
INDEX_ENTRY = np.dtype([("key", "V16"), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
REPORTED_BYTES = 10**6  # what takes less is stored without a message
OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
HAS_SHARED_LOCKS = os.name == "posix"  # Windows refuses to rename a folder with open files instead
LIMIT = 20 * 10**9  # bytes of all stores under one folder, unless a quarter of the free space is less


class RecordStore:
    """A store of rows of any number of bytes.

    Several threads may read at once.

    Args:
        folder: Folder of the store; created if absent.
        limit: Bytes that this store and its neighbors, the folders beside it, may take together. To make room,
            neighbors that no process has open are removed, least recently opened first. None: 20 GB, or a quarter of
            the free space if that is less.
        layout: What `format.json` says of the rows; a store of another layout is emptied.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int | None = None, layout: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._records = np.zeros(0, INDEX_ENTRY)
        self._index: dict[bytes, int] = {}
        self._verified = np.zeros(0, bool)  # rows that were compared with their CRC, or written, by this object
        self._damaged: set[int] = set()
        with os_error_to_storage_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(self._lock), os_error_to_storage_error(folder):
            self._initialize(layout or {"rows": "bytes"})
            self._use, self._keys_file, self._rows_file = files = [
                os.open(folder / name, OPEN_FLAGS, 0o644) for name in ("use", "keys", "rows")
            ]
            weakref.finalize(self, _close, files)
            if HAS_SHARED_LOCKS:
                lock_descriptor(self._use, shared=True)
            os.utime(folder / "use")
            self._refresh()
            by_default = min(LIMIT, (free_disk_bytes(folder) + self._used_bytes()) // 4)
            self.limit = by_default if limit is None else min(limit, sys.maxsize)

    def __len__(self) -> int:
        """Return the number of stored rows."""
        return len(self._records)

    def identity(self) -> str:
        """Return a random name of the store, the same in all processes that share it, also on other machines.

        Raises:
            StorageError: The folder cannot be read or written.
        """
        path = self.folder / "identity"
        with lock_file(self._lock), os_error_to_storage_error(self.folder):
            if not path.exists():
                path.write_text(uuid.uuid4().hex)
            return path.read_text()

    def find(self, keys: Sequence[bytes]) -> Ints:
        """Return the positions of the rows of `keys`, (n,) int64; -1 if a row is absent or damaged.

        A row is compared with its checksum when it is found for the first time.
        """
        with lock_file(self._lock), os_error_to_storage_error(self.folder):
            self._refresh()
        positions = np.array([self._index.get(key, -1) for key in keys], dtype=np.int64)
        for place, position in enumerate(positions):
            if position >= 0 and not self._verify(int(position)):
                positions[place] = -1
        return positions

    def read(self, position: int, count: int | None = None) -> Bytes | None:
        """Return a row.

        Args:
            position: A position that `find` or `append_bytes` returned.
            count: Number of bytes from its beginning, which are not checked. None: the whole row, checked.

        Returns:
            The bytes (n,) uint8; None if the row is damaged.

        Raises:
            StorageError: The disk cannot be read.
        """
        length = int(self._records["length"][position])
        row = np.empty(length if count is None else min(count, length), np.uint8)
        return row if self._read(position, row, check=count is None) else None

    def append_bytes(self, keys: Sequence[bytes], rows: Sequence[Bytes]) -> Ints:
        """Store rows; those that are already stored, also by another process, are not stored again.

        Args:
            keys: Keys of 16 bytes.
            rows: For each key its row (n,) uint8.

        Returns:
            Their positions (n,) int64; -1 for rows beyond the limit.

        Raises:
            StorageError: The disk is full or cannot be written. Rows stored before remain.
        """
        with lock_file(self._lock), os_error_to_storage_error(self.folder):
            self._refresh()
            fresh = {key: place for place, key in enumerate(keys) if not self._has(key)}
            places = list(fresh.values())
            ends = np.cumsum([len(rows[place]) + INDEX_ENTRY.itemsize for place in places])
            places = places[: np.searchsorted(ends, self._space(int(ends[-1]) if places else 0), side="right")]
            if places:
                self._write([keys[place] for place in places], [rows[place] for place in places])
        return np.array([self._index[key] if self._has(key) else -1 for key in keys], dtype=np.int64)

    def room_for(self, row_bytes: int) -> int:
        """Return how many rows of `row_bytes` fit within the limit after unused neighbors are removed."""
        with lock_file(self._lock):
            return self._space(self.limit, remove=False) // (row_bytes + INDEX_ENTRY.itemsize)

    def clear(self) -> bool:
        """Remove all rows. If another process has the store open, change nothing and return False."""
        if not HAS_SHARED_LOCKS:
            return False
        with lock_file(self._lock), os_error_to_storage_error(self.folder):
            alone = lock_descriptor(self._use, wait=False)
            if alone:
                os.ftruncate(self._keys_file, 0)
                os.ftruncate(self._rows_file, 0)
                self._records = self._records[:0]
                self._index.clear()
                self._damaged.clear()
                self._refresh()
            lock_descriptor(self._use, shared=True)  # also after a failed attempt, which releases the lock
        return alone

    @property
    def _lock(self) -> Path:
        return self.folder.parent / "lock"

    def _initialize(self, layout: dict[str, Any]) -> None:
        """Write `format.json`, and empty the store if it was of another format."""
        header = {"version": VERSION} | layout
        path = self.folder / "format.json"
        try:
            known = read_json(path)
        except (OSError, ValueError):
            known = None
        _clear(path, self.folder / "use", self.folder / "keys", self.folder / "rows", irregular_only=True)
        if known != header:
            # Not truncated: a process of another version may have them open.
            _clear(self.folder / "keys", self.folder / "rows")
            write_json(path, header)

    def _refresh(self) -> None:
        """Read the index entries that other processes appended."""
        old = len(self._records)
        count = os.fstat(self._keys_file).st_size // INDEX_ENTRY.itemsize
        if count > old:
            records = np.empty(count - old, INDEX_ENTRY)
            _read(self._keys_file, old * INDEX_ENTRY.itemsize, _bytes(records))
            records = records[: self._count_complete(records)]
            self._records = np.concatenate([self._records, records])
            self._index.update((bytes(key), old + place) for place, key in enumerate(self._records["key"][old:]))
        elif count < old:
            self._records = self._records[:count]
        count = len(self._records)
        self._verified = np.concatenate([self._verified[:count], np.zeros(max(count - len(self._verified), 0), bool)])

    def _count_complete(self, records: npt.NDArray[np.void]) -> int:
        """Return how many of the next `records` are contiguous and have their rows on disk."""
        ends = records["offset"] + records["length"]
        begins = np.concatenate([[self._end()], ends[:-1]])
        good = (records["offset"] == begins) & (ends <= os.fstat(self._rows_file).st_size)
        return len(good) if good.all() else int(good.argmin())

    def _end(self) -> int:
        return int(self._records["offset"][-1] + self._records["length"][-1]) if len(self._records) else 0

    def _has(self, key: bytes) -> bool:
        position = self._index.get(key)
        return position is not None and position < len(self._records) and position not in self._damaged

    def _verify(self, position: int) -> bool:
        if position >= len(self._records):
            return False
        return bool(self._verified[position]) or self.read(position) is not None

    def _read(self, position: int, row: Bytes, *, check: bool = True) -> bool:
        """Read the row at `position` into `row`; return False if it is damaged."""
        record = self._records[position]
        try:
            _read(self._rows_file, int(record["offset"]), _bytes(row))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StorageError(
                f"cannot read {self.folder / 'rows'}: {reason}; remove the folder and start again"
            ) from error
        if check:
            self._verified[position] = _checksum(record["key"].tobytes(), row) == record["crc"]
            if not self._verified[position]:
                self._damaged.add(position)
                return False
        return True

    def _write(self, keys: list[bytes], rows: Sequence[Bytes]) -> None:
        count, end = len(self._records), self._end()
        records = np.zeros(len(keys), INDEX_ENTRY)
        records["key"] = [np.void(key) for key in keys]
        records["length"] = lengths = [len(row) for row in rows]
        records["offset"] = end + np.cumsum([0, *lengths[:-1]], dtype=np.uint64)
        records["crc"] = [_checksum(key, row) for key, row in zip(keys, rows, strict=True)]
        try:
            os.ftruncate(self._keys_file, count * INDEX_ENTRY.itemsize)
            _write(self._rows_file, end, memoryview(b"".join(rows)))  # type: ignore[arg-type]
            os.fsync(self._rows_file)
            _write(self._keys_file, count * INDEX_ENTRY.itemsize, _bytes(records))
            os.fsync(self._keys_file)
        except OSError:
            os.ftruncate(self._keys_file, count * INDEX_ENTRY.itemsize)
            os.ftruncate(self._rows_file, end)
            raise
        self._refresh()
        self._verified[count:] = True

    def _space(self, wanted: int, *, remove: bool = True) -> int:
        """Return the bytes that may still be written, after removing unused neighbors if `wanted` does not fit."""
        left = self.limit - self._used_bytes()
        for neighbor in sorted(self._neighbors(), key=_last_opening):
            if left >= wanted:
                break
            left += _remove(neighbor, really=remove)
        return max(left, 0)

    def _neighbors(self) -> list[Path]:
        return [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]

    def _used_bytes(self) -> int:
        return sum(_size(folder) for folder in (self.folder, *self._neighbors()))


class ArrayStore(RecordStore):
    """A store of arrays of one shape and dtype.

    Args:
        folder: Folder of the store, as for `RecordStore`.
        row_shape: Shape of each row.
        dtype: Dtype of each row.
        limit: Bytes, as for `RecordStore`.
    """

    def __init__(
        self, folder: Path, row_shape: tuple[int, ...], dtype: npt.DTypeLike, limit: int | None = None
    ) -> None:
        self.row_shape, self.dtype = row_shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(row_shape)) * self.dtype.itemsize
        super().__init__(folder, limit, {"row_shape": list(row_shape), "dtype": self.dtype.str})

    def gather(self, positions: Ints) -> npt.NDArray[Any]:
        """Return the rows at `positions` (n,) int64, as `find` or `append` returned them: (n, *row_shape).

        Raises:
            IndexError: A position is -1.
            StorageError: The disk cannot be read, or a row was damaged since it was found.
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
        """Store `rows` (n, *row_shape) under `keys`; return their positions as `append_bytes` does."""
        rows = np.ascontiguousarray(rows, self.dtype).reshape(len(keys), *self.row_shape)
        return self.append_bytes(keys, [row.reshape(-1).view(np.uint8) for row in rows])

    def room(self) -> int:
        """Return how many rows fit within the limit after unused neighbors are removed."""
        return self.room_for(self.row_bytes)


def report_disk_use(what: str, size: float, store: RecordStore) -> None:
    """Print how much of the disk `what`, about `size` bytes, will take in `store`, unless it is little."""
    if size >= REPORTED_BYTES:
        say(
            f"{what} will take about {format_bytes(min(size, store.limit))} in {store.folder.parent}, "
            f"of at most {format_bytes(store.limit)}"
        )


def _remove(folder: Path, *, really: bool) -> int:
    """Remove a store that no process has open, if `really`; return its bytes, or 0 if one has."""
    if not HAS_SHARED_LOCKS:
        return _remove_renamed(folder, really=really)
    try:
        use = os.open(folder / "use", OPEN_FLAGS, 0o644)
    except OSError:
        return 0
    try:
        if not lock_descriptor(use, wait=False):
            return 0
        size = _size(folder)
        if really:
            shutil.rmtree(folder)
        return size
    except OSError:
        return 0
    finally:
        os.close(use)


def _remove_renamed(folder: Path, *, really: bool) -> int:
    """Do what `_remove` does where a folder cannot be renamed while a file in it is open."""
    doomed = folder.with_name(f"{folder.name}.removed")
    try:
        size = _size(folder)
        folder.rename(doomed)
        if really:
            shutil.rmtree(doomed)
        else:
            doomed.rename(folder)
    except OSError:
        return 0
    return size


def _clear(*paths: Path, irregular_only: bool = False) -> None:
    """Remove `paths`, or only those that are no regular files, which no store creates."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not (irregular_only and path.is_file() and not path.is_symlink()):
            path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for name in ("keys", "rows") if (path := folder / name).exists())


def _last_opening(folder: Path) -> float:
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
        count = _read_at(file, into, offset)
        if not count:
            raise OSError("the file is shorter than it was")
        offset, into = offset + count, into[count:]


def _write(file: int, offset: int, data: memoryview) -> None:
    while data:
        written = _write_at(file, data, offset)
        offset, data = offset + written, data[written:]


if hasattr(os, "preadv"):

    def _read_at(file: int, into: memoryview, offset: int) -> int:
        return os.preadv(file, [into], offset)

    def _write_at(file: int, data: memoryview, offset: int) -> int:
        return os.pwrite(file, data, offset)

else:  # Windows
    _seeking = threading.Lock()  # the position of an open file is shared by all threads

    def _read_at(file: int, into: memoryview, offset: int) -> int:
        with _seeking:
            os.lseek(file, offset, os.SEEK_SET)
            data = os.read(file, len(into))
        into[: len(data)] = data
        return len(data)

    def _write_at(file: int, data: memoryview, offset: int) -> int:
        with _seeking:
            os.lseek(file, offset, os.SEEK_SET)
            return os.write(file, data)
