import os
import subprocess
import sys

import pytest
import torch

from svertka.conv import native, native_winograd
from svertka.errors import UsageError
from svertka.geometry import ConvShape

if os.environ.get("SVERTKA_REQUIRE_NATIVE"):
    assert native.why_not() is None, native.why_not()


def test_without_the_compiled_module_the_package_works_and_says_why() -> None:
    program = """
import sys
sys.modules["svertka.conv._kernels"] = None  # as if it were not there
import torch
from svertka.conv import conv2d, native
x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
assert torch.allclose(conv2d(x, weight, padding=1), torch.conv2d(x, weight, padding=1), atol=1e-4)
assert native.instruction_sets() == ()
print(native.why_not())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "the package was installed without a C++ compiler, hence without kernels"


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_other_tensors_are_refused_before_their_addresses_are_used() -> None:
    shape = ConvShape(1, 4, 4, 8, 8, (3, 3), padding=(1, 1))
    x, weight = torch.randn(shape.input), torch.randn(shape.weight)
    with pytest.raises(UsageError, match="this tensor is float64 on cpu; use algorithm=auto"):
        native_winograd.forward(x.double(), weight, shape)
    with pytest.raises(UsageError, match="this tensor is float32 on meta"):
        native_winograd.forward(x, weight.to("meta"), shape)
    with pytest.raises(ValueError, match="no kernels for sse9"):
        native.use("sse9")
