"""Models made of networks that are not in the registry: modules, functions that build one, and names of builders."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv.accelerate import restore
from svertka.data.band_ranges import MAX_BANDS
from svertka.data.preprocessing import Preprocess
from svertka.errors import SvertkaError, UsageError
from svertka.graph.network_copy import copy_network, copy_with_meta_tensors, named_tensors, refuse_lazy_layers
from svertka.graph.output_layer import (
    count_classes,
    find_output_layer,
    is_linear_or_pointwise,
    layer_out_features,
    resize_output_layer,
)
from svertka.graph.trace_errors import error_type_and_first_line, first_line_of_error
from svertka.models import timm_and_torchvision
from svertka.models.external_builder import (
    GRAPH,
    BuilderRecord,
    absolute_target,
    fingerprint_source_code,
    import_function,
    import_target_and_arguments,
    isolate_builder,
    require_consent,
)
from svertka.models.graph_file import allocate_state_dict, read_graph
from svertka.models.registry import MODELS, Model, describe_model, find_model, trace_model
from svertka.progress import say
from svertka.tensor_files import describe_nonfinite
from svertka.text_width import shorten
from svertka.type_checking import check_types

# Of the input, pixels; the first that a network runs on is taken.
SIZES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 299, 384, 512)
PROBED_CLASSES = 3  # asked of a function, to see whether it gives as many

Function = Callable[..., nn.Module]


def open_model(model: str | nn.Module | Function, *, head_layer: str | None = None, sizes: Sequence[int] = ()) -> Model:
    """Return the model that the caller of svertka names, whose code is imported without asking.

    Args:
        model: The name of a network of the registry; "timm:NAME", "torchvision:NAME", "package.module:function" or
            "file.py:function"; a function from the number of classes to a network; or a network.
        head_layer: Path of the layer that computes the class scores. None: found in a trace.
        sizes: Sizes of the input to try before SIZES, pixels.

    Raises:
        UsageError: There is no such network; it cannot be imported or built; or it does not compute class scores from
            images.
    """
    if isinstance(model, str) and ":" not in model:
        if head_layer is not None:
            raise UsageError(
                f"head_layer={head_layer} is only for networks from other packages, and {model} is one of svertka's"
            )
        return find_model(model)
    if isinstance(model, str):
        return _of_builder(BuilderRecord(target=absolute_target(model), head_layer=head_layer), sizes)
    if isinstance(model, nn.Module):
        return _of_module(unwrap_network(model), head_layer, sizes)
    described = import_target_and_arguments(model)
    target, arguments = described or (GRAPH, {})
    builder = BuilderRecord(target=target, arguments=arguments, head_layer=head_layer)
    name = getattr(model, "__name__", type(model).__name__) if described is None else _short_name(target)
    return _of_function(model, builder, name, sizes)


@check_types
def list_models(name: str | nn.Module | None = None) -> list[dict[str, Any]]:
    """List the networks with their size, source and reported errors, as `svertka models --json` prints them.

    Args:
        name: One network, to list only that one with its layers: its name, also "timm:NAME", "torchvision:NAME",
            "package.module:function" or "file.py:function", or an nn.Module; None: all networks of svertka.

    Returns:
        One dict per network, as `describe_model` returns it; with `name`, also `layers`, one dict per layer.

    Raises:
        UsageError: There is no network called `name`, or it cannot be traced.
    """
    if name is None:
        return [describe_model(model) for model in MODELS.values()]
    model = open_model(name)
    layers = [layer.to_dict() for layer in trace_model(model).layers]
    return [describe_model(model) | {"layers": layers}]


def open_model_of_run(
    builder: BuilderRecord, folder: Path, *, trust_builder: bool, size: int, channels: int, classes: int
) -> Model:
    """Return the model of a run in `folder`, if its builder needs no consent or is trusted.

    Args:
        builder: The builder in config.json.
        folder: Folder of the run.
        trust_builder: Whether code that config.json names may run.
        size, channels, classes: Those of the run.

    Raises:
        UsageError: Consent is needed, or the builder cannot be imported.
        RunError: The exported graph is missing or damaged.
    """
    require_consent(builder, str(folder), trust_builder=trust_builder)
    if builder.is_graph:
        template = read_graph(folder / GRAPH)

        def rebuild(count: int) -> nn.Module:
            network = allocate_state_dict(template)
            network.class_count = count  # without the classes that only patches show
            return network

        facts = _Facts("exported graph", size, channels, classes, builder.head_layer, None)
        return replace(_model(facts, builder, _Build(rebuild, None, None), has_own_weights=True), is_exported=True)
    model = _of_builder(builder.model_copy(update={"fingerprint": None}), (size,))
    assert model.reference is not None
    now = model.reference.fingerprint
    is_changed = builder.fingerprint not in (None, now)
    if is_changed:
        say(f"{builder.target} or a layer that it uses has changed since {folder} was trained; its scores may differ")
    return replace(model, reference=builder, is_builder_changed=is_changed)


@dataclass(frozen=True)
class _Facts:
    """What is found out about a network: its name, input, number of classes and head, and its published input."""

    name: str
    size: int
    channels: int
    classes: int
    head_layer: str | None
    preprocess: Preprocess | None


@dataclass(frozen=True, eq=False)
class _Build:
    """A model's `builder`: (classes, channels, size) → the network; on the meta device from a template.

    Attributes:
        function: Number of classes → network, with any number of classes if it has its own.
        head_layer: The layer that is replaced if there are other classes. None: no layer can be.
        own_classes: The number of classes of a network that has its own. None: the function heeds the number.
        adapt: (size, channels) → the function for such images. None: any size.
    """

    function: Function
    head_layer: str | None
    own_classes: int | None
    adapt: Callable[[int, int], Function] | None = None
    templates: dict[tuple[int, int, int], nn.Module] = field(default_factory=dict)

    def __call__(self, classes: int, channels: int, size: int) -> nn.Module:
        if torch.get_default_device().type != "meta":
            return self._build(classes, channels, size)
        key = classes, channels, size
        if key not in self.templates:
            # Functions of others read values, as of drop rates, which meta tensors do not have.
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                self.templates[key] = copy_with_meta_tensors(self._build(*key), hooks=False)[0]
        return copy.deepcopy(self.templates[key])

    def _build(self, classes: int, channels: int, size: int) -> nn.Module:
        network = (self.function if self.adapt is None else self.adapt(size, channels))(classes)
        own_classes = self.own_classes
        if own_classes is None and self._ignores_classes(network):
            own_classes = PROBED_CLASSES
        if own_classes in (None, classes):
            return network
        if self.head_layer is None:
            raise UsageError(
                f"{type(network).__name__} computes scores for {self.own_classes} classes, without a linear layer or "
                f"1×1 convolution at its end that could be replaced for {classes}; name the layer with "
                "--head-layer (in Python head_layer=), or give a function of the number of classes"
            )
        return resize_output_layer(network, self.head_layer, classes)

    def _ignores_classes(self, network: nn.Module) -> bool:
        """Return whether the head has as many outputs as were probed, whatever number of classes was asked for."""
        head = None if self.head_layer is None else dict(network.named_modules()).get(self.head_layer)
        return head is not None and is_linear_or_pointwise(head) and layer_out_features(head) == PROBED_CLASSES


def _model(
    facts: _Facts, builder: BuilderRecord, build: _Build, *, has_own_weights: bool, draws_weights: bool = False
) -> Model:
    return Model(
        name=facts.name,
        builder=build,
        channels=facts.channels,
        size=facts.size,
        resize=facts.size if facts.preprocess is None else facts.preprocess.resize,
        classes=facts.classes,
        min_size=1,
        source=builder.target,
        reference=builder.model_copy(update={"head_layer": facts.head_layer}),
        preprocess=facts.preprocess,
        has_own_weights=has_own_weights,
        draws_weights=draws_weights,
    )


def _of_builder(builder: BuilderRecord, sizes: Sequence[int]) -> Model:
    """Import the builder and return its model."""
    package = builder.package
    if package is None:
        return _of_function(import_function(builder.target), builder, _short_name(builder.target), sizes)
    name = builder.target.partition(":")[2]
    native = timm_and_torchvision.published_preprocess(package, name)
    function = timm_and_torchvision.get_network_builder(package, name)

    def adapt(size: int, channels: int) -> Function:
        arguments = timm_and_torchvision.builder_arguments(
            package, name, None if size == native.size else size, channels
        )
        return lambda classes: _call(function, classes, builder.target, arguments)

    classes = 1000
    build = _Build(function, None, None, adapt)
    with torch.device("meta"):
        template = build(classes, native.channels, native.size)
    facts = _probe(template, builder.target, builder.head_layer, (native.size,), native)
    build = replace(build, head_layer=facts.head_layer)
    return _model(facts, builder, build, has_own_weights=False, draws_weights=_has_batch_norm(template))


def _of_function(function: Function, builder: BuilderRecord, name: str, sizes: Sequence[int]) -> Model:
    arguments = {} if builder.is_graph else builder.arguments
    with torch.random.fork_rng(devices=[]):
        network = _call(function, PROBED_CLASSES, name, arguments)
    probed = [weakref.ref(tensor) for _, tensor in named_tensors(network)]

    def call(classes: int) -> nn.Module:
        built = _call(function, classes, name, arguments)
        known = {id(reference()) for reference in probed}
        # Some functions return a module of the caller, or put a head on one, with which two runs would share weights.
        return copy_network(built) if any(id(tensor) in known for _, tensor in named_tensors(built)) else built

    facts = _probe(network, name, builder.head_layer, sizes)
    draws_weights = _has_batch_norm(network) and _differs(network, call)
    if not builder.is_graph:
        builder = builder.model_copy(update={"fingerprint": fingerprint_source_code(function, network)})
    own_classes = None if facts.classes == PROBED_CLASSES else facts.classes
    build = _Build(call, facts.head_layer, own_classes)
    return _model(facts, builder, build, has_own_weights=True, draws_weights=draws_weights)


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def _differs(network: nn.Module, build: Function) -> bool:
    """Return whether `build` builds a network with other weights of the first layer than those of `network`."""
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        other = build(PROBED_CLASSES)
    first, second = (next((one for one in some.parameters() if one.dim() > 1), None) for some in (network, other))
    return first is not None and second is not None and not torch.equal(first.cpu(), second.cpu())


def unwrap_network(network: nn.Module) -> nn.Module:
    """Return `network` without the wrappers of torch.compile and of data parallelism.

    Raises:
        UsageError: It is a TorchScript module, or its class does not call the __init__ of nn.Module.
    """
    name = type(network).__name__
    if "_modules" not in vars(network):
        raise UsageError(f"{name} is not initialized: its __init__ does not call super().__init__(); add that call")
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    if isinstance(network, torch.jit.ScriptModule):
        raise UsageError(f"{name} is a TorchScript module, which cannot be traced; give the module that it was made of")
    return network


def _of_module(network: nn.Module, head_layer: str | None, sizes: Sequence[int]) -> Model:
    facts = _probe(network, type(network).__name__, head_layer, sizes)
    _refuse_unset_values(network, facts.name)

    def copied(_: int) -> nn.Module:
        try:
            return restore(copy.deepcopy(network)).train()
        except Exception as error:
            raise UsageError(
                f"{facts.name} cannot be copied ({first_line_of_error(error)}); remove the attributes that "
                "cannot be copied"
            ) from error

    return _model(
        facts, BuilderRecord(target=GRAPH), _Build(copied, facts.head_layer, facts.classes), has_own_weights=True
    )


def _call(function: Function, classes: int, name: str, arguments: Mapping[str, object]) -> nn.Module:
    """Return the network that `function` builds.

    Raises:
        UsageError: It fails, or returns something else.
    """
    try:
        with isolate_builder():
            network: object = function(classes, **arguments)
    except SvertkaError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"model={name} fails for {classes} classes ({error_type_and_first_line(error)}); it must take the number "
            "of classes and return a network"
        ) from error
    if not isinstance(network, nn.Module):
        returned = "None" if network is None else f"an object of type {type(network).__name__}"
        raise UsageError(f"model={name} returns {returned}; it must take the number of classes and return a network")
    return unwrap_network(network)


def _refuse_unset_values(network: nn.Module, name: str) -> None:
    """Raise UsageError if the weights of `network` have no values, or values that are not finite."""
    tensors = {path: one for path, one in network.state_dict().items() if isinstance(one, Tensor)}
    unset = next((path for path, tensor in tensors.items() if tensor.is_meta), None)
    if unset is not None:
        raise UsageError(f"{name} has weights on the meta device ({unset}), which have no values; load them first")
    if bad := describe_nonfinite(tensors):
        raise UsageError(f"{name} has weights that are NaN or infinite (in {bad}); load or initialize them again")


def _probe(
    network: nn.Module,
    name: str,
    head_layer: str | None,
    sizes: Sequence[int],
    preprocess: Preprocess | None = None,
) -> _Facts:
    """Return what is found out about `network` from traces.

    Args:
        network: Any nn.Module.
        name: Name for messages.
        head_layer: Path of its head. None: found.
        sizes: Sizes to try first, pixels.
        preprocess: Published preprocessing. None: that in the network's `pretrained_cfg`, if any.
    """
    _refuse_unusual_parameters(network, name)
    published = preprocess or timm_and_torchvision.timm_preprocess(getattr(network, "pretrained_cfg", None))
    tried = dict.fromkeys((*sizes, *(() if published is None else (published.size,)), *SIZES))
    errors: list[UsageError] = []
    for channels, size in product(_possible_channels(network, name), tried):
        shape = 1, channels, size, size
        try:
            classes = count_classes(network, shape)
        except UsageError as error:
            errors.append(error)
            continue
        found = find_output_layer(network, shape)
        if head_layer is None:
            head_layer = found
        elif not is_linear_or_pointwise(dict(network.named_modules()).get(head_layer)):
            linear = [path for path, module in network.named_modules() if is_linear_or_pointwise(module)]
            raise UsageError(
                f"head_layer={shorten(head_layer)} is not a linear layer or 1×1 convolution of {name}; it has "
                f"{', '.join(linear[-5:]) or 'none'}"
            )
        if published is not None and published.channels != channels:
            published = None
        return _Facts(name, size, channels, classes, head_layer, published)
    reasons = {first_line_of_error(error.__cause__ or error) for error in errors}
    if sizes or len(reasons) < len(errors):  # errors that name their size are about the size
        raise errors[0]
    raise UsageError(f"{errors[0]}; none of the sizes {', '.join(map(str, SIZES))} fits: give the size of its images")


def _refuse_unusual_parameters(network: nn.Module, name: str) -> None:
    refuse_lazy_layers(network, name)
    for path, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(f"{name} has {kind} parameters ({path}); svertka needs float32: call its float()")


def _possible_channels(network: nn.Module, name: str) -> tuple[int, ...]:
    """Return the numbers of channels that images of `network` may have, by its first convolution, likely ones first."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    count = 3 if first is None else first.in_channels
    if count > MAX_BANDS and count % 3:
        raise UsageError(f"{name} takes images of {count} channels; svertka's have up to {MAX_BANDS}")
    # A convolution of 12 channels may read RGB whose pixels were moved to channels, or images of 12 bands.
    return tuple(dict.fromkeys([*([] if count % 3 else [3]), *([count] if count <= MAX_BANDS else [])]))


def _short_name(target: str) -> str:
    """Return the name of a builder without the folder of its file."""
    path, _, function = target.rpartition(":")
    return f"{Path(path).name}:{function}"
