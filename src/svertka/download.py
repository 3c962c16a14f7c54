"""Downloads: resumed after interruptions, verified by checksum, and complete or absent."""

import hashlib
import http
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from svertka.errors import FetchError
from svertka.files import lock_file, os_error_to_storage_error, sync_folder
from svertka.progress import progress

TIMEOUT = 20.0  # seconds without data after which a server counts as gone
CUTS = 5  # interrupted connections in a row that are resumed, as long as each brings data
BLOCK = 1 << 18  # bytes read at once
MEGABYTE = 1_000_000


def download_file(urls: Sequence[str], path: Path, checksum: str, instead: str = "") -> Path:
    """Download `path` from the first of `urls` that provides it, unless it exists.

    Until the checksum is verified the file is called `path` + ".part"; a later call resumes it. If two processes
    need the same file, one downloads it and the other waits.

    Args:
        urls: Addresses of the same file.
        path: Where to store it.
        checksum: "md5:" or "sha256:" (any name that `hashlib` has) and the first hexadecimal digits of the digest.
        instead: What to do by hand if the download fails; default: put the file at `path`.

    Returns:
        `path`.

    Raises:
        FetchError: No URL provided a file with this checksum.
        StorageError: The file cannot be written.
    """
    if path.exists():
        return path
    with os_error_to_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock")):
        failures = []
        for url in urls:
            if path.exists():  # another process has downloaded it
                return path
            try:
                return _fetch_one(url, path, checksum)
            except _HostError as failure:
                failures.append(f"{urlsplit(url).netloc} {failure}")
    instead = instead or f"put it at {path}"
    raise FetchError(f"cannot fetch {path.name} ({', '.join(failures)}); get it another way and {instead}")


class _HostError(Exception):
    """Why one URL failed, to follow the host's name in a sentence."""


def _fetch_one(url: str, path: Path, checksum: str) -> Path:
    part = path.with_name(path.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _download(url, part)
    actual = _digest(part, checksum)
    if resumed and actual != checksum:
        # The part came from elsewhere, or the file has changed: download all of it once.
        part.unlink()
        _download(url, part)
        actual = _digest(part, checksum)
    if actual != checksum:
        part.unlink()
        raise _HostError(f"sent a file with checksum {actual}, not {checksum}")
    with os_error_to_storage_error(path):
        part.replace(path)
        sync_folder(path.parent)
    return path


def _digest(path: Path, checksum: str) -> str:
    """Return the checksum of `path` in the form of `checksum`."""
    algorithm, _, digits = checksum.partition(":")
    with os_error_to_storage_error(path), path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()[: len(digits)]}"


def _download(url: str, part: Path) -> None:
    """Complete `part`, resuming interrupted connections."""
    cuts = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, before)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                return  # the part has the full length; the checksum decides
            raise _HostError(f"answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            cuts += 1
            after = part.stat().st_size if part.exists() else 0
            if cuts > CUTS or after <= before:
                raise _HostError(_reason(error)) from error


def _receive(url: str, part: Path, start: int) -> None:
    """Append to `part` from byte `start`, or write all of it if the server does not support ranges."""
    headers = {"User-Agent": "svertka", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise http.client.HTTPException("sent another range than the one asked for")
        left = int(response.headers.get("Content-Length") or 0)
        size = start + left
        with os_error_to_storage_error(part):
            file = part.open("r+b" if start else "wb")
        with file, progress(f"fetching {part.stem}", -(-size // MEGABYTE), "MB") as bar:
            file.seek(start)
            bar.advance(start // MEGABYTE)
            while block := response.read(BLOCK):
                with os_error_to_storage_error(part):
                    file.write(block)
                left -= len(block)
                bar.advance(file.tell() // MEGABYTE - bar.done)
        if left > 0:
            raise http.client.HTTPException(f"closed the connection {left} bytes before the end")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"did not answer within {TIMEOUT:.0f} s"
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error) or type(error).__name__).lower()
