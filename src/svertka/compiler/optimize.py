"""A network for inference on the CPU: folded, fused, its weights packed once, its memory planned."""

import dataclasses
import threading
from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from svertka.compiler import reference, serialize
from svertka.compiler.accuracy_check import measure_error, suggest_fix
from svertka.compiler.capture import CaptureRunError
from svertka.compiler.dynamic_batch import CAPTURED_BATCH_SIZES, BatchSizeCheck, DynamicBatchCapture
from svertka.compiler.executor import ExecutionPlan
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.compiler.input_conversion import is_traced, to_plain_images
from svertka.compiler.ir import CapturedGraph, FusedConvolution
from svertka.compiler.network_copy import copy_for_comparison, unwrap_network
from svertka.compiler.packing import DTYPES, PackedWeights, convert_weights, is_dense, separate_shared_weights
from svertka.compiler.serialize import OptimizedInfo
from svertka.conv import native
from svertka.errors import UsageError
from svertka.files import given_path

MIN_NUM_IMAGES = 64  # pictures that are worth the second that it takes
MAX_PLANS = 8  # for as many numbers of pictures memory is kept
CHECKED_BATCH_SIZES = 1, 3, 2  # batch sizes that are compared beside the example's, until there are three
SAVED_BATCH_SIZES = 0, 1, 7, 16, 33, 100, 256, 1000  # batch sizes that are followed before a network is saved for any


def optimize(
    network: nn.Module, example: Tensor, *, precision: str = "fp32", dense: str | None = None, strict: bool = False
) -> "Optimized":
    """A module that returns what `network` returns in inference, on the CPU, as fast as it goes here.

    Any nn.Module of float32 whose steps do not depend on the values that it is given. Batch norm is folded; bias, sums
    and rectification are computed with the convolution before them; weights are packed once; maps are channels-last and
    share one piece of memory. What `network` has now is taken over: later changes to it have no effect, and it stays as
    it is. Images are only read, even where the network works in place. Hooks are part of it; what they write down is
    lost. An optimized network is returned as it is.

    Only rounding differs, and that is checked on `example` and two other batch sizes: in each channel by no more than
    1e-3 of its largest value, or, in a network that lets rounding grow, by no more than five times what PyTorch's own
    float32 is off from float64. With bfloat16 in it, the error may be a tenth of the values (root mean square of both),
    and where the output is (N, K), class scores, the largest of them must be the same one for 99 % of the example's
    images, hence for all of them if there are fewer than 100.

    Convolutions of 3×3 and 5×5 are computed by tiles (Winograd): a NaN, an infinite or a huge value, more than about
    1e5 times as large as its neighbours, spoils the digits of whole tiles, that is up to 3 pixels (of 5×5 up to 6)
    further than where PyTorch does; and where values of a layer are above 1e30, its results may overflow to inf or NaN,
    since tiles are sums of values. `Optimized.winograd_layers` names these layers; `strict` avoids such algorithms.

    `example`: (N, C, H, W) float32, pictures such as there will be: of this size, and where the network allows it, in
    any number.
    `precision`: "fp32", or "bf16": weights are stored in bfloat16, half the bytes to read, and where the processor
    multiplies bfloat16, products are of such numbers, too; sums and all that lies between layers stay float32.
    `dense`: the same for dense layers alone, if other than `precision`; one picture at a time, they take as long as it
    takes to read their weights.
    `strict`: only algorithms whose result at each position depends on the values that its window sees.

    Raises:
        UsageError: the network cannot be followed, with the place, or what comes out is not what it gives, or a
            precision is none of the two.
    """
    dense = precision if dense is None else dense
    for one in (precision, dense):
        if not isinstance(one, str) or one not in DTYPES:
            raise UsageError(f"there is no precision {one!r}; use one of {', '.join(DTYPES)}")
    if not isinstance(strict, bool):
        raise UsageError(f"strict={strict!r} must be True or False")
    network = unwrap_network(network)
    example = to_plain_images(example)
    _need_images(example)
    info = OptimizedInfo(tuple(example.shape), precision, dense, strict=strict)
    if isinstance(network, Optimized):
        return network.reuse_for(info)
    try:
        recording, repeats = _recorded(network, info.example)
    except CaptureRunError as reason:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            raise UsageError(f"{reason}{suggest_fix(copy_for_comparison(network), example)}") from reason
    try:
        steps = separate_shared_weights(fuse(recording))
        optimized = Optimized(convert_weights(steps, precision, dense), info, repeats)
    except (RuntimeError, MemoryError) as reason:  # of PyTorch's operations on what depends on no image
        raise UsageError(f"{type(network).__name__} cannot be optimized: {' '.join(str(reason).split())}") from reason
    sizes = optimized.select_check_sizes(len(example))
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        error = measure_error(
            optimized, copy_for_comparison(network), example, sizes, bf16="bf16" in (precision, dense)
        )
    optimized.info = dataclasses.replace(info, error=error)
    return optimized


