"""Outputs of any layer of any nn.Module, read during a forward pass.

Layers are named as in `svertka.graph.summary`: by the path of their module, or, for functions, by the path of the
calling module and the name of the function, such as "layer1.0.add". Repeated calls get the suffixes ":2", ":3".
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from svertka.errors import UsageError
from svertka.graph.op_recorder import layer_name_of_function
from svertka.graph.summary import Layer, trace
from svertka.inspection.forward_pass import force_eager, prepare_input, run_network, unwrap_compiled
from svertka.type_checking import check_types

LayerHook = Callable[[Tensor], None]
LayerCall = tuple[str, int]

# Kinds of layers, as in `Layer.kind`.
RELU_KINDS = ("ReLU", "relu", "ReLU6", "relu6", "hardtanh")
NORM_KINDS = ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d", "batch_norm")
INFERENCE_NO_OPS = ("Dropout", "Dropout2d", "Identity")


@check_types
def list_layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers of `network` whose outputs can be read, in the order in which they run in inference.

    Args:
        network: any nn.Module.
        shape: of the input, (N, C, H, W); an N of 0 is replaced by 1.

    Returns:
        Layers with `name`, `kind`, output `shape`, receptive `fields` and `inputs`.

    Raises:
        UsageError: the network cannot be traced with such an input.
    """
    network, shape = unwrap_compiled(network), (max(1, shape[0]), *shape[1:]) if shape else shape
    with force_eager():
        return [layer for layer in trace(network, shape).layers if layer.call]


def find_layer(known: Sequence[Layer], name: str) -> Layer:
    """Return the layer of `known` called `name`.

    Raises:
        UsageError: there is none; the message suggests similar names.
    """
    for layer in known:
        if layer.name == name:
            return layer
    names = [layer.name for layer in known]
    inside = [other for other in names if other.startswith(f"{name}.")]  # the name of a module that contains layers
    near = inside[-3:] or get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:3]
    raise UsageError(f"layer={name} is not in the network; " + (f"use {' or '.join(near)}" if near else "it has none"))


def follow_to_relu(known: Sequence[Layer], name: str) -> Layer:
    """Return the layer after which the units of layer `name` are inspected.

    This is the ReLU that follows directly or after batch norm; otherwise the batch norm that follows; otherwise, or if
    several layers read the output, layer `name` itself.

    Raises:
        UsageError: there is no such layer.
    """
    found = layer = find_layer(known, name)
    while layer.kind not in RELU_KINDS:
        readers = [other for other in known if layer.name in other.inputs]
        if len(readers) != 1 or readers[0].kind not in RELU_KINDS + NORM_KINDS + INFERENCE_NO_OPS:
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
        and _has_feature_maps(layer)
        and ("conv" in layer.kind.lower() or _num_positions(layer) != (1, 1))
    ]


def feature_map_size(layer: Layer) -> tuple[int, int]:
    """Return the rows and columns of a layer's feature maps.

    Raises:
        UsageError: the output is not (N, C, H, W) with H and W along the axes of the image.
    """
    if not _has_feature_maps(layer):
        raise UsageError(
            f"layer={layer.name} has outputs of shape {'×'.join(map(str, layer.shape[1:]))}, not feature maps; "
            "use a layer before the global pooling or flattening, such as a convolution"
        )
    return layer.shape[2], layer.shape[3]


def _has_feature_maps(layer: Layer) -> bool:
    positions, sizes = _num_positions(layer), layer.shape[2:]
    # One receptive field for many positions: an operation with unknown dependencies, where each sees the whole image.
    # No receptive field: the output does not depend on the image.
    return len(sizes) == len(positions) == 2 and all(
        known in (1, size) for known, size in zip(positions, sizes, strict=True)
    )


def _num_positions(layer: Layer) -> tuple[int, ...]:
    return tuple(len(field.intervals) for field in layer.fields)


