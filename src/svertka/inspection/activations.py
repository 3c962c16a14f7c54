"""The output of any layer of any nn.Module, while it runs.

Layers have the names of `graph.trace`: a module's path, or that of the module which calls a function and the
function's, "layer1.0.add"; what runs again is ":2", ":3".
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
from svertka.graph.op_recorder import function_name
from svertka.graph.summary import Layer, trace
from svertka.inspection.forward_pass import force_eager, prepare_input, run_network, unwrap_compiled
from svertka.type_checking import check_types

LayerHook = Callable[[Tensor], None]
LayerCall = tuple[str, int]

# Kinds of layers, as `graph.trace` tells them.
RELU_KINDS = ("ReLU", "relu", "ReLU6", "relu6", "hardtanh")
NORM_KINDS = ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d", "batch_norm")
INFERENCE_NO_OPS = ("Dropout", "Dropout2d", "Identity")  # in inference they change nothing


@check_types
def list_layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """The layers of `network` whose output can be watched, in the order in which they run in inference.

    `shape`: of the input, (N, C, H, W); an N of 0 is taken as 1. Of each layer: `name`, `kind`, `shape` of the output,
    `fields`, `inputs`.

    Raises:
        UsageError: it cannot be traced with such an input.
    """
    network, shape = unwrap_compiled(network), (max(1, shape[0]), *shape[1:]) if shape else shape
    with force_eager():
        return [layer for layer in trace(network, shape).layers if layer.call]


def find_layer(known: Sequence[Layer], name: str) -> Layer:
    """The one of `known` that is called `name`.

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    for layer in known:
        if layer.name == name:
            return layer
    names = [layer.name for layer in known]
    inside = [other for other in names if other.startswith(f"{name}.")]  # a module's name; its layers are meant
    near = inside[-3:] or get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:3]
    raise UsageError(f"layer={name} is not in the network; " + (f"use {' or '.join(near)}" if near else "it has none"))


def follow_to_relu(known: Sequence[Layer], name: str) -> Layer:
    """Where the units of layer `name` are looked at: behind its ReLU, where one follows, else behind its batch norm.

    The layer itself where neither follows it directly, or other layers read it too.

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
    """The names of those among `known` that multiply and give maps, whatever their class: not dense, not attention."""
    return [
        layer.name
        for layer in known
        if layer.multiply_adds
        and _has_feature_maps(layer)
        and ("conv" in layer.kind.lower() or _positions(layer) != (1, 1))
    ]


def feature_map_size(layer: Layer) -> tuple[int, int]:
    """The rows and columns of a layer's maps.

    Raises:
        UsageError: its output is not (N, C, H, W), H and W along the axes of the picture.
    """
    if not _has_feature_maps(layer):
        raise UsageError(
            f"layer={layer.name} gives {'×'.join(map(str, layer.shape[1:]))} for a picture, not maps with places; "
            "use a layer before the maps are gathered, such as a convolution"
        )
    return layer.shape[2], layer.shape[3]


def _has_feature_maps(layer: Layer) -> bool:
    positions, places = _positions(layer), layer.shape[2:]
    # One position for many places: behind an operation of which is not known what it sees, so that all see everything.
    # No position: it does not depend on the picture.
    return len(places) == len(positions) == 2 and all(
        seen in (1, there) for seen, there in zip(positions, places, strict=True)
    )


def _positions(layer: Layer) -> tuple[int, ...]:
    return tuple(len(field.intervals) for field in layer.fields)


@contextmanager
def hook_layers(network: nn.Module, known: Sequence[Layer], see: Mapping[str, LayerHook]) -> Iterator[None]:
    """In the body, whenever `network` runs, each layer named in `see` hands its output to that function.

    It is handed the very tensor, before any later layer can write into it; what the function returns is ignored, what
    it raises ends the run. Where a layer gives several tensors, it is the first. The network is in evaluation mode
    meanwhile, and nn.MultiheadAttention off its fused path, which rounds otherwise. Afterwards it is bit for bit as it
    was, however the body ends. `known`: its `layers`.

    Raises:
        UsageError: there is no such layer; in the body: one of them did not run.
    """
    calls = {name: find_layer(known, name).call for name in see}
    wanted = {call: see[name] for name, call in calls.items() if call}
    training = {module: module.training for module in network.modules()}
    with ExitStack() as undo:
        for module, was in training.items():
            undo.callback(setattr, module, "training", was)
            module.training = False
        watch = _LayerHooks(network, wanted)
        for handle in watch.handles:
            undo.callback(handle.remove)
        undo.enter_context(force_eager())
        undo.enter_context(watch)
        yield


@check_types
def layer_outputs(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of the layers `names` for `images` (N, C, H, W): copies, so that nothing writes into them later.

    Gradients are recorded if they are enabled where this is called.

    Raises:
        UsageError: there is no such layer, or the network cannot be traced with such images.
    """
    network = unwrap_compiled(network)
    images = prepare_input(network, images)
    names = [names] if isinstance(names, str) else names
    found: dict[str, Tensor] = {}

    def keep(name: str) -> LayerHook:
        return lambda output: found.update({name: output.clone()})

    with hook_layers(network, list_layers(network, tuple(images.shape)), {name: keep(name) for name in names}):
        run_network(network, images)
    return {name: found[name] for name in names}


class _LayerHooks(TorchFunctionMode):
    """Finds calls again, as `graph.recorder` counts them: modules without others inside, and functions between them."""

    def __init__(self, network: nn.Module, see: Mapping[LayerCall, LayerHook]) -> None:
        super().__init__()
        self._network, self._see = network, see
        # What runs: paths of modules, and in the innermost of them a layer; None for what runs in a layer.
        self._running: list[str | LayerCall | None] = []
        self._calls: Counter[str] = Counter()
        self._unseen: set[LayerCall] = set()
        self.handles: list[RemovableHandle] = []
        for path, module in network.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enterer(path, module)))
            self.handles.append(module.register_forward_hook(self._leave))

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        around = self._running[-1] if self._running else None
        call = self._counted(function_name(function.__name__, around)) if isinstance(around, str) else None
        result = function(*args, **(kwargs or {}))
        self._ran(call, result)
        return result

    def _enterer(self, path: str, module: nn.Module) -> Callable[[nn.Module, Any], None]:
        name = path or type(module).__name__
        is_layer = next(module.children(), None) is None

        def enter(_: nn.Module, __: Any) -> None:
            if module is self._network:  # a run begins, whatever became of the one before
                self._running.clear()
                self._calls.clear()
                self._unseen = set(self._see)
            if self._running and not isinstance(self._running[-1], str):
                self._running.append(None)
            else:
                self._running.append(self._counted(name) if is_layer else path)

        return enter

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        left = self._running.pop()
        self._ran(left if isinstance(left, tuple) else None, output)
        if module is self._network and self._unseen:
            names = ", ".join(sorted(name for name, _ in self._unseen))
            raise UsageError(f"layer={names} does not run with these pictures, though it did when it was traced")

    def _counted(self, name: str) -> LayerCall:
        self._calls[name] += 1
        return name, self._calls[name]

    def _ran(self, call: LayerCall | None, output: Any) -> None:
        if call is None or call not in self._see:
            return
        self._unseen.discard(call)
        first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if first is not None:
            self._running.append(None)  # what the one who watches does with it is no part of the network
            self._see[call](first)
            self._running.pop()
