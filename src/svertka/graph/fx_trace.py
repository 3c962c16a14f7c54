"""Any nn.Module as a torch.fx graph, with the shape of every value."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.summary import copy_to_meta

SHAPE = "shape"  # of a node's value, in its `meta`: a tuple, or None where the value is no tensor


class LeafModuleTracer(fx.Tracer):
    """Follows what modules do down to those that hold no others; what happens inside of these stays theirs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is a single step."""
        return next(m.children(), None) is None


def trace_to_fx(network: nn.Module, shape: tuple[int, ...]) -> fx.Graph:
    """What `network` does in inference with an input of `shape`, (N, C, H, W): a graph of modules and functions.

    Nodes have their value's shape under SHAPE in their `meta`, and around which modules they run in
    "nn_module_stack". Nothing is computed, and nothing in `network` is touched.

    Raises:
        UsageError: it decides by values what to do, or cannot run on such an input.
    """
    twin = copy_to_meta(network).eval()
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    try:
        graph = LeafModuleTracer().trace(twin)
        module = fx.GraphModule(twin, graph)
        with torch.inference_mode(), torch.device("meta"):
            _Shapes(module).run(torch.empty(shape, dtype=next(floating, None)))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{type(network).__name__} cannot be followed step by step with an input of {'×'.join(map(str, shape))}: "
            f"{reason}; write what depends on values as a module of its own"
        ) from error
    return module.graph


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of what its nodes give."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[SHAPE] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result
