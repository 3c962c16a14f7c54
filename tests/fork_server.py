"""Python processes that are forked from one in which PyTorch and svertka are imported.

Importing them takes each process seconds, which is most of what many tests of processes would compute. Where the
import itself is tested, and outside Linux, processes are started as usual.
"""

import atexit
import ctypes
import faulthandler
import functools
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h: orphans become children of this process
MODULES = ("svertka.cli.app", "svertka.training.single_run", "svertka.training.resume")
SERVING = ("svertka.serving.app", "svertka.serving.uvicorn_server")
DISTRIBUTED = ("torch.distributed", "torch._dynamo")  # which DistributedDataParallel imports


class Python(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen([sys.executable, *arguments], **options)`, forked: `-m`, `-c` or a script, after `-W action`.

    Args:
        arguments: Those of Python.
        modules: Further modules that are imported before the fork, once for all processes that follow.
        options: Those of `Popen`: pipes, `text`, `cwd`, `env` and `start_new_session`.
    """

    def __init__(self, arguments: Sequence[str], *, modules: Sequence[str] = (), **options: Any) -> None:
        self._modules = [*MODULES, *modules]
        super().__init__([sys.executable, *map(str, arguments)], **options)

    if sys.platform == "linux":

        def _execute_child(self, *values: Any) -> None:
            names = inspect.signature(subprocess.Popen._execute_child).parameters  # type: ignore[attr-defined]
            given = dict(zip(list(names)[1:], values, strict=True))
            ends = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
            request = {
                "arguments": given["args"][1:],
                "modules": self._modules,
                "cwd": os.path.abspath(given["cwd"] or "."),  # noqa: PTH100 - an empty path is no folder
                "environment": dict(os.environ if given["env"] is None else given["env"]),
                "session": given["start_new_session"],
            }
            channel = _start_server()
            _set_subreaper(1)
            try:
                socket.send_fds(
                    channel, [json.dumps(request).encode()], [fd if fd >= 0 else n for n, fd in enumerate(ends)]
                )
                self.pid = int(channel.recv(100))
                assert channel.recv(100)  # the process between has ended
            finally:
                _set_subreaper(0)
            self._child_created = True
            self._close_pipe_fds(
                *(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
            )  # type: ignore[attr-defined]


def run_python(
    arguments: Sequence[str], *, modules: Sequence[str] = (), timeout: float = 240, check: bool = False, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """`subprocess.run([sys.executable, *arguments], capture_output=True, **options)`, forked as by `Python`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Python(arguments, modules=modules, **pipes | options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        assert done.returncode == 0, stderr
    return done


def _set_subreaper(value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@functools.cache
def _start_server() -> socket.socket:
    """Start the process that is forked; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    server = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    theirs.close()

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return ours


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request until the other end is closed; in such a process, return its request."""
    while True:
        data, ends, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not data:
            return None
        request: dict[str, Any] = json.loads(data)
        for name in request["modules"]:
            importlib.import_module(name)
        gc.freeze()
        between = os.fork()
        if between:
            for end in ends:
                os.close(end)
            os.waitpid(between, 0)
            channel.send(b"ended")
            continue
        child = os.fork()
        if child:
            channel.send(str(child).encode())
            os._exit(0)
        channel.close()
        for target, end in enumerate(ends):
            os.dup2(end, target)
            os.close(end)
        return request


def _become(request: dict[str, Any]) -> int:
    """Run what `request` names in this process as Python would; return the exit code."""
    try:
        _run(request)
        code: Any = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    return int(code or 0)


def _run(request: dict[str, Any]) -> None:
    for name, descriptor, errors in (
        ("stdin", 0, "strict"),
        ("stdout", 1, "strict"),
        ("stderr", 2, "backslashreplace"),
    ):
        mode, lines = ("w", name == "stderr" or os.isatty(descriptor)) if descriptor else ("r", False)
        binary = open(descriptor, f"{mode}b", closefd=False)  # noqa: SIM115 - until the end
        stream = io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=lines)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    arguments = request["arguments"]
    if arguments[0] == "-W":
        warnings.simplefilter(arguments[1])
        arguments = arguments[2:]
    sys.path[:0] = [
        str(Path.cwd()) if arguments[0] == "-m" else "",
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if arguments[0] == "-m":
        sys.argv = ["-m", *arguments[2:]]
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    if arguments[0] == "-c":
        code, name, sys.argv = arguments[1], "<string>", ["-c", *arguments[2:]]
    else:
        code, name, sys.argv = Path(arguments[0]).read_text(), arguments[0], arguments
        main.__file__, sys.path[0] = name, str(Path(name).resolve().parent)
    exec(compile(code, name, "exec"), main.__dict__)


if __name__ == "__main__":
    found = _serve(socket.socket(fileno=int(sys.argv[1])))
    # Freeing all objects would copy the memory that this process and its forks share.
    os._exit(0 if found is None else _become(found))
