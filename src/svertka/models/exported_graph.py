"""The graph of a network in a file, from which it loads without the code that built it."""

import io
import warnings
from pathlib import Path

import torch
from torch import fx, nn

from svertka.errors import RunError, UsageError
from svertka.escaping import to_printable
from svertka.files import error_reason, write_atomic
from svertka.graph.network_copy import copy_without_values
from svertka.graph.trace_errors import describe_error

BATCH = 2  # images; torch.export makes sizes of 0 and 1 constant


def write_graph(path: Path, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Export what `network` computes in inference, for batches of any size; the file holds no weights.

    Args:
        path: of the file.
        network: any nn.Module.
        shape: of its input, (1, C, H, W).

    Raises:
        UsageError: it cannot be exported.
        StorageError: the file cannot be written.
    """
    twin = copy_without_values(network, hooks=False)[0]
    images = torch.empty(BATCH, *shape[1:], device="meta")
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(twin, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UsageError(
            f"{type(network).__name__} cannot be exported ({describe_error(error)}); give the function that builds it, "
            "in a file that can be imported, instead of the module"
        ) from error
    content = io.BytesIO()
    torch.export.save(program, content)
    write_atomic(path, content.getvalue())


def read_graph(path: Path) -> nn.Module:
    """Return the network of a file of `write_graph`, on the meta device, in inference mode.

    PyTorch unpickles parts of the file: read only files that the caller trusts.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error_reason(error)}); copy it back from the run") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        reason = to_printable(describe_error(error))[:150]
        raise RunError(f"{path} is damaged ({reason}); copy it back from the run") from error
    return _ordinary_module(module).eval()


def _ordinary_module(module: fx.GraphModule) -> nn.Module:
    """Return an exported module as one that can be copied, put in evaluation mode and loaded with weights.

    An exported module refuses eval(), checks the size of its input, which callers do, and packs its output in a pytree.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:
            graph.erase_node(node)
    output = graph.output_node()
    packed = output.args[0]
    assert isinstance(packed, tuple | list)
    output.args = (packed[0],)
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, graph)
