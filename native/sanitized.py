"""Tests of the kernels in a build with AddressSanitizer and UndefinedBehaviorSanitizer.

`make sanitize` builds the module and runs `python native/sanitized.py FOLDER [--networks N] [--large]`, where FOLDER
contains the module. The tests of the kernels and of `conv2d` run first, with scratch memory full of NaN, then N random
networks are optimized. The first fault ends the run with a report on stderr and a nonzero exit code.
"""

import argparse
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch  # before the kernels, so that they use the threads that PyTorch has started

NAME = "svertka.conv._kernels"
TESTS = (
    "api",
    "bounds",
    "native_batch_norm",
    "native_direct",
    "native_fft",
    "native_grouped",
    "native_int8",
    "native_linear",
    "native_max_pool",
    "native_support",
    "native_winograd",
    "native_winograd_bf16",
    "space_to_depth",
)
NETWORKS = Path("tests/compiler/random_networks.py")  # builds random networks and optimizes them


def loaded(name: str, path: Path) -> ModuleType:
    """Load the module `name` from the file at `path`, also for later imports."""
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def try_networks(count: int) -> int:
    """Optimize random networks. Return 1 if the results of one are wrong, else 0."""
    networks, found = loaded("random_networks", NETWORKS), Counter[str]()
    for seed in range(count):
        print(f"\rnetwork {seed}", end="", file=sys.stderr, flush=True)  # a crash leaves its number on the terminal
        what, why = networks.tried(networks.design(seed))
        found[what] += 1
        if what == "wrong":
            print(f": {why}", file=sys.stderr)
    print(f"\r{count} networks: {dict(found)}")
    return int(found["wrong"] > 0)


def main() -> int:
    """Run the tests and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--large", action="store_true", help="the tests with their large counts")
    options = parser.parse_args()
    (path,) = options.folder.glob("_kernels.*.so")
    loaded(NAME, path)  # where svertka.conv.native_support looks first
    torch.set_num_threads(2)
    tests = [f"tests/conv/test_{name}.py" for name in TESTS]
    failed = pytest.main([*tests, "-p", "no:cacheprovider", "-x", *["--large"] * options.large])
    return int(failed) or try_networks(options.networks)


if __name__ == "__main__":
    sys.exit(main())
