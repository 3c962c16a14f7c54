"""Bytes of shards by position: read from local files, or from blocks of remote files that are cached on the disk."""

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from svertka.data.shard_storage import ShardLocation
from svertka.errors import DataError, StorageError
from svertka.files import cache_folder, error_reason, free_disk_bytes, lock_file
from svertka.progress import FirstSentence

BLOCK = 2**23  # bytes of a request: large beside the latency of an object store
FETCHERS = 4  # requests at once
LIMIT = 20 * 10**9  # bytes of all cached blocks, unless a quarter of the free space is less
LEFT = 0.9  # of the limit is left when the oldest blocks are removed
IN_MEMORY = 16  # blocks that are kept in memory if the disk is full
LOCKS = 64  # lock files, so that processes do not fetch the same block twice
KEPT_OPEN = 64  # files; an epoch reads from 16 shards at a time


class ShardBytes(Protocol):
    """The bytes of several shards."""

    def read(self, shard: int, start: int, stop: int) -> bytes:
        """Return the bytes of a shard from `start` to `stop`.

        Raises:
            DataError: The shard cannot be read or is too short.
        """
        ...

    def request(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Begin to fetch ranges (shard, start, stop) that will be read soon."""
        ...

    def forget(self, shard: int, start: int, stop: int) -> None:
        """Remove cached copies of the range, because they are damaged."""
        ...

    def limit_cache(self, limit: int | None) -> None:
        """Let cached copies take `limit` bytes on the disk; None: as much as before."""
        ...


class _OpenFile:
    """A file that is open for reading as long as this object exists.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._turn = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, stop - start, start)
        with self._turn:  # Windows
            os.lseek(self.descriptor, start, os.SEEK_SET)
            return os.read(self.descriptor, stop - start)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not be opened
            os.close(self.descriptor)


class _OpenFiles:
    """The files that were read last, which stay open: opening one takes as long as reading an image from it."""

    def __init__(self) -> None:
        self._files: dict[str, _OpenFile] = {}

    def read(self, path: str | Path, start: int, stop: int) -> bytes:
        """Return the bytes of a file from `start` to `stop`, fewer at its end; raises OSError."""
        name = str(path)
        file = self._files.get(name)
        if file is None:
            while len(self._files) >= KEPT_OPEN:
                with suppress(StopIteration, RuntimeError):  # another thread changes them
                    self._files.pop(next(iter(self._files)), None)
            file = self._files[name] = _OpenFile(path)
        return file.read(start, stop)

    def close(self, path: str | Path) -> None:
        """Close a file, so that it is opened anew when it is read next."""
        self._files.pop(str(path), None)

    def close_all(self) -> None:
        """Close all files, so that removed ones leave the disk."""
        self._files.clear()


