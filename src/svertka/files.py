"""Files: atomic writes, bounded reads, the cache folder, locks, and free space."""

import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from svertka.errors import StorageError, UsageError
from svertka.text_width import shorten

MAX_GIGABYTES = 1_000_000
NAME_BYTES, PATH_BYTES = 255, 4095  # limits of Linux
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str | os.PathLike[str]) -> bool:
    """Return whether `text` is a URL rather than a path."""
    return URL.match(os.fspath(text)) is not None


def parse_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave as a Path; a leading ~ is the home folder.

    Raises:
        UsageError: The path is impossible: empty, too long, a URL, or with a NUL or a lone surrogate.
    """
    text = os.fspath(path)
    if is_url(text):  # as a path it would be a folder of this name
        raise UsageError(f"{shorten(text)} is a URL; name a file or folder on this machine instead")
    if not text:
        raise UsageError("a path is empty; name a file or a folder")
    if "\0" in text:
        raise UsageError(f"the path {shorten(text)} holds a NUL character, which no path may; correct it")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"the path {shorten(text)!a} holds half a character (a lone surrogate)") from error
    longest = max(map(len, encoded.split(b"/")))
    if longest > NAME_BYTES or len(encoded) > PATH_BYTES:
        raise UsageError(
            f"the path {shorten(text)} is too long: a name may have {NAME_BYTES} bytes (one has {longest}) and a "
            f"path {PATH_BYTES} (it has {len(encoded)}); correct it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)  # no such user: the ~ may be part of a name


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without links; unlike Path.resolve of Python 3.11, also if its links form a loop."""
    return Path(os.path.realpath(path))


def cache_folder(*parts: str) -> Path:
    """Return the folder `$XDG_CACHE_HOME/svertka/PARTS`, which is created if missing.

    Raises:
        StorageError: It cannot be created.
    """
    folder = _cache_root().joinpath("svertka", *parts)
    with os_error_to_storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cache_root() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # no HOME, and no entry of this user in the password database
        raise StorageError("there is no home folder for the cache; set HOME, or XDG_CACHE_HOME") from error


def write_atomic(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write `path` atomically: a temporary file beside it is written, synced and renamed.

    Args:
        path: The file; after a failure it is unchanged.
        content: Bytes, or a function that writes to an open file.

    Raises:
        StorageError: The disk is full, the folder cannot be written, or `path` is a device or a pipe.
    """
    if path.exists() and not path.is_file():  # root could replace a device of the system
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise StorageError(f"cannot write {path}: it is {kind}, not a file; choose another name")
    with os_error_to_storage_error(path):
        prefix = f".{path.name[:40]}."  # shortened, so that the longest name has room
        descriptor, temporary = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
        sync_folder(path.parent)


def rename_to_new(source: Path, target: Path) -> None:
    """Rename the file `source` to `target`, which must not exist: a file that appeared meanwhile is not overwritten.

    Raises:
        OSError: `target` exists, or the file cannot be moved.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        source.replace(target)
    except BaseException:
        target.unlink()
        raise


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; in UTF-8 unless a name has lone surrogates.

    Args:
        path: The file.
        value: The value.
        indent: Spaces per level. None: one line, which is written ten times as fast.
    """
    try:
        content = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # lone surrogates, from a file name that is not UTF-8
        content = json.dumps(value, indent=indent, allow_nan=False).encode()
    write_atomic(path, content + b"\n")


def read_json(path: Path, limit: int = 1 << 24) -> Any:
    """Return the JSON value in `path`, a file of at most `limit` bytes.

    Raises:
        ValueError: It is larger, not a regular file, not UTF-8, or not JSON; the message is the reason.
        OSError: It cannot be read.
    """
    content = read_regular_file(path, limit)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError(f"a number has more than {sys.get_int_max_str_digits():,} digits") from error


def read_regular_file(path: Path, limit: int) -> bytes:
    """Return the content of the regular file `path`. A pipe could block, and a device never end.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, or larger than `limit` bytes; the message is the reason.
    """
    return read_file_and_status(path, limit)[0]


def read_file_and_status(path: Path | str, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the content of the regular file `path` and its status before it was read; raises as `read_regular_file`.

    It makes system calls, because a file object takes longer than reading a file of a few kilobytes.
    """
    descriptor, status = _open_descriptor(path, limit)
    try:
        content = os.read(descriptor, status.st_size + 1)  # not `limit`, which would allocate as much
        while len(content) <= status.st_size and (more := os.read(descriptor, status.st_size + 1 - len(content))):
            content += more
    finally:
        os.close(descriptor)
    if len(content) > status.st_size:
        raise ValueError("it grows while it is read")
    return content, status


def open_regular_file(path: Path, limit: int) -> BinaryIO:
    """Open the regular file `path` for reading; raises as `read_regular_file`."""
    return os.fdopen(_open_descriptor(path, limit)[0], "rb")


def _open_descriptor(path: Path | str, limit: int) -> tuple[int, os.stat_result]:
    """Return a descriptor of the regular file `path` and its status."""
    _refuse_irregular(os.stat(path), limit)  # noqa: PTH116 - `path` may be a string
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        _refuse_irregular(status, limit)  # the path may name another file by now
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _refuse_irregular(status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")
    if status.st_size > limit:
        raise ValueError(f"a file of {format_bytes(status.st_size)}, larger than the limit of {format_bytes(limit)}")


def read_first_bytes(path: Path, count: int = 64) -> bytes:
    """Return the first `count` bytes of the regular file `path`; empty for anything else.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(count)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the system can sync folders (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is created if missing, during the body; waits for other processes.

    The lock ends with the process, so that a killed one blocks nobody. `shared`: several may hold it together.
    """
    with os_error_to_storage_error(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with os_error_to_storage_error(path):
            lock_descriptor(descriptor, shared=shared)
        yield
    finally:
        os.close(descriptor)


def lock_descriptor(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed or its process ends; False: another holds it, and `wait` is False.

    `shared`: together with others that share it (on Windows, these exclude each other, too). A lock that is held
    already is changed.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 2**30, os.SEEK_SET)  # an unused byte: Windows blocks reads of locked ones
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def error_reason(error: Exception) -> str:
    """Return why `error` was raised, without its path: the system's words for an OSError, else the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


@contextmanager
def os_error_to_storage_error(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a StorageError about `path`."""
    try:
        yield
    except OSError as error:
        named = error.filename
        is_temporary = isinstance(named, str) and Path(named).parent in (path, path.parent)
        place = path if named is None or is_temporary else named
        remedy = "make its folder or choose another" if error.errno == errno.ENOENT else "choose another folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"free space or {remedy}"
        raise StorageError(f"cannot write {place}: {error_reason(error)}; {remedy}") from error


def format_bytes(count: float) -> str:
    """Return a size with three digits: "72.7 kB", "3.3 MB", "1.25 GB"."""
    power, unit = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if count >= pair[0]), (1e3, "kB"))
    value = count / power
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"  # never 1e+03


def parse_cache_limit_option(cache_limit: float | None) -> int | None:
    """Return the option `cache_limit`, given in gigabytes, in bytes; None gives None.

    Raises:
        UsageError: It is not from 0 to a million.
    """
    if cache_limit is None:
        return None
    if not 0 <= cache_limit <= MAX_GIGABYTES:
        raise UsageError(f"cache_limit={shorten(str(cache_limit))} must be from 0 to {MAX_GIGABYTES:,} GB")
    return round(cache_limit * 1e9)


def free_disk_bytes(folder: Path) -> int:
    """Return the bytes that this user can write on the disk of `folder` or of its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
