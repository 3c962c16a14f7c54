"""Dataflow of an fx graph: which values share memory, which nodes write in place, and which values are per image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from svertka.errors import UsageError
from svertka.graph.network_copy import copy_with_meta_tensors
from svertka.graph.trace_errors import trace_failure_message

BATCH_SIZES = (2, 3)  # a value is per image if the first axis has these lengths
Kind = Literal["per image", "constant", "other"]
Blocks = frozenset[int]


@dataclass(frozen=True, eq=False)
class Dataflow:
    """What the nodes of a graph read, share and write.

    Attributes:
        blocks: Numbers of the blocks of memory of each node's value.
        layouts: Shape, strides and offset of each node's value; None if it is not a tensor.
        writes: The blocks that each node changes.
        kinds: Whether each node's value can be taken apart by image, or is the same for all images.
        num_bytes: Bytes of each node's value for one image, without views.
    """

    blocks: Mapping[fx.Node, Blocks]
    layouts: Mapping[fx.Node, tuple[Any, ...] | None]
    writes: Mapping[fx.Node, Blocks]
    kinds: Mapping[fx.Node, Kind]
    num_bytes: Mapping[fx.Node, float]

    @cached_property
    def _places(self) -> Mapping[fx.Node, int]:
        return {node: place for place, node in enumerate(self.blocks)}

    @cached_property
    def _last_writes(self) -> Mapping[int, int]:
        return {block: self._places[node] for node, blocks in self.writes.items() for block in blocks}

    def last_write(self, block: int) -> int:
        """Return the place in the graph of the last node that writes into a block; −1 if none does."""
        return self._last_writes.get(block, -1)

    def is_written_after(self, node: fx.Node, moment: fx.Node) -> bool:
        """Return whether a node after `moment` writes into the memory of a node's value."""
        return any(self.last_write(block) > self._places[moment] for block in self.blocks[node])

    @property
    def written(self) -> Mapping[int, frozenset[fx.Node]]:
        """The nodes whose values share each block that any node changes."""
        changed = frozenset[int]().union(*self.writes.values())
        return {block: frozenset(node for node, own in self.blocks.items() if block in own) for block in changed}

    @property
    def shares_only_whole_values(self) -> bool:
        """Whether what shares a block that is changed is always the same tensor, never a part or a view of it."""
        return all(len({self.layouts[node] for node in nodes}) == 1 for nodes in self.written.values())


def trace_dataflow(
    network: nn.Module, graph: fx.Graph, shape: tuple[int, ...], memory_format: torch.memory_format
) -> Dataflow:
    """Return the dataflow of `graph`, found by running it twice on meta tensors.

    Args:
        network: The network that was traced.
        graph: Its graph.
        shape: Shape of the input, (1, C, H, W).
        memory_format: Order of the axes in memory.

    Raises:
        UsageError: The graph cannot run.
    """
    first, second = (_Recorder.record(network, graph, (size, *shape[1:]), memory_format) for size in BATCH_SIZES)
    return Dataflow(
        blocks=first.blocks,
        layouts={
            node: (tuple(value.shape), value.stride(), value.storage_offset()) if isinstance(value, Tensor) else None
            for node, value in first.values.items()
        },
        writes=first.writes,
        kinds={node: _kind(first.values[node], second.values[node], first.of_image[node]) for node in first.values},
        num_bytes=first.new_bytes,
    )


class _Recorder(fx.Interpreter):
    """An interpreter that records memory and writes. It keeps all values, so that blocks are not used again."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self.values: dict[fx.Node, Any] = {}
        self.blocks: dict[fx.Node, Blocks] = {}
        self.writes: dict[fx.Node, Blocks] = {}
        self.of_image: dict[fx.Node, bool] = {}
        self.new_bytes: dict[fx.Node, float] = {}

    @classmethod
    def record(
        cls, network: nn.Module, graph: fx.Graph, shape: tuple[int, ...], memory_format: torch.memory_format
    ) -> "_Recorder":
        """Run the graph on an input of `shape`."""
        root = copy_with_meta_tensors(network, hooks=False)[0]
        if memory_format is torch.channels_last:
            root.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = next((one.dtype for one in root.parameters() if one.is_floating_point()), None)
        recorder = cls(root, graph)
        try:
            with torch.no_grad(), torch.device("meta"):  # inference mode does not count writes
                recorder.run(torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format))
        except Exception as error:  # a network may raise anything
            raise UsageError(trace_failure_message(network, shape, error)) from error
        return recorder

    def run_node(self, n: fx.Node) -> Any:
        inputs = {id(one): one for node in n.all_input_nodes for one in iter_tensors(self.values[node])}
        before = {key: one._version for key, one in inputs.items()}
        result = super().run_node(n)
        self.writes[n] = frozenset(_block(one) for key, one in inputs.items() if one._version != before[key])
        self.values[n] = result
        self.blocks[n] = frozenset(map(_block, iter_tensors(result)))
        is_input = n.op == "placeholder" and isinstance(result, Tensor)
        self.of_image[n] = is_input or any(self.of_image[one] for one in n.all_input_nodes)
        old = {_block(one) for one in inputs.values()}
        new = [one for one in iter_tensors(result) if _block(one) not in old] if n.op != "get_attr" else []
        self.new_bytes[n] = sum(one.numel() * one.element_size() for one in new) / BATCH_SIZES[0]
        return result


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value: itself, or those in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from iter_tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from iter_tensors(one)


def _block(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _kind(first: Any, second: Any, of_image: bool) -> Kind:
    """Return the kind of a value, given for both batch sizes."""
    if isinstance(first, Tensor):
        if not of_image and first.shape == second.shape:
            return "constant"
        lengths = (first.shape[0], second.shape[0]) if first.ndim and second.ndim else ()
        return "per image" if lengths == BATCH_SIZES and first.shape[1:] == second.shape[1:] else "other"
    if type(first) in (list, tuple) and len(first) == len(second):
        kinds = {_kind(one, other, of_image) for one, other in zip(first, second, strict=True)}
        return "other" if "other" in kinds else "per image" if "per image" in kinds else "constant"
    plain = first is None or isinstance(first, bool | int | float | str | torch.Size | torch.dtype | torch.device)
    return "constant" if plain and first == second else "other"


def take_images(value: Any, images: Tensor) -> Any:
    """Return a copy of the values of some images, with the axes in the same order in memory.

    Args:
        value: A value that is per image: a tensor (N, …), or a list or tuple with such.
        images: (n,) int64.
    """
    if isinstance(value, list | tuple):
        return type(value)(take_images(one, images) for one in value)
    if not isinstance(value, Tensor):
        return value
    order = sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True)
    back = [order.index(axis) for axis in range(value.ndim)]
    return value.permute(order).index_select(order.index(0), images).permute(back)
