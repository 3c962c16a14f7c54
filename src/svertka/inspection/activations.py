"""Outputs of any layer of any nn.Module, read during a forward pass.

Layers are named as in `svertka.graph.summary`: by the path of their module, or, for functions, by the path of the
calling module and the name of the function, such as "layer1.0.add". Repeated calls get the suffixes ":2", ":3".
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.graph.layer_calls import LayerCallbacks, LayerCallKey, first_tensor
from svertka.graph.map_layout import MapLayout
from svertka.graph.summary import Layer, trace
from svertka.inspection.checked_forward_pass import call_network, force_eager, prepare_input, unwrap_compiled
from svertka.type_checking import check_types

LayerHook = Callable[[Tensor], None]
LayerKey = tuple[str, int]  # as `LayerCallKey.key`

# Kinds of layers, as in `Layer.kind`; of activation functions, in lower case without underscores.
ACTIVATION_FUNCTIONS = {
    *("relu", "relu6", "hardtanh", "threshold", "leakyrelu", "rrelu", "prelu", "elu", "celu", "selu", "softplus"),
    *("silu", "swish", "swishme", "hardswish", "hardswishme", "mish", "mishme", "hardmish", "hardmishme"),
    *("gelu", "gelutanh", "quickgelu", "tanh", "scaledtanh", "tanhshrink", "hardshrink", "softshrink", "softsign"),
    *("sigmoid", "hardsigmoid", "hardsigmoidme"),
}
NORM_KINDS = ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d", "batch_norm")
INFERENCE_NO_OPS = ("Dropout", "Dropout2d", "Identity", "StochasticDepth", "DropPath", "dropout", "dropout2d")


@check_types
def list_layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers of `network` whose outputs can be read, in the order in which they run in inference.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (N, C, H, W); an N of 0 is replaced by 1.

    Returns:
        Layers with `name`, `kind`, output `shape`, receptive `fields` and `inputs`.

    Raises:
        UsageError: The network cannot be traced with such an input.
    """
    network, shape = unwrap_compiled(network), (max(1, shape[0]), *shape[1:]) if shape else shape
    with force_eager():
        return [layer for layer in trace(network, shape).layers if layer.call]


def find_layer(known: Sequence[Layer], name: str) -> Layer:
    """Return the layer of `known` called `name`.

    Raises:
        UsageError: There is none; the message suggests similar names.
    """
    for layer in known:
        if layer.name == name:
            return layer
    names = [layer.name for layer in known]
    inside = [other for other in names if other.startswith(f"{name}.")]
    if inside:
        raise UsageError(f"layer={name} is a module that contains layers; use one of them: {' or '.join(inside[-3:])}")
    near = get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:3]
    raise UsageError(f"layer={name} is not in the network; " + (f"use {' or '.join(near)}" if near else "it has none"))


def is_activation_function(layer: Layer) -> bool:
    """Return whether `layer` is an elementwise activation function such as ReLU or GELU, a module or a function."""
    return is_activation_kind(layer.kind)


def is_activation_kind(kind: str) -> bool:
    """Return whether a class or function called `kind` is an elementwise activation function."""
    return kind.lower().replace("_", "") in ACTIVATION_FUNCTIONS


def follow_to_activation(known: Sequence[Layer], name: str) -> Layer:
    """Return the layer after which the units of layer `name` are inspected.

    This is the activation function that follows directly or after batch norm; otherwise the batch norm that follows;
    otherwise, or if several layers read the output, layer `name` itself.

    Raises:
        UsageError: There is no such layer.
    """
    found = layer = find_layer(known, name)
    while not is_activation_function(layer):
        readers = [other for other in known if layer.name in other.inputs]
        if len(readers) != 1 or readers[0].shape != layer.shape:
            break
        if not (is_activation_function(readers[0]) or readers[0].kind in NORM_KINDS + INFERENCE_NO_OPS):
            break
        (layer,) = readers
        if layer.kind not in INFERENCE_NO_OPS:
            found = layer
    return found


def convolution_names(known: Sequence[Layer]) -> list[str]:
    """Return the names of the layers that multiply and have feature maps, whatever their class.

    Fully connected and attention layers are not among them.
    """
    return [
        layer.name
        for layer in known
        if layer.multiply_adds
        and layer.maps
        and layer.maps.is_standard
        and ("conv" in layer.kind.lower() or _num_positions(layer) != (1, 1))
    ]


def last_layers_of_stages(known: Sequence[Layer]) -> list[str]:
    """Return the name of the last convolution at each size of feature maps, in the order in which they run."""
    last = {feature_map_size(find_layer(known, name)): name for name in convolution_names(known)}
    return [name for name in convolution_names(known) if name in last.values()]


def feature_map_size(layer: Layer) -> tuple[int, int]:
    """Return the rows and columns of a layer's feature maps.

    Raises:
        UsageError: The output holds no feature maps.
    """
    return feature_map_layout(layer).size


