"""Weights that stay packed from one call in inference to the next, while they are found to be the same.

With one picture at once, 4 to 15 % of a deep layer's time (256 and 512 channels at 14×14, 512 at 7×7) goes into putting
its weights in the order in which the kernels read them; of all of resnet18's, 2 % with two threads and 7 % with one.

That they are the same as before is told by the memory they lie in and by PyTorch's count of the writes into it. That
count misses writes through `.data` or a NumPy array over the same memory, so some of the numbers are looked at as well:
one in each 4 KiB. **A write of that kind which changes none of these, a few numbers set by hand, is not seen.** Where
nothing is counted (inference tensors) or other processes write (shared memory), nothing is kept.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from svertka.conv import native, native_winograd
from svertka.geometry import ConvShape

LEAST = 1 << 17  # numbers: with fewer, no gain was measured
TILES = 32  # of 4×4 results: with more, as on 28×28, no gain was measured
PAGE = 1024  # numbers


@dataclass
class Kept:
    """What is known of a parameter; `packed`: from the first time on that it was found the same again."""

    state: tuple[object, ...]
    sample: Tensor
    packed: Tensor | None = None


# By the parameter's memory, which takes the packed weights with it when it goes. Not by the parameter: one that
# something refers to weakly cannot be exchanged by torch.utils.swap_tensors.
_kept: WeakKeyDictionary[torch.UntypedStorage, Kept] = WeakKeyDictionary()


def packed(weight: Tensor, shape: ConvShape) -> Tensor | None:
    """`native_winograd.pack(weight)`, kept, or None: to keep it does not pay or is not safe, or it was not so before.

    For calls that nobody will derive. The packed weights take as much memory again as the weights.
    """
    if not isinstance(weight, torch.nn.Parameter) or weight.numel() < LEAST or not _has_few_tiles(shape):
        return None
    is_shared: bool = weight.is_shared()  # type: ignore[no-untyped-call]
    if weight.is_inference() or is_shared or not _is_dense(weight):
        return None
    state = weight._version, weight.data_ptr(), weight.shape, weight.stride(), native.used()
    sample = weight.detach().as_strided((-(-weight.numel() // PAGE),), (PAGE,))
    known = _kept.get(weight.untyped_storage())
    if known is None or known.state != state or not torch.equal(known.sample, sample):
        _kept[weight.untyped_storage()] = Kept(state, sample.clone())
        return None
    if known.packed is None:
        known.packed = native_winograd.pack(weight)
    return known.packed


def _has_few_tiles(shape: ConvShape) -> bool:
    return shape.batch * -(-shape.out_height // 4) * -(-shape.out_width // 4) <= TILES


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
