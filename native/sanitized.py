"""The tests of the kernels with a build that finds reads and writes out of bounds and undefined behaviour.

`make sanitize` builds it and runs this: `python native/sanitized.py FOLDER`, which holds the sanitized module.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch  # noqa: F401 - before the kernels, so that they find the threads that PyTorch has started

NAME = "svertka.conv._kernels"

if __name__ == "__main__":
    (path,) = Path(sys.argv[1]).glob("_kernels.*")
    spec = spec_from_file_location(NAME, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module  # where svertka.conv.native looks first
    sys.exit(pytest.main(["tests/conv", "-k", "native", "-p", "no:cacheprovider", "-x"]))
