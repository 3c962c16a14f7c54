"""The output of any layer of any nn.Module, while it runs.

Layers have the names of `graph.trace`: a module's path, or that of the module which calls a function and the
function's, "layer1.0.add"; what runs again is ":2", ":3".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from svertka.graph.trace import Layer

See = Callable[[Tensor], None]


def layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """The layers of `network` whose output can be watched, in the order in which they run in inference.

    `shape`: of the input, (N, C, H, W). Of each layer: `name`, `kind`, `shape` of the output, `fields`, `inputs`.

    Raises:
        UsageError: it cannot be traced with such an input.
    """
    raise NotImplementedError


def find(known: Sequence[Layer], name: str) -> Layer:
    """The one of `known` that is called `name`.

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    raise NotImplementedError


def rectified(known: Sequence[Layer], name: str) -> Layer:
    """Where the units of layer `name` are looked at: behind its ReLU, where one follows, else behind its batch norm.

    The layer itself where neither follows it directly, or other layers read it too.

    Raises:
        UsageError: there is no such layer.
    """
    raise NotImplementedError


def convolutions(known: Sequence[Layer]) -> list[str]:
    """The names of the convolutions among `known`: those whose units an atlas shows."""
    raise NotImplementedError


@contextmanager
def watching(network: nn.Module, shape: tuple[int, ...], see: Mapping[str, See]) -> Iterator[None]:
    """In the body, whenever `network` runs, each layer named in `see` hands its output to that function.

    It is handed the very tensor, before any later layer can write into it; what it returns is ignored, what it raises
    ends the run. The network is in evaluation mode meanwhile; afterwards it is bit for bit as it was, however the body
    ends. `shape`: of the input, (N, C, H, W); N may differ. Where a layer gives several tensors, it is the first.

    Raises:
        UsageError: there is no such layer, or the network cannot be traced; in the body: one of them did not run.
    """
    raise NotImplementedError
    yield


def outputs(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of the layers `names` for `images` (N, C, H, W): copies, so that nothing writes into them later.

    Gradients are recorded if they are enabled where this is called.

    Raises:
        UsageError: as `watching`.
    """
    raise NotImplementedError
