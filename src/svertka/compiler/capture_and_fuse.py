"""The fused steps of a network, captured from its operations."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from svertka.compiler.accuracy_check import suggest_after_failed_capture
from svertka.compiler.capture_at_several_batch_sizes import DynamicBatchCapturer, SameGraphChecker
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.compiler.ir import CapturedGraph
from svertka.errors import UsageError
from svertka.graph.network_copy import copy_sharing_parameters
from svertka.graph.trace_errors import TraceRunError


def capture_and_fuse(network: nn.Module, example: Tensor) -> tuple[FusedNetwork, SameGraphChecker]:
    """Return the steps of `network` for images of the shape of `example`, and a check of batch sizes.

    Raises:
        UsageError: The network cannot be captured; the message names the module.
    """
    try:
        recording, repeats = _capture(network, tuple(example.shape))
    except TraceRunError as reason:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            raise UsageError(
                f"{reason}{suggest_after_failed_capture(copy_sharing_parameters(network), example)}"
            ) from reason
    return fuse(recording), repeats


@contextlib.contextmanager
def explain_constants(network: nn.Module) -> Iterator[None]:
    """Turn errors of operations on constants into UsageErrors."""
    try:
        yield
    except (RuntimeError, MemoryError) as reason:
        raise UsageError(f"{type(network).__name__} cannot be optimized: {' '.join(str(reason).split())}") from reason


def _capture(network: nn.Module, shape: tuple[int, ...]) -> tuple[CapturedGraph, SameGraphChecker]:
    """Return the captured graph and a check of batch sizes; without hooks, if only these depend on values."""
    try:
        recording = (followed := DynamicBatchCapturer(network, shape[1:])).capture(shape[0])
    except UsageError:
        if not any(module._forward_hooks for module in network.modules()):
            raise
        recording = (followed := DynamicBatchCapturer(network, shape[1:], hooks=False)).capture(shape[0])
    return recording, followed.make_same_graph_checker(recording)  # the accuracy check detects effects of hooks
