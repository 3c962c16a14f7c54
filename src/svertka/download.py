"""Files from the network: resumed where they were cut, checked, and whole or absent."""

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
from svertka.files import lock_file, storage_errors, sync_folder
from svertka.progress import progress

TIMEOUT = 20.0  # seconds without a byte before a server counts as gone
CUTS = 5  # a connection that is cut is taken up again this often in a row, as long as each brings something
BLOCK = 1 << 18  # bytes read at once
MEGABYTE = 1_000_000


def download_file(urls: Sequence[str], path: Path, checksum: str, instead: str = "") -> Path:
    """`path`, downloaded from the first of `urls` that gives it, unless it is there already.

    `checksum`: "md5:" or "sha256:" (any name `hashlib` knows) and the first hexadecimal digits of the digest, all of
    them or as many as were published. `instead`: what to do by hand when nothing can be fetched; by default, to put
    the file at `path`. Until it is checked the file is called `path` + ".part"; a later call goes on from there. Of
    two processes that want the same file one downloads and the other waits.

    Raises:
        FetchError: no address gave a file with that checksum.
        StorageError: it cannot be written.
    """
    if path.exists():
        return path
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock")):
        failures = []
        for url in urls:
            if path.exists():  # another process had the lock before
                return path
            try:
                return _fetch_one(url, path, checksum)
            except _HostError as failure:
                failures.append(f"{urlsplit(url).netloc} {failure}")
    instead = instead or f"put it at {path}"
    raise FetchError(f"cannot fetch {path.name} ({', '.join(failures)}); get it another way and {instead}")


class _HostError(Exception):
    """Why one address did not give the file, to follow the host's name in a sentence."""


def _fetch_one(url: str, path: Path, checksum: str) -> Path:
    part = path.with_name(path.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _download(url, part)
    actual = _digest(part, checksum)
    if resumed and actual != checksum:
        # What was there came from elsewhere, or the file changed in between: once more, from the beginning.
        part.unlink()
        _download(url, part)
        actual = _digest(part, checksum)
    if actual != checksum:
        part.unlink()
        raise _HostError(f"gave a file with checksum {actual}, not {checksum}")
    with storage_errors(path):
        part.replace(path)
        sync_folder(path.parent)
    return path


def _digest(path: Path, checksum: str) -> str:
    """The checksum that `path` has, written as `checksum` is."""
    algorithm, _, digits = checksum.partition(":")
    with storage_errors(path), path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()[: len(digits)]}"


def _download(url: str, part: Path) -> None:
    """Bring `part` to its full length, taking cut connections up again."""
    cuts = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, before)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                return  # nothing is left after what we have; the checksum tells whether that is the file
            raise _HostError(f"answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            cuts += 1
            after = part.stat().st_size if part.exists() else 0
            if cuts > CUTS or after <= before:
                raise _HostError(_reason(error)) from error


def _receive(url: str, part: Path, start: int) -> None:
    """Append to `part` what the server has from byte `start` on, or all of it where it does not do ranges."""
    headers = {"User-Agent": "svertka", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise http.client.HTTPException("sent another range than the one asked for")
        left = int(response.headers.get("Content-Length") or 0)
        size = start + left
        with storage_errors(part):
            file = part.open("r+b" if start else "wb")
        with file, progress(f"fetching {part.stem}", -(-size // MEGABYTE), "MB") as bar:
            file.seek(start)
            bar.advance(start // MEGABYTE)
            while block := response.read(BLOCK):
                with storage_errors(part):
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