@contextmanager
def hook_layers(network: nn.Module, known: Sequence[Layer], hooks: Mapping[str, LayerHook]) -> Iterator[None]:
    """Call a function with the output of each named layer whenever `network` runs in the body.

    A hook receives the output tensor itself, before a later layer can modify it in place; of several tensors, the
    first. Its return value is ignored, and an exception ends the forward pass. In the body the network is in evaluation
    mode, and nn.MultiheadAttention does not use its fused path, which rounds differently. Afterwards the network is bit
    for bit as before.

    Args:
        network: any nn.Module.
        known: its layers, from `list_layers`.
        hooks: layer name -> function.

    Raises:
        UsageError: there is no such layer; or, in the body, a named layer did not run.
    """
    calls = {name: find_layer(known, name).call for name in hooks}
    hook_of_call = {call: hooks[name] for name, call in calls.items() if call}
    training = {module: module.training for module in network.modules()}
    with ExitStack() as undo:
        for module, was in training.items():
            undo.callback(setattr, module, "training", was)
            module.training = False
        layer_hooks = _LayerHooks(network, hook_of_call)
        for handle in layer_hooks.handles:
            undo.callback(handle.remove)
        undo.enter_context(force_eager())
        undo.enter_context(layer_hooks)
        yield


@check_types
def layer_outputs(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return copies of the outputs of layers. Gradients are recorded if they are enabled at the call.

    Args:
        network: any nn.Module; runs in evaluation mode.
        images: (N, C, H, W) or (C, H, W), as the network takes them.
        names: of the layers, as in `list_layers`.

    Returns:
        Layer name -> output, such as (N, C', H', W').

    Raises:
        UsageError: there is no such layer, or the network cannot be traced with such images.
    """
    network = unwrap_compiled(network)
    images = prepare_input(network, images)
    names = [names] if isinstance(names, str) else names
    found: dict[str, Tensor] = {}

    def copy_to(name: str) -> LayerHook:
        return lambda output: found.update({name: output.clone()})

    with hook_layers(network, list_layers(network, tuple(images.shape)), {name: copy_to(name) for name in names}):
        run_network(network, images)
    return {name: found[name] for name in names}


class _LayerHooks(TorchFunctionMode):
    """Identify calls as `graph.op_recorder` counts them: modules without children, and functions between them."""

    def __init__(self, network: nn.Module, hooks: Mapping[LayerCall, LayerHook]) -> None:
        super().__init__()
        self._network, self._hooks = network, hooks
        # The call stack: paths of modules, then the call of a layer; None for anything inside a layer.
        self._running: list[str | LayerCall | None] = []
        self._counts: Counter[str] = Counter()
        self._missing: set[LayerCall] = set()
        self.handles: list[RemovableHandle] = []
        for path, module in network.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._make_enter_hook(path, module)))
            self.handles.append(module.register_forward_hook(self._leave))

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        parent = self._running[-1] if self._running else None
        call = self._count(layer_name_of_function(function.__name__, parent)) if isinstance(parent, str) else None
        result = function(*args, **(kwargs or {}))
        self._call_hook(call, result)
        return result

    def _make_enter_hook(self, path: str, module: nn.Module) -> Callable[[nn.Module, Any], None]:
        name = path or type(module).__name__
        is_layer = next(module.children(), None) is None

        def enter(_: nn.Module, __: Any) -> None:
            if module is self._network:  # a forward pass begins; the previous one may have ended with an exception
                self._running.clear()
                self._counts.clear()
                self._missing = set(self._hooks)
            if self._running and not isinstance(self._running[-1], str):
                self._running.append(None)
            else:
                self._running.append(self._count(name) if is_layer else path)

        return enter

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        left = self._running.pop()
        self._call_hook(left if isinstance(left, tuple) else None, output)
        if module is self._network and self._missing:
            names = ", ".join(sorted(name for name, _ in self._missing))
            raise UsageError(
                f"layer={names} did not run on these images, although it ran when the network was traced; "
                "use a layer that runs on every input"
            )

    def _count(self, name: str) -> LayerCall:
        self._counts[name] += 1
        return name, self._counts[name]

    def _call_hook(self, call: LayerCall | None, output: Any) -> None:
        if call is None or call not in self._hooks:
            return
        self._missing.discard(call)
        first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if first is not None:
            self._running.append(None)  # operations inside the hook do not count as calls of the network
            self._hooks[call](first)
            self._running.pop()
