"""Errors of networks that cannot be traced, with the same wording for every kind of trace."""

import inspect

from torch import nn

from svertka.errors import UsageError
from svertka.text_width import shorten

THE_NETWORK = "the network itself"
NEW_TENSOR = "make a new tensor there, as torch.where and torch.cat do"


class TraceRunError(UsageError):
    """An error of the network or of PyTorch that was raised during a trace."""


def first_line_of_error(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def error_type_and_first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, if it has one."""
    name, reason = type(error).__name__, first_line_of_error(error)
    return name if reason == name else f"{name}: {shorten(reason, 200, is_prose=True)}"


def trace_failure_message(network: nn.Module, shape: tuple[int, ...], error: BaseException, where: str = "") -> str:
    """Return the message for a network that fails while it is traced.

    Args:
        network: Named in the message.
        shape: Shape of the input.
        error: Raised by the network or by PyTorch.
        where: Name of the running layer or module; "" for the network itself.
    """
    name, size = type(network).__name__, "×".join(map(str, shape))
    said = f"{name} cannot be traced with an input of {size}; {where or THE_NETWORK} says: {first_line_of_error(error)}"
    return f"{said}; it {advice}" if (advice := other_inputs_advice(network)) else said


def other_inputs_advice(network: nn.Module) -> str:
    """Return what to do about a network whose forward needs other inputs than images; "" if it needs none."""
    needed = ", ".join(_other_inputs(network))
    return needed and (
        f"needs inputs other than images ({needed}); wrap it in a module whose forward takes images only"
    )


def _other_inputs(network: nn.Module) -> list[str]:
    """Return the names of the arguments of forward that have no default, apart from the images."""
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one.name for one in parameters if one.kind in positional and one.default is inspect.Parameter.empty]
    keyword = [
        one.name
        for one in parameters
        if one.kind is inspect.Parameter.KEYWORD_ONLY and one.default is inspect.Parameter.empty
    ]
    return needed[1:] + keyword


def value_dependence_error(place: str, operation: str) -> UsageError:
    """Return the error for a decision, size or index that depends on the values of images."""
    return UsageError(
        f"{place} depends on the values of a tensor ({operation}), which may differ for each image; write that part of "
        "the network without it, for example with torch.where"
    )


def unknown_write_error(place: str, operation: str) -> UsageError:
    """Return the error for an operation that writes into a tensor and has no variant that returns a new one."""
    return UsageError(
        f"{place} writes into a tensor ({operation}) in a way that cannot be traced; use an operation that returns a "
        "new tensor"
    )


def written_part_error(place: str) -> UsageError:
    """Return the error for a tensor that is read after the module at `place` has written into an unknown part of it."""
    return UsageError(
        f"{place} writes into a part or another view of a tensor that is read later, which cannot be traced; "
        + NEW_TENSOR
    )


def unknown_tensor_error(place: str) -> UsageError:
    """Return the error for a tensor that no recorded operation has made."""
    return UsageError(
        f"{place} reads a tensor that was made in a way that cannot be traced, such as .data; write it with operations "
        "of PyTorch, or make it a buffer"
    )