def _recorded(network: nn.Module, shape: tuple[int, ...]) -> tuple[CapturedGraph, BatchSizeCheck]:
    """What `network` does, and whether for other batch sizes, too; without hooks, if only these look at values."""
    try:
        recording = (followed := DynamicBatchCapture(network, shape[1:])).recording(shape[0])
    except UsageError:
        if not any(module._forward_hooks for module in network.modules()):
            raise
        recording = (followed := DynamicBatchCapture(network, shape[1:], hooks=False)).recording(shape[0])
    return recording, followed.repeats(recording)  # whether hooks changed anything, the check tells


def _need_images(example: Tensor) -> None:
    try:
        good = 0 not in example.shape and bool(example.isfinite().all())
    except RuntimeError as error:
        raise UsageError(f"the example, {tuple(example.shape)}, needs more memory than there is") from error
    if not good:
        raise UsageError(
            f"the example, {tuple(example.shape)}, has no images or numbers that are not finite; use images such as "
            "there will be"
        )


def optimize_if_worthwhile(network: nn.Module, shape: tuple[int, ...], pictures: int) -> nn.Module:
    """`network`, or the same optimized, if so many `pictures` of `shape`, (C, H, W), pay for that; for inference alone.

    `network` itself where it does not compute float32 on the CPU, where there are no kernels, and where it cannot be
    followed.
    """
    tensors = [*network.parameters(), *network.buffers()]
    here = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.int64) for one in tensors)
    if pictures < MIN_NUM_IMAGES or isinstance(network, Optimized) or native.why_not() or not here:
        return network
    try:
        return optimize(network, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    except UsageError:
        return network


class Optimized(nn.Module):
    """What `optimize` gives. It has no parameters, cannot learn, and stays on the CPU, whatever it is moved to.

    Several threads may call it at once. `info`: the example's shape, the settings, and the error on the example. In
    torch.compile it is called as it is; exported, traced with torch.jit or transformed with torch.func, it is PyTorch's
    own operations with the folded weights.
    """

    def __init__(self, steps: FusedNetwork, info: OptimizedInfo, repeats: BatchSizeCheck | None = None) -> None:
        super().__init__()
        self.info = info
        weights = {step.weight: step for step in steps.steps if isinstance(step, FusedConvolution)}
        self._packed: Mapping[str, PackedWeights] = {}
        if not native.why_not():
            self._packed = {
                name: PackedWeights.of(step, steps.tensors[name], dense=is_dense(steps, step), strict=info.strict)
                for name, step in weights.items()
            }
        # Copies, since the network may go on learning; not of inference mode, whoever optimizes.
        with torch.inference_mode(False), torch.no_grad():
            tensors = {name: one.clone() for name, one in steps.tensors.items() if name not in self._packed}
        self._steps = dataclasses.replace(steps, tensors=tensors)
        self._repeats = repeats
        self._same = {*CAPTURED_BATCH_SIZES, info.example[0]}  # batch sizes that were recorded
        self._plans: dict[int, ExecutionPlan] = {}
        self._lock = threading.Lock()
        self.eval()

    @property
    def error(self) -> float:
        """The largest difference to the original on the example, over the largest value."""
        return self.info.error

    @property
    def winograd_layers(self) -> tuple[str, ...]:
        """The modules that are computed by tiles: what is not finite spreads further there; see `optimize`."""
        steps = (
            step for step in self._steps.steps if isinstance(step, FusedConvolution) and step.weight in self._packed
        )
        return tuple(step.place for step in steps if self._packed[step.weight].kernel == "winograd")

    def reuse_for(self, info: OptimizedInfo) -> Self:
        """Itself, if it was made with the same settings for images of the same size.

        Raises:
            UsageError: it was not.
        """
        settings = [(one.example[1:], one.precision, one.dense, one.strict) for one in (info, self.info)]
        if settings[0] != settings[1]:
            raise UsageError(
                "this network is optimized already, for another size or with other settings; optimize the network that "
                "it was made from"
            )
        return self

    def select_check_sizes(self, pictures: int) -> set[int]:
        """`pictures` and up to two other batch sizes that it can be run with."""
        if self._steps.pictures is not None:
            return {pictures}
        others = [size for size in CHECKED_BATCH_SIZES if size != pictures]
        return {pictures, *[size for size in others if self._does(size)][:2]}

    def forward(self, x: Tensor) -> Any:
        """What the network returns for `x`, (N, C, H, W) float32; without gradients.

        Raises:
            UsageError: `x` is not such as the example was, or the network does something else for so many pictures.
        """
        if torch.compiler.is_exporting():
            return self._traced(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Any:
        if is_traced(x):
            return self._traced(x)
        x = to_plain_images(x)
        self._need_size(x)
        # Memory that is used again and again must not be of inference mode, whoever calls first.
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                if not self._packed or len(x) == 0:
                    return reference.run_reference(self._steps, self._weight, x)
                return self._plan(len(x)).run(x.contiguous(memory_format=torch.channels_last))
        except (RuntimeError, ValueError, MemoryError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"this network cannot run on {len(x)} pictures: {reason}") from error

    _run._torchdynamo_disable = True  # type: ignore[attr-defined]  # what torch.compiler.disable sets, without its import

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to one file, which `load` reads on any machine.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
            UsageError: no system has such a path, or it has an operation or an output that `load` does not read, or
                does something else for some numbers of pictures, which a file cannot tell.
        """
        whole = {name: packed.unpacked() for name, packed in self._packed.items()}
        steps = dataclasses.replace(self._steps, tensors={**self._steps.tensors, **whole})
        serialize.write_network(given_path(path), steps, self._info_for_saving())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The network in a file that `save` wrote. No code is in it: steps of few kinds, and their tensors.

        Raises:
            RunError: the file is missing, damaged, or something else.
        """
        return cls(*serialize.read_network(given_path(path)))

    def __getstate__(self) -> dict[str, Any]:
        alone = {"info": self._info_for_saving(), "_plans": {}, "_repeats": None, "_lock": None}
        return {**self.__dict__, **alone}  # plans hold addresses

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__ |= {**self.__dict__, "_plans": {}, "_lock": threading.Lock()}
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # nothing in it changes but what was just made anew

    def _need_size(self, x: Tensor) -> None:
        if x.shape[1:] != self.info.example[1:]:
            sizes = ["×".join(map(str, shape[1:])) for shape in (x.shape, self.info.example)]
            raise UsageError(
                f"the pictures are {sizes[0]} and this network was optimized for {sizes[1]}; optimize it with an "
                "example of this size"
            )
        wanted = self._steps.pictures
        if len(x) < self.info.least or not (self._does(len(x)) if wanted is None else len(x) == wanted):
            made = "does something else" if wanted is None else f"was optimized for {wanted} at a time"
            raise UsageError(
                f"the batch has {len(x)} pictures, and this network {made}; optimize it with an example of {len(x)} "
                "pictures"
            )

    def _does(self, pictures: int) -> bool:
        """Whether the network does for so many what was recorded.

        Raises:
            UsageError: it cannot run on so many.
        """
        return self._repeats is None or pictures in self._same or self._repeats(pictures)

    def _traced(self, x: Tensor) -> Any:
        """The same with PyTorch's own operations, for those who write down or transform what is computed."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.info.example[1:]:
            raise UsageError(
                f"an optimized network is traced with (N, {', '.join(map(str, self.info.example[1:]))}) float32"
            )
        with torch.no_grad():
            return reference.run_reference(self._steps, self._weight, x)

    def _weight(self, name: str) -> Tensor:
        """The weights of that name, (O, C / groups, kh, kw)."""
        return self._packed[name].unpacked() if name in self._packed else self._steps.tensors[name]

    def _plan(self, pictures: int) -> ExecutionPlan:
        with self._lock:
            plan = self._plans.get(pictures)
        if plan is None:
            plan = ExecutionPlan(self._steps, self._packed, pictures)
            with self._lock:
                while len(self._plans) >= MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[pictures] = plan
        return plan

    def _info_for_saving(self) -> OptimizedInfo:
        """What is known of it, for one that cannot follow the original.

        Raises:
            UsageError: the original does something else for some larger batches.
        """
        if self._repeats is None or self._steps.pictures is not None:
            return self.info
        others = [size for size in SAVED_BATCH_SIZES if not self._runs(size)]
        if max(others, default=0) > 1:
            raise UsageError(
                f"this network does something else for {max(others)} pictures than for {self.info.example[0]}, which "
                "a file or pickle cannot tell; keep the network itself and optimize it where it runs"
            )
        return dataclasses.replace(self.info, least=max(others, default=-1) + 1)

    def _runs(self, pictures: int) -> bool:
        try:
            return self._does(pictures)
        except UsageError:
            return False
