"""A torch.fx trace of a network with the shape of every value."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.meta_shapes import FastMetaShapes
from svertka.graph.network_copy import copy_with_meta_tensors
from svertka.graph.trace_errors import trace_failure_message

SHAPE = "shape"  # key in a node's `meta`: the shape of its value, None if not a tensor


class LeafModuleTracer(fx.Tracer):
    """An fx tracer that treats modules without children, and attention, which branches, as single operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether `m` has no children, or is PyTorch's attention."""
        return next(m.children(), None) is None or isinstance(m, nn.MultiheadAttention)


def trace_to_fx(network: nn.Module, shape: tuple[int, ...]) -> fx.Graph:
    """Return the graph of the modules and functions that `network` calls in inference.

    Each node's `meta` contains the shape of its value under SHAPE, and the enclosing modules under "nn_module_stack".
    Nothing is computed and `network` is not changed.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (N, C, H, W).

    Raises:
        UsageError: The network makes decisions based on values, or cannot run on such an input.
    """
    twin = copy_with_meta_tensors(network, hooks=False)[0]
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    try:
        graph = LeafModuleTracer().trace(twin)
        module = fx.GraphModule(twin, graph)
        with torch.inference_mode(), torch.device("meta"), FastMetaShapes():
            _Shapes(module).run(torch.empty(shape, dtype=next(floating, None)))
    except Exception as error:
        raise UsageError(
            f"{trace_failure_message(network, shape, error)}; move what depends on values into a leaf module"
        ) from error
    return module.graph


class _Shapes(fx.Interpreter):
    """An interpreter that stores the shapes of a graph's values."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[SHAPE] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result
