"""The graph of a network in a file, from which it loads without the code that built it."""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from svertka.errors import RunError, UsageError
from svertka.escaping import to_printable
from svertka.files import error_reason, write_atomic
from svertka.graph.network_copy import copy_sharing_parameters
from svertka.graph.trace_errors import first_line_of_error

BATCH = 2  # images; torch.export makes sizes of 0 and 1 constant


def write_graph(path: Path, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Export what `network` computes in inference, for batches of any size; the file holds no weights.

    Args:
        path: Path of the file.
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: It cannot be exported.
        StorageError: The file cannot be written.
    """
    twin = copy_sharing_parameters(network)
    if any(tensor.device.type != "cpu" for tensor in twin.state_dict().values()):
        twin = copy.deepcopy(twin).cpu()
    images = torch.zeros(BATCH, *shape[1:])
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            program = torch.export.export(twin, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UsageError(
            f"{type(network).__name__} cannot be exported ({first_line_of_error(error)}); give the function that "
            "builds it, in a file that can be imported, instead of the module"
        ) from error
    # Weights are stored beside it. Tensors outside the state_dict, such as tables of indices, stay in the graph.
    for name in network.state_dict().keys() & program.state_dict.keys():
        tensor = program.state_dict[name]
        empty = torch.empty_like(tensor, device="meta")
        program.state_dict[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    content = io.BytesIO()
    torch.export.save(program, content)
    write_atomic(path, content.getvalue())


def read_graph(path: Path) -> "ExportedNetwork":
    """Return the network of a file of `write_graph`, in inference mode; its state_dict is on the meta device.

    PyTorch unpickles parts of the file: read only files that the caller trusts.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error_reason(error)}); copy it back from the run") from error
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        reason = to_printable(first_line_of_error(error))[:150]
        raise RunError(f"{path} is damaged ({reason}); copy it back from the run") from error
    return ExportedNetwork(module).eval()


class ExportedNetwork(nn.Module):
    """An exported graph as an ordinary module, which can be copied, put in evaluation mode and loaded with weights.

    An exported module refuses eval(), checks the size of its input, which callers do, and saves all its constants.

    Args:
        module: As `ExportedProgram.module` returns it, with a state_dict on the meta device.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        graph = module.graph
        for node in list(graph.nodes):
            if node.op == "call_module" and not node.users:
                graph.erase_node(node)
        packed = graph.output_node().args[0]
        assert isinstance(packed, tuple | list)
        graph.output_node().args = (packed[0],)
        graph.set_codegen(fx.graph.CodeGen())
        plain = fx.GraphModule(module, graph)
        self._modules, self._parameters, self._buffers = plain._modules, plain._parameters, plain._buffers
        self.class_count: int | None = None  # of the scores that are returned; None: all
        self._run: Callable[[nn.Module, Tensor], Tensor] = type(plain).forward
        for part in self.modules():
            for name, buffer in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, buffer, persistent=buffer.is_meta)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class scores (B, K) of images (B, C, H, W)."""
        return self._run(self, images)[:, : self.class_count]


def allocate_state_dict(module: "ExportedNetwork") -> "ExportedNetwork":
    """Return a copy of a network of `read_graph` with memory for its state_dict, which has no values yet."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta:
                part.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                part.register_buffer(name, torch.empty_like(buffer, device="cpu"))
    return twin
