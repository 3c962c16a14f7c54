"""Copies of a network that run in its place, so that the network itself is not changed."""

import copy
import functools
import types
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from svertka.conv.accelerate import restore
from svertka.errors import UsageError


def copy_network(network: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy in the same mode, accelerated if `network` is.

    A tensor that the network has computed and stored, such as cached attention biases, is copied without its autograd
    graph, because copy.deepcopy rejects tensors with one.

    Args:
        network: Any nn.Module.
        copies: Objects to use in the copy, by the id of those that they replace; deepcopy adds all others.

    Raises:
        UsageError: Something in the network cannot be copied.
    """
    memo = {} if copies is None else copies
    for _, tensor in named_tensors(network):
        if not tensor.is_leaf:
            memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{type(network).__name__} cannot be copied ({reason}); remove the attributes that cannot be copied"
        ) from error


def refuse_lazy_layers(network: nn.Module, name: str = "") -> None:
    """Raise UsageError if a parameter or buffer has no shape yet: its layer takes it from the first image that it sees.

    Args:
        network: Any nn.Module.
        name: Name for the message. Empty: that of its class.
    """
    named = chain(network.named_parameters(), network.named_buffers())
    if path := next((path for path, tensor in named if nn.parameter.is_lazy(tensor)), None):
        name = name or type(network).__name__
        raise UsageError(f"{name} has a lazy layer ({path}), which has no weights yet; run it on an image first")


def copy_with_meta_tensors(network: nn.Module, *, hooks: bool = True) -> tuple[nn.Module, list[tuple[str, Tensor]]]:
    """Return a copy in inference mode with meta tensors, and these tensors by their names in `network`.

    Args:
        network: Any nn.Module.
        hooks: Whether the copy keeps the forward hooks.

    Raises:
        UsageError: Something in the network cannot be copied, or it has lazy layers.
    """
    refuse_lazy_layers(network)
    copies = {id(tensor): _without_values(tensor) for _, tensor in named_tensors(network)}
    named = [(name, copies[id(tensor)]) for name, tensor in named_tensors(network)]
    twin = _copy_for_inference(network, copies)
    if not hooks:
        for module in twin.modules():
            module._forward_hooks.clear()
    return twin, named


def copy_sharing_parameters(network: nn.Module) -> nn.Module:
    """Return a copy in inference mode that shares the parameters and has its own buffers.

    Raises:
        UsageError: Something in the network cannot be copied.
    """
    shared = {id(parameter): parameter for parameter in network.parameters()}
    own = {id(tensor): tensor.detach().clone() for _, tensor in named_tensors(network) if id(tensor) not in shared}
    return _copy_for_inference(network, shared | own)


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _copy_for_inference(network: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Return a copy of `network` in inference mode, not accelerated or compiled, with its own hooks."""
    twin = restore(copy_network(network, copies))
    for path, module in list(twin.named_modules()):
        if path and hasattr(module, "_orig_mod"):
            twin.set_submodule(path, module._orig_mod)
    for module in twin.modules():
        module._compiled_call_impl = None
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.update({key: isolate_hook(hook, copies) for key, hook in hooks.items()})
    try:
        return twin.eval()
    except NotImplementedError:  # an exported program is always in inference mode
        return twin


def isolate_hook(hook: Callable[..., Any], copies: dict[int, Any]) -> Callable[..., Any]:
    """Return `hook` with copies of its closure variables and of global lists, dicts and sets, which it may modify."""
    if isinstance(hook, functools.partial):
        return functools.partial(isolate_hook(hook.func, copies), *hook.args, **hook.keywords)
    if not isinstance(hook, types.FunctionType):
        return hook  # an object or its method was copied with the network
    stores = {
        name: _copy_store(hook.__globals__[name], copies)
        for name in hook.__code__.co_names
        if isinstance(hook.__globals__.get(name), list | dict | set)
    }
    cell_of: Callable[[Any], types.CellType] = types.CellType
    cells = tuple(cell_of(_copy_store(cell.cell_contents, copies)) for cell in hook.__closure__ or ())
    copied = types.FunctionType(hook.__code__, hook.__globals__ | stores, hook.__name__, hook.__defaults__, cells)
    copied.__kwdefaults__ = hook.__kwdefaults__
    return copied


def _copy_store(value: Any, copies: dict[int, Any]) -> Any:
    """Return a deep copy of `value`; if that fails, a shallow copy of a container, or `value` itself."""
    try:
        return copy.deepcopy(value, copies)
    except Exception:  # copying an object may raise anything
        return copy.copy(value) if isinstance(value, list | dict | set) else value


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors: parameters, buffers, and tensors in attributes of modules, including lists and dicts."""
    yield from network.named_parameters()
    yield from network.named_buffers()
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _nested(f"{path}.{name}" if path else name, value)


def _nested(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nested(f"{name}.{key}", part)
