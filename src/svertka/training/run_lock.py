"""Locks on run folders: a new run claims its folder before the preparation, a resumed one for its duration."""

import errno
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path

from svertka import distributed
from svertka.data.shard_storage import BRACES
from svertka.errors import RunError, UsageError
from svertka.files import lock_descriptor, os_error_to_storage_error, resolve_path
from svertka.progress import say
from svertka.run import Run

VISIBLE_WITHIN = 10.0  # seconds until a new file is on all machines
ATTEMPTS = 100  # if other processes create and remove the folder at the same time
MAX_NAME_LENGTH = 80  # characters of the source's name in a run's name
NO_LOCK_SUPPORT = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

MARKS = re.compile(r"[^\w.-]+")  # in names of networks of others; not in those of folders


@contextmanager
def claim_run_folder(source: str, model: str, output: str | PathLike[str] | None) -> Iterator[Path]:
    """Create and lock the folder of a new run.

    The folder is removed at the end of the context if it is empty.

    Args:
        source: Name of the source, for the name of the folder.
        model: Name of the network, for the name of the folder.
        output: The folder. None: the first of runs/SOURCE-MODEL, runs/SOURCE-MODEL-2, … that does not exist.

    Yields:
        The folder; the same in all processes of a distributed training.

    Raises:
        UsageError: `output` exists and is not empty, or is not the same folder on another machine of this job.
        RunError: Another process trains into it.
        StorageError: It cannot be created.
    """
    with ExitStack() as held:
        folder = distributed.call_on_first(lambda: held.enter_context(_claimed(source, model, output)))
        _check_shared(Run(folder))
        yield folder


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Lock an existing run, so that no other process trains it.

    Raises:
        RunError: Another process trains it.
        StorageError: The folder cannot be written.
        UsageError: It is not the same folder on another machine of this job.
    """
    with ExitStack() as held:
        distributed.call_on_first(lambda: held.enter_context(_in_use(run)))
        _check_shared(run)
        yield


def _check_shared(run: Run) -> None:
    """Raise UsageError unless all processes see the lock file that the first one has written."""
    if distributed.world_size() == 1:
        return
    expected, deadline = distributed.broadcast(_read_lock(run)), time.monotonic() + VISIBLE_WITHIN
    while (is_seen := _read_lock(run) == expected) is False and time.monotonic() < deadline:
        time.sleep(0.1)  # network file systems show new files late
    blind = [host for host, sees in distributed.all_gather((platform.node(), is_seen)) if not sees]
    if blind:
        raise UsageError(
            f"{run.folder} is another folder on {blind[0]}; name an --output on a file system that all machines share"
        )


def _read_lock(run: Run) -> bytes:
    try:
        return run.lock.read_bytes()
    except OSError:
        return b""


@contextmanager
def _claimed(source: str, model: str, output: str | PathLike[str] | None) -> Iterator[Path]:
    if output is not None:
        run = Run(output)
        claim = _claim(run)
        if claim is None:
            check_not_locked(run)
            advice = f"continue it ({run.resume_command}) or " if run.training.exists() else ""
            raise UsageError(f"{run.folder} exists; {advice}choose another --output")
    else:
        path = resolve_path(source)
        name = path.stem if path.is_file() or path.suffix == ".tar" else path.name.strip("<>")
        stem = f"{BRACES.sub('', name).strip('-_.')[:MAX_NAME_LENGTH] or 'shards'}-{MARKS.sub('-', model)}"
        number = 1
        while (claim := _claim(run := Run(Path("runs") / (stem if number == 1 else f"{stem}-{number}")))) is None:
            number += 1
    try:
        yield run.folder
    finally:
        _release(run, claim)
        with suppress(OSError):  # not empty: it holds a run
            run.folder.rmdir()


@contextmanager
def _in_use(run: Run) -> Iterator[None]:
    if not run.training.exists():  # not a run; the caller raises the error
        yield
        return
    with os_error_to_storage_error(run.lock):
        claim = _lock(run)
    if claim is None:
        check_not_locked(run)
        raise RunError(f"{run.folder} is being trained by another process; wait until it ends")
    try:
        yield
    finally:
        _release(run, claim)


def check_not_locked(run: Run) -> None:
    """Raise RunError if a process trains `run`; the message names the process."""
    holder = _read_holder(run)
    if holder is not None:
        process, host = holder
        where = "" if host == platform.node() else f" on {host}"
        raise RunError(
            f"{run.folder} is being trained by process {process}{where}; wait until it ends, or stop it (kill "
            f"{process})"
        )


def find_training_process(run: Run) -> int | None:
    """Return the id of the process on this machine that trains `run`; None if there is none."""
    holder = _read_holder(run)
    if holder is None or holder[1] != platform.node():
        return None
    try:
        os.kill(holder[0], 0)
        descriptor = os.open(run.lock, os.O_RDWR)
    except (OSError, OverflowError):
        return None
    try:
        is_free = lock_descriptor(descriptor, shared=True, wait=False)  # a killed process left the file behind
    except OSError:  # without locks, the file is all there is
        is_free = False
    finally:
        os.close(descriptor)
    return None if is_free else holder[0]


def _read_holder(run: Run) -> tuple[int, str] | None:
    """Return the process and the host in the lock file of `run`; None if there are none."""
    try:
        holder = json.loads(run.lock.read_bytes())
        return int(holder["process"]), str(holder["host"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _claim(run: Run) -> int | None:
    """Create and lock the folder of `run`; return None if it is not empty or another process holds it."""
    for _ in range(ATTEMPTS):
        with os_error_to_storage_error(run.folder):
            try:
                run.folder.mkdir(parents=True)
            except FileExistsError:
                if not _is_empty(run):
                    return None
            try:
                claim = _lock(run)
            except FileNotFoundError:  # another process removed it meanwhile
                continue
            if claim is not None and not _is_empty(run):
                _release(run, claim)
                return None
            return claim
    return None  # a dangling link


def _is_empty(run: Run) -> bool:
    """Return whether the folder is empty but for the lock of a killed process."""
    try:
        return all(path == run.lock for path in run.folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _lock(run: Run) -> int | None:
    """Return the descriptor of the locked lock file of `run`; None if another process holds the lock.

    Raises:
        OSError: The file cannot be created.
    """
    while True:
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock_descriptor(descriptor, wait=False):
                os.close(descriptor)
                return None
        except OSError as error:
            if error.errno not in NO_LOCK_SUPPORT:
                raise
            say(f"{run.folder} is on a file system without locks; do not train it in two processes at once")
        if _is_same_file(run.lock, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": platform.node()}).encode())
            return descriptor
        os.close(descriptor)  # its holder removed it before it was locked


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(run: Run, claim: int) -> None:
    if _is_same_file(run.lock, claim):
        with suppress(OSError):
            run.lock.unlink()
    os.close(claim)
