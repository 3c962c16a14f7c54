"""Shards where they are: tar files in a local folder, in an object store or on a web server, read by byte range.

fsspec opens every location; credentials come only from the environment, as its back ends read them.
"""

import itertools
import os
import re
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from fsspec.core import url_to_fs

from svertka.errors import DataError, UsageError
from svertka.files import is_url, os_error_to_storage_error, parse_path, write_atomic
from svertka.progress import say
from svertka.text_width import shorten

T = TypeVar("T")

_answered: WeakSet[Any] = WeakSet()  # file systems of which a request has succeeded
_waiting = threading.Lock()
_reported = {"until": 0.0}  # time.monotonic() up to which no further request is reported as waiting

PATIENCE = 60.0  # seconds for which a request is repeated
FIRST_PATIENCE = 5.0  # the same before the first answer: the address may be wrong, or this machine offline
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds between two attempts
MOST_SHARDS = 1_000_000  # that a pattern such as {000000..001281} may name
KNOWN = "s3://, https://, gs://, az:// or hf://"
BESIDE = ("", ".safetensors", ".json", ".txt", ".md", ".part")  # suffixes of files that may accompany shards
SURVEYED = 1000  # files of a folder by whose names it is recognized
DENIED, ABSENT = (401, 403), (404, 410)
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class ShardLocation:
    """A folder or a list of shards.

    Attributes:
        source: The folder, file or URL as it was named, braces included.
        system: The file system of fsspec.
        root: The folder in it.
        names: Names of the shards in the folder, if the source lists them; None: it names the folder.
    """

    source: str
    system: Any
    root: str
    names: tuple[str, ...] | None = None

    @property
    def is_local(self) -> bool:
        """Whether the shards are files of this machine."""
        return "file" in _protocols(self.system)

    def path(self, name: str) -> str:
        """Return the path of a file beside the shards, for the file system."""
        return f"{self.root.rstrip('/')}/{name}"

    def describe(self, name: str) -> str:
        """Return what messages call a file beside the shards."""
        folder = self.source if self.names is None else self.source.rpartition("/")[0] or "."
        return f"{folder.rstrip('/')}/{name}"

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return the bytes of a file from `start` to `stop`, or all of them.

        Raises:
            DataError: It does not exist, access is denied, it is shorter, or the server does not answer for a minute.
        """
        content: bytes = retry(
            lambda: self.system.cat_file(self.path(name), start=start, end=stop), self.describe(name), self.system
        )
        if stop is None or len(content) == stop - (start or 0):
            return content
        if len(content) > stop - (start or 0):
            raise DataError(
                f"the server of {self.describe(name)} sends whole files instead of byte ranges; download the shards "
                "and name their folder"
            )
        end = (start or 0) + len(content)
        raise DataError(f"{self.describe(name)} ends at byte {end:,} instead of {stop:,}; copy it again")

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; raises as `read`."""
        size = retry(lambda: self.system.size(self.path(name)), self.describe(name), self.system)
        if size is None:
            raise DataError(f"the server of {self.describe(name)} does not say its size; download the shards")
        return int(size)

    def exists(self, name: str) -> bool:
        """Return whether there is a file `name`; raises as `read`, but servers may deny access to what is absent."""
        if self.is_local:
            return Path(self.path(name)).is_file()
        nothing: dict[str, Any] = {}  # `isfile` would also say no if the server does not answer
        found = retry(
            lambda: self.system.info(self.path(name)),
            self.describe(name),
            self.system,
            absent=nothing,
            absent_if=(*ABSENT, *DENIED),
        )
        return bool(found.get("type") == "file")

    def put(self, name: str, file: Path) -> None:
        """Copy a file to the folder; it gets its name when it is complete.

        Raises:
            DataError: Access is denied, or the server does not answer for a minute.
            StorageError: The disk is full, or the folder cannot be written.
        """
        target = self.path(name)
        if self.is_local:
            with os_error_to_storage_error(Path(target)):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as content:
                write_atomic(Path(target), partial(copyfileobj, content))
        else:
            retry(lambda: self.system.put_file(str(file), target), self.describe(name), self.system, verb="written")

    def list_names(self) -> list[str]:
        """Return the names of the files in the folder, sorted; raises as `read`."""
        system, root = self.system, self.root
        nothing: list[str] = []
        found = retry(lambda: system.ls(root, detail=False, refresh=True), self.source, system, absent=nothing)
        return sorted({PurePosixPath(path).name for path in found} - {""})


def is_shard_source(source: str | os.PathLike[str]) -> bool:
    """Return whether `source` names shards: a URL, a .tar file, a pattern of them, or a folder that holds only them."""
    text = os.fspath(source)
    if is_url(text):
        return True
    try:
        path = parse_path(text)
    except UsageError:  # impossible, as another reader explains
        return False
    if text.endswith(".tar"):
        return BRACES.search(text) is not None or _holds_labels(path)
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in itertools.islice(entries, SURVEYED) if entry.is_file()]
    except OSError:  # not a folder, or one that another reader explains
        return False
    suffixes = {Path(name).suffix for name in names if not name.startswith(".")}
    return ".tar" in suffixes and suffixes <= {".tar", *BESIDE}


def _holds_labels(path: Path) -> bool:
    """Return whether one of the first files in a tar file is a label; else it is an archive of something else."""
    with suppress(tarfile.TarError, OSError), tarfile.open(path, "r:") as archive:
        names = (member.name for member in itertools.islice(archive, SURVEYED))
        return any(name.endswith((".cls", ".json")) for name in names)
    return False


