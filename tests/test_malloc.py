"""Freed memory is kept for the next tensor where the command line asks for it."""

import platform
import subprocess
import sys

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
