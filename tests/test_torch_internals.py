"""The private functions of PyTorch exist in the installed version, and everything is right without them."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import svertka
from svertka import torch_internals

PRIVATE = [name for name in vars(torch_internals) if name.startswith(("_dispatch", "_has_kernel", "_active", "_is_"))]


@pytest.mark.parametrize("name", PRIVATE)
def test_the_installed_pytorch_has_the_private_function(name: str) -> None:
    # Where it fails, the fallback is in use: right, but slower. Look for the function's new name.
    assert getattr(torch_internals, name) is not None
    assert isinstance(getattr(torch.autograd.forward_ad, "_current_level", None), int)


def test_only_this_module_uses_private_functions() -> None:
    folder = Path(inspect.getfile(svertka)).parent
    users = {path.name for path in folder.rglob("*.py") if "torch._C" in path.read_text()}
    assert users == {"torch_internals.py"}


def test_states_are_recognized() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    assert not torch_internals.has_dispatch_mode()
    with FlopCounterMode(display=False):
        assert torch_internals.has_dispatch_mode()
    assert not torch_internals.has_active_transform()
    with torch.autograd.forward_ad.dual_level():
        assert torch_internals.has_active_transform()
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(
            (
                torch_internals.has_active_transform(),
                torch_internals.is_transform_wrapper(x),
                torch_internals.is_batched(x),
            )
        )
        return x.sum()

    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    assert seen == [(True, True, True), (True, True, False)]
    x = torch.ones(2)
    assert not torch_internals.is_transform_wrapper(x)
    assert not torch_internals.is_batched(x)
    assert torch_internals.is_composite("aten::dropout")
    assert not torch_internals.is_composite("aten::relu")


HIDDEN = """
import torch
import torch.func, torch.fx, torch.utils.flop_counter  # they import the names themselves
from torch.autograd import forward_ad

names = "_len_torch_dispatch_stack", "_dispatch_has_kernel_for_dispatch_key"
kept = {name: getattr(torch._C, name) for name in names}
functorch = torch._C._functorch
class Hidden:
    def __getattr__(self, name):
        raise AttributeError(name)
for name in names:
    delattr(torch._C, name)
torch._C._functorch = Hidden()
import svertka.torch_internals as internals
for name, value in kept.items():
    setattr(torch._C, name, value)
torch._C._functorch = functorch
for name in {private!r}:
    assert getattr(internals, name) is None, name
assert internals.has_dispatch_mode() and internals.has_active_transform() and internals.is_composite("aten::relu")

import torch.nn.functional as F
import svertka
from svertka.conv import conv2d

torch.manual_seed(0)
x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
close = torch.testing.assert_close
close(conv2d(x, weight, padding=1), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)
for algorithm in ("winograd", "gemm"):
    close(conv2d(x, weight, padding=1, algorithm=algorithm), F.conv2d(x, weight, padding=1), rtol=1e-3, atol=1e-3)
many = torch.func.vmap(lambda one: conv2d(one, weight))(x[None].repeat(3, 1, 1, 1, 1))
close(many[1], F.conv2d(x, weight), rtol=1e-4, atol=1e-4)
change = torch.func.jvp(lambda one: conv2d(one, weight), (x,), (x,))[1]
close(change, F.conv2d(x, weight), rtol=1e-4, atol=1e-4)

net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Dropout(),
    torch.nn.Conv2d(8, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5),
).eval()
with torch.no_grad():
    expected = net(x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as plain:
        net(x)
    fast = svertka.optimize(net, x)
    close(fast(x), expected, rtol=1e-3, atol=1e-3)
    close(torch.func.vmap(fast)(x[None].repeat(3, 1, 1, 1, 1))[2], expected, rtol=1e-3, atol=1e-3)
    svertka.accelerate(net)
    close(net(x), expected, rtol=1e-3, atol=1e-3)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        net(x)
assert counter.get_total_flops() == plain.get_total_flops() > 0
print("right")
"""


def test_without_the_private_functions_results_are_right() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HIDDEN.replace("{private!r}", repr(PRIVATE))],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.stdout.strip() == "right", ran.stderr


SHAPES = """
import sys
from torch import nn
import svertka

layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(), nn.Hardswish(), nn.GELU()
network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5), nn.Softmax(1))
table = str(svertka.summary(network, 16))
print("Softmax" in table, "torch._dynamo" in sys.modules)
"""


def test_shapes_of_a_network_are_computed_without_the_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, timeout=240, check=False)
    assert ran.stdout.strip() == "True False", ran.stderr
