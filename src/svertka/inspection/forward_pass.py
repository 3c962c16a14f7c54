"""Forward passes of any nn.Module: what is checked before one, and what is said when one fails."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka.device import device_of, has_values
from svertka.errors import SvertkaError, UsageError


class StopForward(Exception):  # noqa: N818 - nothing went wrong
    """Raised by who watches a network when the rest of it need not run."""


def unwrap_compiled(network: nn.Module) -> nn.Module:
    """`network` itself, or the module inside what `torch.compile` made of it, whose layers can be watched.

    Raises:
        UsageError: it is TorchScript.
    """
    network = getattr(network, "_orig_mod", network)
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UsageError("a TorchScript network has no layers that can be watched; give the module it was made from")
    return network


def prepare_input(network: nn.Module, images: Tensor) -> Tensor:
    """`images` as a batch (N, C, H, W) on the device of `network`; floating-point ones in its dtype.

    `images`: (N, C, H, W) or (C, H, W), floating-point or integers.

    Raises:
        UsageError: `images` is no such tensor.
    """
    if not has_values(images):
        raise UsageError("images are a sparse, nested, quantized or meta tensor; give a dense one with values")
    if images.ndim not in (3, 4):
        raise UsageError(f"images of shape {_format_shape(images)} must have four axes: (N, C, H, W)")
    if images.dtype == torch.bool or images.is_complex():
        raise UsageError(f"images of {images.dtype} cannot be looked at; give floating-point numbers or uint8")
    images = images[None] if images.ndim == 3 else images
    dtype = floating_point_dtype(network) if images.is_floating_point() else images.dtype
    return images.to(device_of(network) or images.device, dtype or images.dtype)


def floating_point_dtype(network: nn.Module) -> torch.dtype | None:
    """The dtype in which `network` computes, that of its first floating-point parameter; None if it has none."""
    return next((one.dtype for one in network.parameters() if one.is_floating_point()), None)


def make_differentiable(network: nn.Module, images: Tensor) -> Tensor:
    """`images`, as `network_input` gives them, in floating point, so that gradients with respect to them exist.

    Raises:
        UsageError: they are integers, and the network computes something else from the same numbers in floating point.
    """
    if images.is_floating_point():
        return images
    floating = images.to(floating_point_dtype(network) or torch.float32)
    with torch.no_grad():
        wanted, found = run_network(network, images[:1].clone()), run_network(network, floating[:1].clone())
    if not (isinstance(wanted, Tensor) and isinstance(found, Tensor) and torch.allclose(wanted, found, equal_nan=True)):
        raise UsageError(
            f"{type(network).__name__} treats {images.dtype} otherwise than the same numbers in floating point, so "
            "there is no gradient with respect to them; give the images as floating-point numbers"
        )
    return floating


def run_network(network: nn.Module, images: Tensor) -> Any:
    """What `network` gives for `images`.

    Raises:
        UsageError: it fails. `Enough` and errors of svertka's own pass.
    """
    try:
        return network(images)
    except (StopForward, SvertkaError, MemoryError):
        raise
    except Exception as error:  # a network may raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(
            f"{type(network).__name__} cannot run on images {_format_shape(images)} of {images.dtype}: {reason}"
        ) from error


def run_with_gradients(network: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What `forward` gives: outputs, and a tensor that they are made of with gradients recorded.

    Where the network computes under `torch.no_grad()`, it runs again with that ignored.

    Raises:
        UsageError: gradients are cut off in another way.
    """
    outputs, source = forward()
    if not _depends_on(outputs, source):
        with _IgnoreNoGrad():
            outputs, source = forward()
    if not _depends_on(outputs, source):
        raise UsageError(
            f"{type(network).__name__} cuts off gradients between its input and its scores; remove detach(), "
            "torch.inference_mode() or whatever does so from its forward"
        )
    return outputs, source


@contextmanager
def force_eager() -> Iterator[None]:
    """In the body, what torch.compile has compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing the compiler takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _IgnoreNoGrad(TorchFunctionMode):
    """Ignores torch.no_grad() and torch.set_grad_enabled(False)."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._C._set_grad_enabled:
            return None
        return function(*args, **(kwargs or {}))


def _depends_on(outputs: Tensor, source: Tensor) -> bool:
    """Whether autograd knows how `outputs` are made of `source`."""
    if not (outputs.requires_grad and source.requires_grad):
        return False
    waiting, seen = [outputs.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node is source.grad_fn or getattr(node, "variable", None) is source:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return outputs is source


def _format_shape(images: Tensor) -> str:
    return "×".join(map(str, images.shape)) or "()"
