"""Views of tensors: how to take a view from its base, and how to write it back after it was modified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# The same numbers in the same order: reshaping the view restores the base.
RESHAPES = {"reshape.default", "_reshape_alias.default", "view_as.default", "reshape_as.default", "ravel.default"}
RESHAPES |= {"flatten.using_ints", "unflatten.int", "unsqueeze.default", "alias.default", "detach.default"}
RESHAPES |= {"squeeze.default", "squeeze.dim", "squeeze.dims"}
# Operations that are their own inverse.
SWAPS = {"transpose.int", "swapaxes.default", "swapdims.default", "t.default", "mT.default", "numpy_T.default"}
SCATTERS = {
    "slice.Tensor": "slice_scatter.default",
    "select.int": "select_scatter.default",
    "diagonal.default": "diagonal_scatter.default",
}
# Operations that return consecutive parts.
PARTS = {"split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections"}
PARTS |= {"tensor_split.indices", "unsafe_split.Tensor", "unsafe_chunk.default"}


@dataclass(frozen=True)
class ViewWithScatter:
    """A view of `base`.

    Attributes:
        base: The tensor viewed.
        taken: Operator and arguments that return the view; the base is the argument "self".
        put_back: Operator and arguments that return the modified base; the base is "self" and the view "src", or, if
            the view covers the whole base, the view is "self".
    """

    base: Tensor
    taken: tuple[str, Mapping[str, Any]]
    put_back: tuple[str, Mapping[str, Any]]

    @property
    def is_whole(self) -> bool:
        """Whether the view covers the whole base."""
        return not self.put_back[0].endswith("_scatter.default")


def make_view_with_scatter(
    base: Tensor, name: str, arguments: Mapping[str, Any], outputs: Sequence[Any], index: int
) -> ViewWithScatter | None:
    """Return how `outputs[index]` of the operator `name` is a view of `base`; None if that is not known."""
    rest = {key: value for key, value in arguments.items() if key != "self"}
    if name in RESHAPES:
        return ViewWithScatter(base, (name, rest), ("reshape.default", {"shape": list(base.shape)}))
    if name in SWAPS:
        return ViewWithScatter(base, (name, rest), (name, rest))
    if name == "permute.default":
        dims = [dim % base.dim() for dim in rest["dims"]]
        return ViewWithScatter(base, (name, rest), (name, {"dims": [dims.index(dim) for dim in range(len(dims))]}))
    if name in PARTS:
        return _part(base, rest.get("dim", 0), outputs, index)
    if name == "narrow.default":
        start = rest["start"] % max(1, base.shape[rest["dim"]])
        return _slice(base, rest["dim"], start, rest["length"])
    if name == "unbind.int":
        name, rest = "select.int", {"dim": rest.get("dim", 0), "index": index}
    if name in SCATTERS:
        return ViewWithScatter(base, (name, rest), (SCATTERS[name], rest))
    return None


def _part(base: Tensor, dim: int, outputs: Sequence[Tensor], index: int) -> ViewWithScatter:
    lengths = [output.shape[dim] for output in outputs]
    return _slice(base, dim, sum(lengths[:index]), lengths[index])


def _slice(base: Tensor, dim: int, start: int, length: int) -> ViewWithScatter:
    settings = {"dim": dim, "start": start, "end": start + length}
    return ViewWithScatter(base, ("slice.Tensor", settings), ("slice_scatter.default", settings))
