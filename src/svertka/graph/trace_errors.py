"""The error of a network that cannot be traced: one wording, whichever tracer follows it."""

from torch import nn

THE_NETWORK = "the network itself"


def describe_error(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def cannot_be_traced(network: nn.Module, shape: tuple[int, ...], error: Exception, where: str = "") -> str:
    """Return the message for a network that fails while it is traced.

    Args:
        network: named in the message.
        shape: of the input.
        error: raised by the network or by PyTorch.
        where: name of the layer or module that runs; "" if it is the network itself.
    """
    size = "×".join(map(str, shape))
    return f"{type(network).__name__} cannot be traced with an input of {size}; {where or THE_NETWORK} says: " + (
        describe_error(error)
    )
