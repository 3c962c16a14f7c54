"""Private functions of PyTorch, with public fallbacks for versions that lack them.

A fallback is never wrong, but may be slower, because it chooses PyTorch's own path in case of doubt. No other module of
svertka uses `torch._C`.
"""

import sys
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch: Any = getattr(torch._C, "_functorch", None)


def _optional(owner: Any, name: str) -> Any:
    """Return an attribute of `owner`, or None in versions of PyTorch without it."""
    return getattr(owner, name, None)


_dispatch_mode_count: Callable[[], int] | None = _optional(torch._C, "_len_torch_dispatch_stack")
_has_kernel: Callable[[str, str], bool] | None = _optional(torch._C, "_dispatch_has_kernel_for_dispatch_key")
_active_transform: Callable[[], Any] | None = _optional(_functorch, "peek_interpreter_stack")
_is_wrapped: Callable[[Tensor], bool] | None = _optional(_functorch, "is_functorch_wrapped_tensor")
_is_batched: Callable[[Tensor], bool] | None = _optional(_functorch, "is_batchedtensor")
_is_legacy_batched: Callable[[Tensor], bool] | None = _optional(_functorch, "is_legacy_batchedtensor")


def is_tracing() -> bool:
    """Return whether torch.jit.trace records the call."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def has_dispatch_mode() -> bool:
    """Return whether a TorchDispatchMode, such as a FLOP counter, is active; the fallback says yes."""
    return _dispatch_mode_count is None or _dispatch_mode_count() > 0


def has_active_transform() -> bool:
    """Return whether a transform of torch.func or forward-mode AD is active; the fallback says yes."""
    return _has_forward_ad() or _active_transform is None or _active_transform() is not None


def _has_forward_ad() -> bool:
    level: int | None = _optional(forward_ad, "_current_level")
    return level is None or level >= 0


def is_transform_wrapper(x: Tensor) -> bool:
    """Return whether `x` is the stand-in of a tensor inside a transform of torch.func."""
    return not _has_storage(x) if _is_wrapped is None else _is_wrapped(x)


def is_batched(x: Tensor) -> bool:
    """Return whether `x` is batched by torch.vmap; the fallback includes other tensors without storage."""
    if _is_batched is None or _is_legacy_batched is None:
        return not _has_storage(x)
    return _is_batched(x) or _is_legacy_batched(x)


def _has_storage(x: Tensor) -> bool:
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_module: Any = torch.nn.modules.module
_all_hooks = [_optional(_module, f"_global{name}") for name in _HOOKS]


def has_hooks(module: torch.nn.Module) -> bool:
    """Return whether a hook is called before or after `module` in a pass; the fallback says yes."""
    own = [vars(module).get(name) for name in _HOOKS]
    return any(hooks is None or len(hooks) > 0 for hooks in (*own, *_all_hooks))


def is_composite(operator: str) -> bool:
    """Return whether `operator` ("aten::dropout") is made of other operators; the fallback says yes."""
    return _has_kernel is None or _has_kernel(operator, "CompositeImplicitAutograd")


def is_grad_switch(function: object) -> bool:
    """Return whether `function` is the one that torch.no_grad() and torch.set_grad_enabled() call."""
    return getattr(function, "__name__", None) == "_set_grad_enabled"


def rendezvous_store() -> Any:
    """Return the key-value store of the default process group; the fallback returns None."""
    get = _optional(torch.distributed.distributed_c10d, "_get_default_store")
    return None if get is None else get()


def _compute_shapes_without_compiler() -> int:
    """Let PyTorch's Python functions, which compute shapes on the meta device, run without importing torch.compile.

    At its first call, each would import it to have the function skipped, which takes more than a second.

    Returns:
        The number of functions.
    """
    tables = _optional(_optional(torch, "_decomp"), "global_decomposition_table")
    disable = _optional(torch, "_disable_dynamo")
    if None in (tables, disable):
        return 0
    code, count = disable(lambda: None).__code__, 0
    waiting = [function for table in tables.values() for function in table.values()]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        inside = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        contents = {name: cell.cell_contents for name, cell in inside.items() if _has_contents(cell)}
        if function.__code__ is code and not hasattr(skipped := contents["fn"], _SKIPPED):
            setattr(skipped, _SKIPPED, skipped)
            count += 1
        waiting += contents.values()
    return count


_SKIPPED = "__dynamo_disable"  # what is called in place of a function that torch.compile skips


def _has_contents(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


if "torch._dynamo" not in sys.modules:
    _compute_shapes_without_compiler()
