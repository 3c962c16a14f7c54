"""Which process has a run folder: names that are taken before the preparation, and a lock while it is trained."""

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path

from svertka import distributed
from svertka.errors import RunError, UsageError
from svertka.files import lock_descriptor, storage_errors
from svertka.progress import say
from svertka.run import Run

ATTEMPTS = 100  # at a folder that others make and give up at the same time
LONGEST = 80  # characters of a source's name in that of a run
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def claimed(source: str, model: str, output: str | PathLike[str] | None) -> Iterator[Path]:
    """The folder of a new run, this job's alone: `output`, or the first of runs/SOURCE-MODEL, …-2, …-3 that is free.

    It is made at once, so that of several trainings each takes its own, and removed if the body leaves nothing in it.

    Raises:
        UsageError: `output` is there already, and not empty. RunError: another process trains into it.
        StorageError: it cannot be made.
    """
    with ExitStack() as held:
        yield distributed.call_on_first(lambda: held.enter_context(_claimed(source, model, output)))


@contextmanager
def in_use(run: Run) -> Iterator[None]:
    """Keep other processes from training `run` during the body.

    Raises:
        RunError: another process does.
        StorageError: the folder cannot be written.
    """
    with ExitStack() as held:
        distributed.call_on_first(lambda: held.enter_context(_in_use(run)))
        yield


@contextmanager
def _claimed(source: str, model: str, output: str | PathLike[str] | None) -> Iterator[Path]:
    if output is not None:
        run = Run(output)
        claim = _claim(run)
        if claim is None:
            refuse_if_held(run)
            go_on = f"continue it ({run.resume_command}) or " if run.training.exists() else ""
            raise UsageError(f"{run.folder} exists already; {go_on}choose another --output")
    else:
        path = Path(source).resolve()
        stem = f"{(path.stem if path.is_file() else path.name.strip('<>'))[:LONGEST]}-{model}"
        number = 1
        while (claim := _claim(run := Run(Path("runs") / (stem if number == 1 else f"{stem}-{number}")))) is None:
            number += 1
    try:
        yield run.folder
    finally:
        _give_up(run, claim)
        with suppress(OSError):  # it holds a run
            run.folder.rmdir()


@contextmanager
def _in_use(run: Run) -> Iterator[None]:
    if not run.training.exists():  # no run, as is said later
        yield
        return
    with storage_errors(run.lock):
        claim = _lock(run)
    if claim is None:
        refuse_if_held(run)
        raise RunError(f"{run.folder} is being trained by another process; wait until it ends")
    try:
        yield
    finally:
        _give_up(run, claim)


def refuse_if_held(run: Run) -> None:
    """Raise RunError if a process trains `run`; the message names it."""
    try:
        holder = json.loads(run.lock.read_bytes())
        process, host = int(holder["process"]), str(holder["host"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return
    where = "" if host == platform.node() else f" on {host}"
    raise RunError(
        f"{run.folder} is being trained by process {process}{where}; wait until it ends, or stop it (kill {process})"
    )


def _claim(run: Run) -> int | None:
    """Make the folder of `run` and lock it; None if it is there and holds something, or is another's."""
    for _ in range(ATTEMPTS):
        with storage_errors(run.folder):
            try:
                run.folder.mkdir(parents=True)
            except FileExistsError:
                if not _is_empty(run):
                    return None
            try:
                claim = _lock(run)
            except FileNotFoundError:  # whoever made it gave it up meanwhile
                continue
            if claim is not None and not _is_empty(run):
                _give_up(run, claim)
                return None
            return claim
    return None  # a link that leads nowhere


def _is_empty(run: Run) -> bool:
    """Whether the folder holds nothing, or the lock alone that a killed process left."""
    try:
        return all(path == run.lock for path in run.folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _lock(run: Run) -> int | None:
    """The open lock file of `run`, held by this process; None if another holds it.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock_descriptor(descriptor, wait=False):
                os.close(descriptor)
                return None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            say(f"{run.folder} is on a file system without locks: nothing keeps another process from training it, too")
        if _is_at(run.lock, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": platform.node()}).encode())
            return descriptor
        os.close(descriptor)  # who held it removed it before this process could


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _give_up(run: Run, claim: int) -> None:
    if _is_at(run.lock, claim):
        with suppress(OSError):
            run.lock.unlink()
    os.close(claim)
