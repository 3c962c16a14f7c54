"""Projections of many units by compiled backward passes, one for each layer."""

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from svertka.compiler.optimize import Optimized
from svertka.conv import native_support
from svertka.data.dataset import Ints
from svertka.errors import UsageError
from svertka.graph.summary import Layer
from svertka.inspection.activations import hook_layers
from svertka.inspection.checked_forward_pass import StopForward, call_network, force_eager
from svertka.inspection.deconvolution.backward_graph import BackwardGraph
from svertka.inspection.deconvolution.compiled_backward_pass import CompiledBackwardPass, compile_backward_pass
from svertka.inspection.deconvolution.max_pool_switches import MaxPoolSwitches


class CompiledDeconvnet:
    """Projects units of a network's layers, in float32 on the CPU.

    Compiled are the layer of the last call and the one before; of earlier layers, what these share with them.

    Args:
        network: Any nn.Module.
        shape: Shape of the input, (1, C, H, W).
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self._network, self._shape = network, shape
        self._forget()

    def _forget(self) -> None:
        self._state = self._read_state()
        self._graph: BackwardGraph | None = None
        self._switches: MaxPoolSwitches | None = None
        self._passes: dict[str, CompiledBackwardPass | None] = {}
        self._compiled: dict[object, Optimized] = {}
        self._recent: list[str] = []

    def _read_state(self) -> list[tuple[int, int]]:
        """Return what changes if a tensor of the network is replaced or written."""
        tensors = [*self._network.parameters(), *self._network.buffers()]
        return [(id(one), 0 if one.is_inference() else one._version) for one in tensors]

    def supports(self, layer: Layer, images: Tensor) -> bool:
        """Return whether units of this layer and images of this dtype and device can be projected."""
        if native_support.why_not() or images.dtype != torch.float32 or not images.is_cpu:
            return False
        if self._state != self._read_state():
            self._forget()
        if layer.name not in self._passes:
            self._passes[layer.name] = self._compile(layer)
        return self._passes[layer.name] is not None

    def project(
        self, images: Tensor, layer: Layer, units: Ints, positions: Ints, image_indices: Ints
    ) -> Iterator[tuple[Tensor, int, int]]:
        """Yield the pixels (C, h, w) of each projection and their first row and column in the image.

        Args:
            images: (B, C, H, W) float32.
            layer: A layer that is supported.
            units: (N,) channels.
            positions: (N, 2) rows and columns in the feature map.
            image_indices: (N,) indices in `images`.
        """
        compiled = self._passes[layer.name]
        assert compiled is not None
        assert self._switches is not None
        kept, known = self._switches, dict[int, list[Tensor]]()

        def switches(image: int, pool: int) -> Tensor:
            if image not in known:
                known[image] = kept.of(images[image])
            return known[image][pool]

        height, width = images.shape[2:]
        for values, starts in compiled.project(units, positions, image_indices, switches):
            for pixels, (top, left) in zip(values, starts.tolist(), strict=True):
                first_row, first_column = max(0, -top), max(0, -left)
                yield (
                    pixels[:, first_row : height - top, first_column : width - left],
                    top + first_row,
                    left + first_column,
                )
        self._forget_others(layer.name)

    def _compile(self, layer: Layer) -> CompiledBackwardPass | None:
        if self._graph is None:
            with suppress(UsageError), force_eager():
                self._graph = BackwardGraph(self._network, self._shape)
        if self._graph is None:
            return None
        pools = [pool for pool in self._graph.pools if pool is not None]
        cone = self._graph.cone(layer) if len(pools) == len(self._graph.pools) else None
        self._switches = self._switches or MaxPoolSwitches(self._run, pools)
        return None if cone is None else compile_backward_pass(cone, self._compiled)

    def _run(self, images: Tensor) -> None:
        with suppress(StopForward), hook_layers(self._network, [], {}):
            call_network(self._network, images.clone(memory_format=torch.channels_last))

    def _forget_others(self, layer: str) -> None:
        """Keep the compiled stages of `layer` and of the layer before only."""
        self._recent = [*[one for one in self._recent if one != layer][-1:], layer]
        passes = [self._passes[one] for one in self._recent]
        used = set().union(*(one.used for one in passes if one))
        for key in self._compiled.keys() - used:
            del self._compiled[key]
