"""Forward passes of any nn.Module: input checks, gradients, and errors that name the network and its input."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svertka import torch_internals
from svertka.device import is_dense_with_values, network_device
from svertka.errors import SvertkaError, UsageError
from svertka.graph.network_copy import refuse_lazy_layers


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a layer hook to end the forward pass early."""


def unwrap_compiled(network: nn.Module) -> nn.Module:
    """Return the module inside a `torch.compile` wrapper, or `network` itself.

    Raises:
        UsageError: `network` contains TorchScript, whose layers cannot be hooked, or lazy layers.
    """
    network = getattr(network, "_orig_mod", network)
    refuse_lazy_layers(network)
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UsageError("the layers of a TorchScript network cannot be read; give the nn.Module it was made from")
    return network


def prepare_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return `images` as a batch on the network's device; floating-point images in the network's dtype.

    Args:
        network: Any nn.Module.
        images: (N, C, H, W) or (C, H, W), floating point or integer.

    Raises:
        UsageError: `images` has another shape, dtype or layout, or weights of the network have no values.
    """
    if not is_dense_with_values(images):
        raise UsageError("images are a sparse, nested, quantized or meta tensor; give a dense one with values")
    if images.ndim not in (3, 4):
        raise UsageError(f"images of shape {_format_shape(images)} must have four axes: (N, C, H, W)")
    if images.dtype == torch.bool or images.is_complex():
        raise UsageError(f"images of {images.dtype} are not supported; give floating-point numbers or uint8")
    images = images[None] if images.ndim == 3 else images
    if any(parameter.is_meta for parameter in network.parameters()):
        raise UsageError(
            f"{type(network).__name__} has weights on the meta device, which have no values; load pretrained weights "
            "first"
        )
    dtype = floating_point_dtype(network) if images.is_floating_point() else images.dtype
    return images.to(network_device(network) or images.device, dtype or images.dtype)


def floating_point_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter of `network`; None if it has none."""
    return next((one.dtype for one in network.parameters() if one.is_floating_point()), None)


def to_floating_point_images(network: nn.Module, images: Tensor) -> Tensor:
    """Convert prepared `images` to floating point, so that gradients with respect to them exist.

    Raises:
        UsageError: They are integers and the network's output changes with the conversion.
    """
    if images.is_floating_point():
        return images
    converted = images.to(floating_point_dtype(network) or torch.float32)
    with torch.no_grad():
        expected, output = call_network(network, images[:1].clone()), call_network(network, converted[:1].clone())
    if not (
        isinstance(expected, Tensor) and isinstance(output, Tensor) and torch.allclose(expected, output, equal_nan=True)
    ):
        raise UsageError(
            f"{type(network).__name__} gives different outputs for {images.dtype} and for the same numbers in floating "
            "point, so gradients with respect to the images do not exist; give the images as floating-point numbers"
        )
    return converted


def call_network(network: nn.Module, images: Tensor) -> Any:
    """Return `network(images)`.

    Raises:
        UsageError: The network fails. `StopForward`, MemoryError and svertka's own errors pass unchanged.
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


def run_with_gradients_enabled(
    network: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Call `forward` and make sure that gradients flow through the network.

    If the network computes under `torch.no_grad()`, `forward` runs again with that disabled.

    Args:
        network: Named in the error.
        forward: Returns outputs, and a tensor that they are computed from.

    Returns:
        What `forward` returned; the outputs are differentiable with respect to the second tensor.

    Raises:
        UsageError: The network cuts off gradients in another way.
    """
    outputs, source = forward()
    if not _depends_on(outputs, source):
        with _IgnoreNoGrad():
            outputs, source = forward()
    if not _depends_on(outputs, source):
        raise UsageError(
            f"{type(network).__name__} cuts off gradients between its input and its scores; remove detach(), "
            "torch.inference_mode() or similar from its forward"
        )
    return outputs, source


@contextmanager
def force_eager() -> Iterator[None]:
    """Run modules compiled with torch.compile as plain Python in the body."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing the compiler takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _IgnoreNoGrad(TorchFunctionMode):
    """Ignore torch.no_grad() and torch.set_grad_enabled(False)."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch_internals.is_grad_switch(function):
            return None
        return function(*args, **(kwargs or {}))


def _depends_on(outputs: Tensor, source: Tensor) -> bool:
    """Return whether the autograd graph leads from `outputs` to `source`."""
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