class LocalBytes:
    """The bytes of shards in a local folder.

    Args:
        location: The folder.
        names: Names of the shards.
    """

    def __init__(self, location: ShardLocation, names: tuple[str, ...]) -> None:
        self.location, self.names = location, names
        self._files = _OpenFiles()

    def read(self, shard: int, start: int, stop: int) -> bytes:
        """Return the bytes of a shard from `start` to `stop`; raises DataError."""
        try:
            content = self._files.read(self.location.path(self.names[shard]), start, stop)
        except OSError as error:
            what = self.location.describe(self.names[shard])
            raise DataError(f"{what} cannot be read: {error_reason(error)}; copy it back") from error
        if len(content) < stop - start:
            what = self.location.describe(self.names[shard])
            raise DataError(f"{what} ends at byte {start + len(content):,} instead of {stop:,}; copy it again")
        return content

    def request(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Do nothing: the system reads files ahead."""

    def forget(self, shard: int, start: int, stop: int) -> None:
        """Do nothing: there are no copies."""

    def limit_cache(self, limit: int | None) -> None:
        """Do nothing: there are no copies."""


class RemoteBytes:
    """The bytes of remote shards, fetched in blocks that are cached on the disk; processes share the cache.

    Args:
        location: Where the shards are.
        names: Names of the shards.
        sizes: Sizes of the shards in bytes.
        version: Other contents under the same names have another version.
    """

    def __init__(self, location: ShardLocation, names: tuple[str, ...], sizes: tuple[int, ...], version: str) -> None:
        self.location, self.names, self.sizes, self.version = location, names, sizes, version
        self._coming: dict[tuple[int, int], Future[bytes]] = {}
        self._memory: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._files = _OpenFiles()
        self._lock = threading.Lock()
        self._say_uncached = FirstSentence()
        self._seen: set[tuple[int, int]] = set()  # blocks that were read from
        self._written = 0  # bytes since the size of the cache was measured

    def read(self, shard: int, start: int, stop: int) -> bytes:
        """Return the bytes of a shard from `start` to `stop`; raises DataError."""
        pieces = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            low, high = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
            pieces.append(self._piece(shard, block, low, high))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def request(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Begin to fetch ranges (shard, start, stop) that will be read soon."""
        self._request(
            dict.fromkeys(
                (shard, block) for shard, start, stop in ranges for block in range(start // BLOCK, -(-stop // BLOCK))
            )
        )

    def _request(self, blocks: Iterable[tuple[int, int]]) -> None:
        for key in blocks:
            if key not in self._coming and key not in self._memory and not self._file(*key).exists():
                self._future(key)

    def forget(self, shard: int, start: int, stop: int) -> None:
        """Remove cached copies of the range, because they are damaged."""
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            self._memory.pop((shard, block), None)
            self._files.close(self._file(shard, block))
            self._file(shard, block).unlink(missing_ok=True)

    def limit_cache(self, limit: int | None) -> None:
        """Let cached blocks take `limit` bytes on the disk; None: as much as before."""
        if limit is not None:
            self._limit = limit

    @cached_property
    def _limit(self) -> int:
        """Bytes that all cached blocks may take: 20 GB, or a quarter of the free disk if that is less."""
        return min(LIMIT, free_disk_bytes(self._root) // 4)

    @cached_property
    def _root(self) -> Path:
        return cache_folder("shards")

    @cached_property
    def _folders(self) -> list[Path]:
        """The folder of each shard."""
        key = f"{self.location.describe('')} {self.version}"
        folder = self._root / hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        return [folder / str(number) for number in range(len(self.names))]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(FETCHERS, thread_name_prefix="shards")

    def _file(self, shard: int, block: int) -> Path:
        return self._folders[shard] / str(block)

    def _piece(self, shard: int, block: int, low: int, high: int) -> bytes:
        self._seen.add((shard, block))
        kept = self._memory.get((shard, block))
        if kept is None:
            with suppress(OSError):
                content = self._files.read(self._file(shard, block), low, high)
                if len(content) == high - low:
                    return content
            self._files.close(self._file(shard, block))  # it was removed, or is cut off
            coming = self._future((shard, block))
            if (shard, block - 1) in self._seen:  # the shard is read in order; else others are needed before its next
                last = -(-self.sizes[shard] // BLOCK)
                self._request((shard, one) for one in range(block + 1, min(block + 1 + FETCHERS, last)))
            kept = coming.result()
        if len(kept) < high:
            what = self.location.describe(self.names[shard])
            end = block * BLOCK + len(kept)
            raise DataError(f"{what} ends at byte {end:,}, and its index expects more; copy it again")
        return kept[low:high]

    def _future(self, key: tuple[int, int]) -> Future[bytes]:
        with self._lock:
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._fetch, key)
            return self._coming[key]

    def _fetch(self, key: tuple[int, int]) -> bytes:
        """Return a block, from another process's copy or from its server, and store it."""
        try:
            file = self._file(*key)
            with lock_file(self._root / f"lock-{hash(key) % LOCKS}"):
                with suppress(OSError):
                    content = file.read_bytes()
                    if len(content) == self._length(*key):
                        return content
                content = self.location.read(self.names[key[0]], key[1] * BLOCK, key[1] * BLOCK + self._length(*key))
                self._store(key, file, content)
            return content
        finally:
            with self._lock:
                self._coming.pop(key, None)

    def _length(self, shard: int, block: int) -> int:
        return max(min(BLOCK, self.sizes[shard] - block * BLOCK), 0)

    def _store(self, key: tuple[int, int], file: Path, content: bytes) -> None:
        try:
            if self._written == 0 or self._written + len(content) > self._limit // 16:
                self._files.close_all()
                make_room(self._root, int(self._limit * LEFT) - len(content))
                self._written = 0
            self._written += len(content)
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
                try:
                    part.write(content)
                    part.flush()
                    Path(part.name).replace(file)
                except OSError:
                    Path(part.name).unlink(missing_ok=True)
                    raise
        except (OSError, StorageError) as error:
            self._memory[key] = content
            while len(self._memory) > IN_MEMORY:
                with suppress(KeyError):
                    self._memory.popitem(last=False)
            self._say_uncached(
                f"shards are not cached on the disk ({error_reason(error)}); they are fetched again in each epoch"
            )


def make_room(folder: Path, room: int) -> None:
    """Remove the oldest blocks under `folder` until the rest take at most `room` bytes."""
    found = []
    for path in folder.glob("*/*/*"):
        if not path.name.isdigit():  # another process is writing it
            continue
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size
