"""The layer that computes a network's class scores, found in a trace, and a replacement with other classes."""

import re

import torch
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.network_copy import copy_with_meta_tensors
from svertka.graph.summary import Layer, trace
from svertka.graph.trace_errors import first_line_of_error, other_inputs_advice, trace_failure_message

BATCH = 2  # images; with one, a network that confuses batch and classes would pass
PROBABILITIES = ("Softmax", "softmax", "Softmin", "softmin", "Sigmoid", "sigmoid")  # kinds of layers


def count_classes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of class scores that `network` computes for each image; nothing is computed.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network needs other inputs, cannot run on such an input, or returns anything but (N, K) scores.
    """
    name = type(network).__name__
    twin = copy_with_meta_tensors(network, hooks=False)[0]
    if advice := other_inputs_advice(twin):
        raise UsageError(f"{name} {advice}")
    floating = (tensor.dtype for tensor in twin.parameters() if tensor.is_floating_point())
    try:
        with torch.inference_mode(), torch.device("meta"):
            output = twin(torch.empty(BATCH, *shape[1:], dtype=next(floating, None)))
    except (Exception, SystemExit) as error:
        reason = first_line_of_error(error)
        if isinstance(error, TypeError) and "to numpy" in reason:
            raise UsageError(
                f"{name} converts a tensor to NumPy, where it cannot be traced; use PyTorch there"
            ) from error
        if isinstance(error, NotImplementedError | RuntimeError) and "meta" in reason.lower():
            operation = re.search(r"torch\.\w+\(\)", reason) if "register_meta" in reason else None
            raise UsageError(
                f"{name} depends on the values of its input ({operation[0] if operation else reason}), which may "
                "differ for each image; write that part of the network without it, for example with torch.where"
            ) from error
        raise UsageError(trace_failure_message(network, shape, error)) from error
    if not isinstance(output, Tensor):
        returned = "None" if output is None else f"a {type(output).__name__}"
        raise UsageError(
            f"{name} returns {returned}; svertka needs class scores (N, K); wrap it in a module that returns only these"
        )
    if output.dim() != 2 or len(output) != BATCH or not output.is_floating_point() or not output.shape[1]:
        size = "×".join(("N" if side == BATCH and not axis else str(side)) for axis, side in enumerate(output.shape))
        raise UsageError(
            f"{name} returns a tensor of {size or 'a single number'}, {output.dtype}; svertka needs class scores "
            "(N, K), such as those of a linear layer behind global pooling"
        )
    if output.dtype == torch.float64:
        raise UsageError(f"{name} returns float64 scores; svertka needs float32: call float() on them in its forward")
    return output.shape[1]


def find_output_layer(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return the path of the linear layer or 1×1 convolution whose outputs are the class scores; None without one.

    Only layers without parameters and with a single input, such as pooling or an activation function, may follow it.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).

    Raises:
        UsageError: The network cannot be traced, or its outputs are probabilities.
    """
    layers = {layer.name: layer for layer in trace(network, shape).layers}
    modules = dict(network.named_modules())
    layer: Layer | None = next(reversed(layers.values()), None)
    if layer is not None and layer.kind in PROBABILITIES:
        raise UsageError(
            f"{type(network).__name__} returns probabilities, those of its last layer, {layer.name} ({layer.kind}); "
            "svertka needs class scores, and computes their softmax itself: remove that layer"
        )
    while layer is not None:
        path = layer.call[0] if layer.call else layer.name
        if is_linear_or_pointwise(modules.get(path)):
            return path
        layer = layers.get(layer.inputs[0]) if len(layer.inputs) == 1 and not layer.parameters else None
    return None


def is_linear_or_pointwise(module: nn.Module | None) -> bool:
    """Return whether `module` is a linear layer, or a 1×1 convolution with stride 1 and one group."""
    if isinstance(module, nn.Conv2d):
        settings = module.kernel_size, module.stride, module.padding, module.groups
        return settings == ((1, 1), (1, 1), (0, 0), 1)
    return isinstance(module, nn.Linear)


def layer_out_features(layer: nn.Module) -> int:
    """Return the number of outputs of a layer for which `is_linear_or_pointwise` is true."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def resize_output_layer(network: nn.Module, path: str, classes: int) -> nn.Module:
    """Replace the linear layer or 1×1 convolution at `path` with a new one of `classes` outputs; return the network."""
    old = network.get_submodule(path)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, classes, 1, bias=old.bias is not None)
    else:
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    new = new.to(old.weight.device).train(old.training)
    if not path:  # the network is this layer
        return new
    network.set_submodule(path, new)
    return network
