"""Views of tensors: how each is taken of its base, and how the base is made with what was written into the view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# The same numbers in the same order: the base is what is written, in the shape that the base has.
RESHAPES = {"reshape.default", "_reshape_alias.default", "view_as.default", "reshape_as.default", "ravel.default"}
RESHAPES |= {"flatten.using_ints", "unflatten.int", "unsqueeze.default", "alias.default", "detach.default"}
RESHAPES |= {"squeeze.default", "squeeze.dim", "squeeze.dims"}
# Done twice they give what they were given.
SWAPS = {"transpose.int", "swapaxes.default", "swapdims.default", "t.default", "mT.default", "numpy_T.default"}
SCATTERS = {
    "slice.Tensor": "slice_scatter.default",
    "select.int": "select_scatter.default",
    "diagonal.default": "diagonal_scatter.default",
}
# They give several parts that follow one another.
PARTS = {"split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections"}
PARTS |= {"tensor_split.indices", "unsafe_split.Tensor", "unsafe_chunk.default"}


@dataclass(frozen=True)
class View:
    """A view of `base`. Operations have their names and their arguments beside tensors.

    `taken`: what gives the view of its base ("self"). `put_back`: what gives the base with the view ("src") in it; of
    the view alone ("self") where it holds the whole base.
    """

    base: Tensor
    taken: tuple[str, Mapping[str, Any]]
    put_back: tuple[str, Mapping[str, Any]]

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the base is beside the view."""
        return not self.put_back[0].endswith("_scatter.default")


def describe_view(
    base: Tensor, name: str, arguments: Mapping[str, Any], outputs: Sequence[Any], index: int
) -> View | None:
    """How `outputs[index]`, which the operation `name` gave of `base`, lies in it; None where that is not known."""
    rest = {key: value for key, value in arguments.items() if key != "self"}
    if name in RESHAPES:
        return View(base, (name, rest), ("reshape.default", {"shape": list(base.shape)}))
    if name in SWAPS:
        return View(base, (name, rest), (name, rest))
    if name == "permute.default":
        dims = [dim % base.dim() for dim in rest["dims"]]
        return View(base, (name, rest), (name, {"dims": [dims.index(dim) for dim in range(len(dims))]}))
    if name in PARTS:
        return _part(base, rest.get("dim", 0), outputs, index)
    if name == "narrow.default":
        start = rest["start"] % max(1, base.shape[rest["dim"]])
        return _slice(base, rest["dim"], start, rest["length"])
    if name == "unbind.int":
        name, rest = "select.int", {"dim": rest.get("dim", 0), "index": index}
    if name in SCATTERS:
        return View(base, (name, rest), (SCATTERS[name], rest))
    return None


def _part(base: Tensor, dim: int, outputs: Sequence[Tensor], index: int) -> View:
    lengths = [output.shape[dim] for output in outputs]
    return _slice(base, dim, sum(lengths[:index]), lengths[index])


def _slice(base: Tensor, dim: int, start: int, length: int) -> View:
    settings = {"dim": dim, "start": start, "end": start + length}
    return View(base, ("slice.Tensor", settings), ("slice_scatter.default", settings))
