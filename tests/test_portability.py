"""Modules that only POSIX systems have are optional: without them everything is imported, and rows are stored."""

import subprocess
import sys
from pathlib import Path

HIDE = """
import os, signal, sys
import numpy, torch, scipy.ndimage, sklearn.linear_model, onnx, onnxruntime, uvicorn, starlette, matplotlib, PIL.Image
import asyncio, multiprocessing, subprocess, tempfile, typer, rich, torch.distributed, torch.utils.tensorboard

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGPROF", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "setitimer", "ITIMER_PROF"):
    delattr(signal, name)
for name in ("preadv", "pwrite", "pread", "fork", "nice", "sysconf", "geteuid", "O_NONBLOCK", "posix_fadvise"):
    delattr(os, name)
"""

IMPORT_ALL = """
import importlib, pkgutil
import svertka

names = [one.name for one in pkgutil.walk_packages(svertka.__path__, "svertka.") if not one.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

STORE = """
import pathlib, types
from svertka.data import disk_cache
from svertka.data.disk_cache import ArrayStore

del sys.modules["fcntl"]  # to imitate the locks of Windows
import fcntl

def locking(descriptor, mode, count):
    fcntl.lockf(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if mode == 2 else 0), count)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
sys.platform = "win32"
disk_cache.HAS_SHARED_LOCKS = False

parent = pathlib.Path(sys.argv[1])
keys = [bytes([number]) * 16 for number in range(20)]
rows = numpy.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype("uint8")
old = ArrayStore(parent / "old", (30, 3), "uint8", 4000)
assert (old.append(keys, rows) >= 0).all()
again = ArrayStore(parent / "old", (30, 3), "uint8", 4000)
assert (again.gather(again.find(keys[::-1])) == rows[::-1]).all()
assert not again.clear()
path = parent / "old" / "rows"
content = bytearray(path.read_bytes())
content[100] ^= 1
path.write_bytes(content)
damaged = ArrayStore(parent / "old", (30, 3), "uint8", 4000)
assert damaged.find(keys[:3]).tolist() == [0, -1, 2]
new = ArrayStore(parent / "new", (30, 3), "uint8", 4000)
assert new.room() == 4000 // (90 + disk_cache.INDEX_ENTRY.itemsize)
assert (new.append(keys, rows) >= 0).all()
assert not (parent / "old").exists()  # the neighbor made room; on Windows only because nobody has it open
assert (new.gather(new.find(keys)) == rows).all()
print("stored")
"""


def test_every_module_is_imported_and_rows_are_stored_without_posix_modules(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", HIDE + IMPORT_ALL + STORE, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    count, stored = ran.stdout.split()
    assert int(count) > 150
    assert stored == "stored"