def open_location(source: str | os.PathLike[str], *, is_folder: bool = False) -> ShardLocation:
    """Open the folder or the list of shards that `source` names; nothing is read.

    Args:
        source: A folder, a .tar file or a URL, where {000..012} stands for each of these numbers.
        is_folder: Whether it must be a folder.

    Raises:
        UsageError: The scheme is unknown or its package is not installed, the URL holds credentials, or the pattern
            is impossible.
    """
    text = os.fspath(source)
    if is_url(text):
        _refuse_credentials(text)
    else:
        text = str(parse_path(text))
    if is_folder or not text.endswith(".tar"):
        system, root = _open_system(text)
        return ShardLocation(text, system, root)
    urls = expand_braces(text)
    folders = {url.rpartition("/")[0] for url in urls}
    if len(folders) > 1:
        raise UsageError(f"{shorten(text)} names shards in {len(folders):,} folders; keep them in one")
    system, path = _open_system(urls[0])
    return ShardLocation(text, system, path.rpartition("/")[0], tuple(url.rpartition("/")[2] for url in urls))


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: {08..11} for numbers, {a,b} for words.

    Raises:
        UsageError: The pattern is impossible or stands for too many names.
    """
    if {"{", "}"} <= set(BRACES.sub("", pattern)):
        raise UsageError(f"{shorten(pattern)} has braces inside braces; write it as patterns without them")
    choices: list[list[str]] = []
    count = 1
    for place, piece in enumerate(BRACES.split(pattern)):
        some = [piece] if place % 2 == 0 else _alternatives(piece, pattern)
        count *= len(some)
        choices.append(some)
        if not 0 < count <= MOST_SHARDS:
            raise UsageError(f"{shorten(pattern)} must name 1 to {MOST_SHARDS:,} shards; correct the range in braces")
    return ["".join(some) for some in itertools.product(*choices)]


def _alternatives(text: str, pattern: str) -> list[str]:
    numbers = NUMBERS.fullmatch(text)
    if numbers is None:
        if "," not in text:
            raise UsageError(f"{shorten(pattern)}: {{{text}}} is not a range; write {{000000..000012}} or {{a,b}}")
        return text.split(",")
    first, last = numbers.groups()
    if int(last) - int(first) >= MOST_SHARDS:
        raise UsageError(f"{shorten(pattern)} must name 1 to {MOST_SHARDS:,} shards; correct the range in braces")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def retry(
    action: Callable[[], T],
    what: str,
    system: Any,
    absent: T | None = None,
    *,
    absent_if: Sequence[int] = ABSENT,
    verb: str = "read",
) -> T:
    """Return the result of `action`, repeated while the server does not answer.

    Args:
        action: A request; what it raises decides whether it is repeated.
        what: The file or folder, for messages.
        system: The file system of the request.
        absent: What is returned if the file does not exist. None: an error.
        absent_if: HTTP statuses that mean so.
        verb: What cannot be done, for messages.

    Raises:
        DataError: The file does not exist, access is denied, or the server does not answer for a minute, or at first
            for some seconds.
    """
    patience, wait = PATIENCE if system in _answered else min(FIRST_PATIENCE, PATIENCE), FIRST_WAIT
    deadline = time.monotonic() + patience
    while True:
        try:
            result = action()
            _answered.add(system)
            return result
        except Exception as raised:  # each back end of fsspec raises its own
            error = _find_cause(raised)
            if absent is not None and _status(error) in absent_if:
                return absent
            reason = _final_reason(error, what, verb)
            if reason is not None:
                raise DataError(reason) from error
            if "file" in _protocols(system) or time.monotonic() + wait > deadline:
                raise DataError(
                    f"{what} cannot be {verb} ({_describe(error)}); check the connection and start again"
                ) from error
            _report_waiting(f"{what} does not answer ({_describe(error)}); trying again for {patience:.0f} seconds")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


def _report_waiting(sentence: str) -> None:
    """Say `sentence`, unless another thread said so of its request a short time ago."""
    with _waiting:
        if time.monotonic() > _reported["until"]:
            _reported["until"] = time.monotonic() + PATIENCE
            say(sentence)


def _final_reason(error: Exception, what: str, verb: str) -> str | None:
    """Return the sentence for an error that another attempt would not mend; None for others."""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoAuthTokenError"):
        return (
            f"{what} needs credentials, and the environment has none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
        )
    if type(error).__name__ == "ClientConnectorCertificateError":
        return (
            f"{what} cannot be {verb}: the certificate of its server is not trusted; set SSL_CERT_FILE to a file with "
            "the certificate of the authority that signed it"
        )
    status = _status(error)
    if status in DENIED:
        return f"{what} may not be {verb}: access is denied ({status}); check the credentials in the environment"
    if status in ABSENT:
        return f"{what} does not exist; check the path"
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return f"{what} cannot be {verb}: the server answers {status}; check the URL"
    return None


def _find_cause(error: Exception) -> Exception:
    """Return the error of a web server's answer, which fsspec reports as a missing file whatever it is."""
    cause = error.__cause__
    is_of_web_server = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return (
        cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and is_of_web_server else error
    )


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error stands for, if it does."""
    if isinstance(error, PermissionError):
        return 403
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return 404
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _describe(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 120) or type(error).__name__


def _open_system(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0] if is_url(url) else "file"
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"{scheme}:// needs a package that is not installed: pip install 'svertka[shards]' for s3 and https "
            f"({_describe(error)})"
        ) from error
    except ValueError as error:
        raise UsageError(f"{scheme}:// is not a known scheme; use a folder, or {KNOWN}") from error
    return system, str(path)


def _protocols(system: Any) -> Sequence[str]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _refuse_credentials(url: str) -> None:
    """Raise UsageError for a URL that could hold credentials, which would get into run folders and logs."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise UsageError(
            f"the URL of {parts.scheme}://{shorten(parts.hostname or '')} has a user, a password or a query, which "
            "would be written to the run; give credentials in the environment"
        )