def feature_map_layout(layer: Layer) -> MapLayout:
    """Return how to read a layer's output as feature maps: (N, C, H, W), (N, H, W, C) or tokens (N, L, C).

    Raises:
        UsageError: The output holds no feature maps.
    """
    if layer.maps is None:
        raise UsageError(
            f"layer={layer.name} has outputs of shape {'×'.join(map(str, layer.shape[1:]))}, not feature maps; "
            "use a layer before the global pooling or flattening, such as a convolution"
        )
    return layer.maps


def unit_count(layer: Layer) -> int:
    """Return the number of a layer's units, the channels of its feature maps.

    Raises:
        UsageError: The output holds no feature maps.
    """
    return layer.shape[feature_map_layout(layer).dims[1]]


def _num_positions(layer: Layer) -> tuple[int, ...]:
    return tuple(len(field.intervals) for field in layer.fields)


@contextmanager
def hook_layers(network: nn.Module, known: Sequence[Layer], hooks: Mapping[str, LayerHook]) -> Iterator[None]:
    """Call a function with the output of each named layer whenever `network` runs in the body.

    A hook receives the output tensor itself, before a later layer can modify it in place; if there are several, the
    first one. Its return value is ignored, and an exception ends the forward pass. In the body the network is in
    evaluation mode, and nn.MultiheadAttention does not use its fused path, which rounds differently. Afterwards the
    network is restored bit for bit, without anything that it cached in the body.

    Args:
        network: Any nn.Module.
        known: Layers of the network, from `list_layers`.
        hooks: Maps layer names to functions.

    Raises:
        UsageError: There is no such layer; or, in the body, a named layer did not run.
    """
    calls = {name: find_layer(known, name).call for name in hooks}
    hook_of_call = {call: hooks[name] for name, call in calls.items() if call}
    with ExitStack() as undo:
        for module in network.modules():
            undo.callback(_restore_attributes, module, *_attributes(module))
            module.training = False
        layer_hooks = _LayerHooks(network, hook_of_call)
        undo.callback(layer_hooks.remove_hooks)
        undo.enter_context(force_eager())
        undo.enter_context(layer_hooks)
        yield


Attributes = dict[str, Any]


def _attributes(module: nn.Module) -> tuple[Attributes, Attributes]:
    """Return the attributes of a module, and copies of the lists, dicts and sets among them."""
    attributes = dict(vars(module))
    return attributes, {
        name: copy.copy(value) for name, value in attributes.items() if isinstance(value, list | dict | set)
    }


def _restore_attributes(module: nn.Module, attributes: Attributes, contents: Attributes) -> None:
    """Undo what a forward pass has stored in a module, such as the cached attention biases of LeViT."""
    vars(module).clear()
    vars(module).update(attributes)
    for name, before in contents.items():
        value = attributes[name]
        if isinstance(value, list):
            value[:] = before
        else:
            value.clear()
            value.update(before)


@check_types
def layer_outputs(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return copies of the outputs of layers. Gradients are recorded if they are enabled at the call.

    Args:
        network: Any nn.Module; it runs in evaluation mode.
        images: (N, C, H, W) or (C, H, W) float, as the network takes them.
        names: Names of the layers, as in `list_layers`.

    Returns:
        The output of each layer, such as (N, C', H', W'), by its name.

    Raises:
        UsageError: There is no such layer, or the network cannot be traced with such images.
    """
    network = unwrap_compiled(network)
    images = prepare_input(network, images)
    names = [names] if isinstance(names, str) else names
    found: dict[str, Tensor] = {}

    def copy_to(name: str) -> LayerHook:
        return lambda output: found.update({name: output.clone()})

    with hook_layers(network, list_layers(network, tuple(images.shape)), {name: copy_to(name) for name in names}):
        call_network(network, images)
    return {name: found[name] for name in names}


class _LayerHooks(LayerCallbacks):
    """Calls a hook with the output of each named layer call."""

    def __init__(self, network: nn.Module, hooks: Mapping[LayerKey, LayerHook]) -> None:
        super().__init__(network)
        self._hooks = hooks
        self._missing: set[LayerKey] = set()

    def begin_pass(self) -> None:
        self._missing = set(self._hooks)

    def leave_layer(self, call: LayerCallKey, output: Any) -> Any:
        key, tensor = call.key, first_tensor(output)
        if key and key in self._hooks:
            self._missing.discard(key)
            if tensor is not None:
                self._hooks[key](tensor)
        return output

    def end_pass(self) -> None:
        if self._missing:
            names = ", ".join(sorted(name for name, _ in self._missing))
            raise UsageError(
                f"layer={names} did not run on these images, although it ran when the network was traced; "
                "use a layer that runs on every input"
            )
