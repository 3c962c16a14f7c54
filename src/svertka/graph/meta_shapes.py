"""Operations on meta tensors, which have a shape and no values; common ones without PyTorch's slow implementations."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ELEMENTWISE = {  # of a tensor of floating-point numbers; the result has its shape and dtype
    "clamp",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "relu",
    "relu6",
}


class FastMetaShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In the body, operations on meta tensors run as in `run_on_meta`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not import its compiler, which takes longer than most traces."""
        return False

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_on_meta(operation, *args, **(kwargs or {}))


def run_on_meta(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the result of an operation on meta tensors.

    Common operations are handled here, because PyTorch implements them in Python for meta tensors, which is slower and
    imports its compiler (a second or two).
    """
    name = operation.overloadpacket.__name__
    inputs: Any = args[0] if args else None
    if name.rstrip("_") in ELEMENTWISE and inputs.is_floating_point() and _have_no_tensor(args[1:], kwargs):
        return inputs if name.endswith("_") else torch.empty_like(inputs)
    if name == "batch_norm" and not args[5] and _are_channels_of(inputs, args[1:5]):
        return torch.empty_like(inputs)
    if name == "linear" and inputs.shape[-1:] == args[1].shape[-1:]:
        return inputs.new_empty((*inputs.shape[:-1], args[1].shape[0]))
    if name == "native_batch_norm" and not args[5]:
        return inputs.new_empty(inputs.shape), inputs.new_empty(0), inputs.new_empty(0)
    return operation(*args, **kwargs)


def _have_no_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return not any(isinstance(leaf, Tensor) for leaf in (*args, *kwargs.values()))


def _are_channels_of(inputs: Tensor, given: Sequence[Tensor | None]) -> bool:
    """Return whether each tensor has one number per channel of `inputs`, (B, C, …)."""
    return inputs.dim() > 1 and all(one is None or one.shape == inputs.shape[1:2] for one in given)
