"""Freed memory is kept for the next tensor where the command line asks for it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_serves_the_next_tensor() -> None:
    script = """
import resource, torch
from svertka.malloc import keep_freed_memory
{setting}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(30):
    if number == 10:
        before = faults()
    torch.ones(2**24)  # 64 MB
print(faults() - before)
"""
    given_back, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", script.format(setting=setting)], capture_output=True, check=True
            ).stdout
        )
        for setting in ("", "keep_freed_memory()")
    )
    assert given_back > 20 * kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_one_thread_freed_serves_the_next_one() -> None:
    script = """
import resource, threading, torch
from svertka.malloc import keep_freed_memory
keep_freed_memory()
def work():
    batches = [torch.ones(2**23) for _ in range(3)]  # 32 MB each
for number in range(40):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) < 50_000  # pages, of 737,280 that the tensors take


LARGE_PAGES = """
import ctypes, resource
from svertka.malloc import keep_freed_memory
if {limit}:
    resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
keep_freed_memory()
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
blocks = [malloc({size}) for _ in range(4)]
for line in open("/proc/self/smaps"):
    area, _, rest = line.partition(" ")
    if "-" in area:
        begin, end = (int(one, 16) for one in area.split("-"))
    if area == "VmFlags:":
        print(["hg" in rest.split() for block in blocks if begin <= block + {size} // 2 < end])
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no large pages")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(("size", "limit", "large"), [(2**26, 0, 4), (900 << 20, 0, 4), (2**26, 2**34, 0)])
def test_new_memory_asks_for_large_pages_unless_addresses_are_limited(size: int, limit: int, large: int) -> None:
    import resource

    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") < 10 * size:
        pytest.skip("the machine has too little memory")
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if limits != [resource.RLIM_INFINITY] * 2 or Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("nothing is reserved")
    script = LARGE_PAGES.format(size=size, limit=limit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert (done.stdout.count("True"), done.stdout.count("False")) == (large, 4 - large)
