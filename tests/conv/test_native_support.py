import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fork_server import run_python
from svertka.conv import conv2d, native_support, native_winograd
from svertka.conv.kernel_sources import hash_kernel_sources
from svertka.conv_shape import ConvShape
from svertka.errors import UsageError

if os.environ.get("SVERTKA_REQUIRE_NATIVE"):
    assert native_support.why_not() is None, native_support.why_not()


def test_without_the_compiled_module_the_package_works_and_says_why() -> None:
    program = """
import sys
sys.modules["svertka.conv._kernels"] = None  # as if it were not there
import torch
from svertka.conv import conv2d, native_support
x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
assert torch.allclose(conv2d(x, weight, padding=1), torch.conv2d(x, weight, padding=1), atol=1e-4)
assert native_support.instruction_sets() == ()
print(native_support.why_not())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "the package was installed without a C++ compiler, hence without kernels"


def test_kernels_of_other_sources_are_said_and_not_used() -> None:
    program = """
import sys
sys.modules["svertka.conv._kernels"] = kernels = type(sys)("svertka.conv._kernels")
kernels.source_hash = "older"
import torch
from svertka.conv import conv2d, native_support
x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
assert torch.equal(conv2d(x, weight), torch.conv2d(x, weight))
print(native_support.why_not())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    sources = Path(__file__).parents[2] / "native"
    sentence = f"the compiled kernels were built from other sources than those in {sources}: build them again (make)"
    assert ran.stdout.strip() == sentence
    assert f"RuntimeWarning: {sentence}; until then PyTorch convolves" in ran.stderr


def test_the_hash_of_sources_depends_on_each_of_them(tmp_path: Path) -> None:
    for name in ("a.cpp", "b/c.h", "CMakeLists.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    hashes = [hash_kernel_sources(tmp_path)]
    for name in ("a.cpp", "b/c.h", "CMakeLists.txt"):
        (tmp_path / name).write_text("two")
        hashes.append(hash_kernel_sources(tmp_path))
    (tmp_path / "a.cpp").rename(tmp_path / "d.cpp")
    hashes.append(hash_kernel_sources(tmp_path))
    (tmp_path / "notes.md").write_text("two")
    assert len(set(hashes)) == len(hashes) == 5
    assert hash_kernel_sources(tmp_path) == hashes[-1]


@pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))
def test_other_tensors_are_refused_before_their_addresses_are_used() -> None:
    shape = ConvShape(1, 4, 4, 8, 8, (3, 3), padding=(1, 1))
    x, weight = torch.randn(shape.input), torch.randn(shape.weight)
    with pytest.raises(UsageError, match="this tensor is float64 on cpu; use algorithm=auto"):
        native_winograd.forward(x.double(), weight, shape)
    with pytest.raises(UsageError, match="this tensor is float32 on meta"):
        native_winograd.forward(x, weight.to("meta"), shape)
    with pytest.raises(ValueError, match="no kernels for sse9"):
        native_support.select_instruction_set("sse9")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_process_that_is_forked_after_use_computes_on() -> None:
    program = """
import os, sys, torch
from svertka.conv import conv2d, native_winograd
from svertka.conv_shape import ConvShape
torch.set_num_threads(2)
x, weight = torch.randn(4, 64, 28, 28), torch.randn(64, 64, 3, 3).requires_grad_()
expected = conv2d(x, weight, padding=1)
def computed():
    for algorithm in ("auto", "aten"):
        result = conv2d(x, weight, padding=1, algorithm=algorithm)
        result.sum().backward()
        assert torch.allclose(result, expected, atol=1e-3)
computed()
child = os.fork()
if child == 0:
    computed()
    os._exit(7)
status = os.waitpid(child, 0)[1]
computed()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    # Where it deadlocks, the test's own limit ends it.
    assert run_python(["-c", program]).returncode == 7


def test_the_tests_and_networks_that_make_sanitize_runs_are_there() -> None:
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("sanitized", root / "native/sanitized.py")
    assert spec
    assert spec.loader
    sanitized = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sanitized)
    assert (root / sanitized.NETWORKS).is_file()
    assert all((root / f"tests/conv/test_{name}.py").is_file() for name in sanitized.TESTS)


def test_several_threads_convolve_at_once(large_count: Callable[[int, int], int]) -> None:
    def work(seed: int) -> list[float]:
        generator, off = torch.Generator().manual_seed(seed), []
        for number in range(large_count(6, 200)):
            channels, side, taps = 3 + 7 * ((seed + number) % 4), 9 + 5 * seed + number % 3, (1, 3, 5, 3)[number % 4]
            x = torch.randn(1 + seed, channels, side, side, generator=generator).requires_grad_()
            weight = torch.randn(channels + 2, channels, taps, taps, generator=generator).requires_grad_()
            result = conv2d(x, weight, padding=taps // 2)
            result.sum().backward()
            exact = torch.conv2d(x.detach().double(), weight.detach().double(), padding=taps // 2)
            assert x.grad is not None
            scale = channels**0.5 * taps
            off += [
                float((result.detach() - exact).abs().max()) / scale,
                float(x.grad.isnan().sum() + weight.grad.isnan().sum()),
            ]
        return off

    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for off in pool.map(work, range(4)):
            assert max(off) < 1e-4
