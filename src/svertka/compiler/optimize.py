"""Optimization of a network for inference on the CPU, by fusion, packed weights and planned memory."""

import dataclasses
import math
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from svertka.compiler import reference, serialize
from svertka.compiler.accuracy_check import check_int8_error, measure_error, suggest_capture_fix
from svertka.compiler.activation_ranges import observe_activations
from svertka.compiler.calibration_batches import MIN_IMAGES, CalibrationBatches
from svertka.compiler.capture_at_several_batch_sizes import CAPTURED_BATCH_SIZES, BatchSizeCheck, DynamicBatchCapturer
from svertka.compiler.executor import ExecutionPlan
from svertka.compiler.fusion import FusedNetwork, fuse
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import CapturedGraph, FusedConvolution
from svertka.compiler.packing import (
    DTYPES,
    PackedWeights,
    convert_weight_precision,
    is_linear_layer,
    separate_shared_weights,
)
from svertka.compiler.quantization import quantize_network, unfuse_gates
from svertka.compiler.serialize import OptimizedInfo
from svertka.compiler.validation import is_traced, to_plain_images, unwrap_network
from svertka.conv import native_support
from svertka.errors import UsageError
from svertka.files import parse_path
from svertka.graph.network_copy import copy_for_comparison
from svertka.graph.trace_errors import TraceRunError
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import format_count
from svertka.progress import show_spinner

MIN_NUM_IMAGES = 64  # fewer images do not justify the second that optimizing takes
MAX_PLANS = 8  # batch sizes for which memory is kept
CHECKED_BATCH_SIZES = 1, 3, 2  # compared besides the example's, until there are three
SAVED_BATCH_SIZES = 0, 1, 7, 16, 33, 100, 256, 1000  # checked before a network is saved for any batch size


def optimize(
    network: nn.Module,
    example: Tensor | Sequence[int],
    *,
    precision: str = "fp32",
    dense: str | None = None,
    strict: bool = False,
    calibration: Tensor | Iterable[Any] | None = None,
) -> "Optimized":
    """Return a module that computes what `network` computes in inference, faster, on the CPU.

    Any float32 nn.Module works whose operations do not depend on the values of images. Batch norm is folded; bias,
    residual connections and ReLU are computed by the convolution before them; weights are packed once; feature maps are
    channels-last and share memory. The result has the weights that `network` has now; `network` itself is not changed.
    Input images are only read, even where the network works in place. Forward hooks are included, but what they store
    is lost. An optimized network is returned unchanged.

    Only rounding differs. It is checked on `example` and two other batch sizes: in each channel the difference is at
    most 1e-3 of the largest value, or, in a network that amplifies rounding, five times the difference of PyTorch's own
    float32 from float64. With bfloat16, the root mean square error is at most 10 % of that of the values. If the output
    is (N, K), class scores, 99 % of the example's images must keep their class.

    With "int8", the network is quantized after training. Convolutions and dense layers multiply 8-bit weights, one
    scale for each output channel, with 8-bit feature maps, one scale and zero point for each map; sums are exact
    integers. Pools, concatenations, residual connections and activation functions between them read and write 8-bit
    maps. The range of each map is that with the least mean square error on the calibration images, and biases are
    corrected for the mean error of the weights. The root mean square error on up to 32 of the calibration images is at
    most 25 % of the values, and in each output channel (of 16 numbers or more) 50 % of its standard deviation; 80 % of
    these images keep their class. On `example`, unless it is a shape, the error is at most 25 % of the values, too; a
    larger one means that the calibration images are preprocessed otherwise. Evaluate the result on more images.

    Convolutions of 3×3 and 5×5 use Winograd tiles. A NaN, an infinity, or a value about 1e5 times as large as its
    neighbors affects up to 3 pixels more than in PyTorch (5×5: up to 6). If values of a layer exceed 1e30, its results
    may overflow, because tiles are sums of values. `Optimized.winograd_layers` names these layers; `strict` avoids
    Winograd.

    Args:
        network: Any nn.Module with float32 parameters on the CPU.
        example: Typical images, (N, C, H, W) float32; or a shape, (C, H, W) or (N, C, H, W), for which random images
            are drawn from a normal distribution. The result takes images of this size, in batches of any size if the
            network allows it.
        precision: "fp32", "bf16" or "int8". With "bf16", weights are stored in bfloat16, and multiplied in bfloat16
            where the CPU supports it; sums and feature maps stay float32.
        dense: The precision of dense layers. None: `precision`. For single images, reading their weights takes most of
            their time.
        strict: Whether to use only algorithms whose result at each position depends only on its receptive field.
        calibration: For "int8", a hundred or more typical images, (N, C, H, W) float32, or an iterable of batches such
            as a DataLoader. They are read once, and only their statistics are kept.

    Returns:
        The optimized network.

    Raises:
        UsageError: The network cannot be captured (the message names the module), the results differ too much, or an
            option is invalid.

    Source:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", arXiv 1712.05877, sections 2.1 to 2.4.
    """
    dense = precision if dense is None else dense
    for one in (precision, dense):
        if not isinstance(one, str) or one not in DTYPES:
            raise UsageError(f"there is no precision {one!r}; use one of {', '.join(DTYPES)}")
    if "int8" in (precision, dense) and calibration is None:
        option = "precision" if precision == "int8" else "dense"
        raise UsageError(f"{option}='int8' needs calibration=, some hundred typical images, (N, C, H, W) float32")
    if "int8" not in (precision, dense) and calibration is not None:
        raise UsageError("calibration= is read only with precision='int8' or dense='int8'; leave it out")
    if not isinstance(strict, bool):
        raise UsageError(f"strict={strict!r} must be True or False")
    network = unwrap_network(network)
    is_drawn = isinstance(example, tuple | list)
    example = to_plain_images(_draw_images(example) if isinstance(example, tuple | list) else example)
    _check_example(example)
    info = OptimizedInfo(tuple(example.shape), precision, dense, strict=strict)
    if isinstance(network, Optimized):
        return network._reuse_for(info)
    try:
        recording, repeats = _capture(network, info.example)
    except TraceRunError as reason:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            raise UsageError(f"{reason}{suggest_capture_fix(copy_for_comparison(network), example)}") from reason
    try:
        steps = separate_shared_weights(fuse(recording))
        if calibration is not None:
            calibration = CalibrationBatches(calibration, info.example[1:], steps.batch_size)
            steps = _quantize(steps, info, calibration)
            _warn_about_calibration(type(network).__name__, steps, calibration)
            if not steps.quantizations:
                precision, dense = ("fp32" if one == "int8" else one for one in (precision, dense))
                info, calibration = dataclasses.replace(info, precision=precision, dense=dense), None
        optimized = Optimized(convert_weight_precision(steps, precision, dense), info, repeats)
    except (RuntimeError, MemoryError) as reason:  # from operations on constants
        raise UsageError(f"{type(network).__name__} cannot be optimized: {' '.join(str(reason).split())}") from reason
    checked = example if calibration is None else calibration.kept[: steps.batch_size]
    sizes = optimized._select_check_sizes(len(checked))
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        error = measure_error(optimized, copy_for_comparison(network), checked, sizes, {precision, dense})
        if calibration is not None and not is_drawn:
            check_int8_error(optimized, copy_for_comparison(network), example, (calibration.low, calibration.high))
    optimized.info = dataclasses.replace(info, error=error)
    return optimized


def _warn_about_calibration(name: str, quantized: FusedNetwork, calibration: CalibrationBatches) -> None:
    """Warn the caller of `optimize` of few calibration images and of a network, called `name`, without int8 layers."""
    if calibration.count < MIN_IMAGES:
        warnings.warn(calibration.describe_count(), stacklevel=3)
    if not quantized.quantizations:
        warnings.warn(
            f"{name} has no layer that int8 supports, so its feature maps stay float32; use precision='fp32'",
            stacklevel=3,
        )


def _quantize(steps: FusedNetwork, info: OptimizedInfo, calibration: CalibrationBatches) -> FusedNetwork:
    """Return the network with its int8 layers, whose ranges are those on the calibration images."""
    steps = unfuse_gates(steps)
    layers = {
        step.result
        for step in steps.steps
        if isinstance(step, FusedConvolution)
        and (info.dense if is_linear_layer(steps, step) else info.precision) == "int8"
    }
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return quantize_network(steps, observe_activations(steps, calibration), layers)


def _capture(network: nn.Module, shape: tuple[int, ...]) -> tuple[CapturedGraph, BatchSizeCheck]:
    """Return the captured graph and a check of batch sizes; without hooks, if only these depend on values."""
    try:
        recording = (followed := DynamicBatchCapturer(network, shape[1:])).capture(shape[0])
    except UsageError:
        if not any(module._forward_hooks for module in network.modules()):
            raise
        recording = (followed := DynamicBatchCapturer(network, shape[1:], hooks=False)).capture(shape[0])
    return recording, followed.make_batch_size_check(recording)  # the accuracy check detects effects of hooks


def _draw_images(shape: Sequence[int]) -> Tensor:
    """Return images of `shape`, (C, H, W) or (N, C, H, W), from a normal distribution.

    Raises:
        UsageError: It is no such shape.
    """
    if len(shape) not in (3, 4) or not all(type(side) is int and side > 0 for side in shape):
        raise UsageError(f"example={shape!r} is not a shape; give (C, H, W), such as (3, 224, 224), or images")
    try:
        return torch.randn((1, *shape)[-4:], generator=torch.Generator().manual_seed(0))
    except (RuntimeError, MemoryError) as error:
        raise UsageError(f"example={shape!r} needs more memory than this machine has; give a smaller shape") from error


def _check_example(example: Tensor) -> None:
    try:
        good = 0 not in example.shape and bool(example.isfinite().all())
    except RuntimeError as error:
        raise UsageError(f"the example, {tuple(example.shape)}, needs more memory than this machine has") from error
    if not good:
        raise UsageError(
            f"the example, {tuple(example.shape)}, has no images, or values that are not finite; use typical images"
        )


@show_spinner("optimizing the network")
def optimize_if_worthwhile(network: nn.Module, shape: tuple[int, ...], num_images: int) -> nn.Module:
    """Return `network` optimized if `num_images` images of `shape`, (C, H, W), justify it, otherwise `network`.

    `network` itself is returned if it is not float32 on the CPU, if there are no kernels, or if it cannot be captured.
    """
    tensors = [*network.parameters(), *network.buffers()]
    here = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.int64) for one in tensors)
    if num_images < MIN_NUM_IMAGES or isinstance(network, Optimized) or native_support.why_not() or not here:
        return network
    try:
        return optimize(network, shape)
    except UsageError:
        return network


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of `x`, in which PyTorch also returns maps; contiguous if `x` has both or neither."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


@dataclasses.dataclass(frozen=True)
class OptimizedLayer:
    """A convolution or a dense layer of an optimized network.

    Attributes:
        name: Path of the module in the original network.
        kernel: How it is computed: "winograd", "direct", "depthwise", "grouped", "int8", "int8-depthwise", or "torch"
            without kernels.
        shape: Shape of its weights, (O, C / groups, kh, kw).
        precision: Precision of the stored weights, "fp32", "bf16" or "int8".
    """

    name: str
    kernel: str
    shape: tuple[int, ...]
    precision: str


class Optimized(nn.Module):
    """A network made by `optimize`, for inference on the CPU. It has no parameters and cannot be trained.

    It may be called from several threads at once. torch.compile does not compile it, but calls it. torch.export,
    torch.jit and torch.func see PyTorch's operations with the folded weights.

    Args:
        steps: The fused operations and their weights.
        info: As below.
        repeats: Returns whether the original network computes the same graph for a batch size. None: it always does.

    Attributes:
        info: The example's shape, the settings, and the error on the example.
    """

    def __init__(self, steps: FusedNetwork, info: OptimizedInfo, repeats: BatchSizeCheck | None = None) -> None:
        super().__init__()
        self.info = info
        weights = {step.weight: step for step in steps.steps if isinstance(step, FusedConvolution)}
        self._packed: Mapping[str, PackedWeights | PackedInt8Weights] = {}
        if not native_support.why_not():
            self._packed = {
                name: PackedInt8Weights.of(step, steps.tensors[name])
                if step.weight_scale is not None
                else PackedWeights.of(step, steps.tensors[name], dense=is_linear_layer(steps, step), strict=info.strict)
                for name, step in weights.items()
            }
        # Copies, because the network may be trained further; never inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            tensors = {name: one.clone() for name, one in steps.tensors.items() if name not in self._packed}
        self._steps = dataclasses.replace(steps, tensors=tensors)
        self._repeats = repeats
        self._same = {*CAPTURED_BATCH_SIZES, info.example[0]}  # batch sizes that were captured
        self._plans: dict[int, ExecutionPlan] = {}
        self._lock = threading.Lock()
        self.eval()

    @property
    def error(self) -> float:
        """The largest difference from the original on the example, relative to the largest value."""
        return self.info.error

    @property
    def layers(self) -> tuple[OptimizedLayer, ...]:
        """The convolutions and dense layers, in the order in which they run."""
        return tuple(self._describe_layer(step) for step in self._steps.steps if isinstance(step, FusedConvolution))

    @property
    def winograd_layers(self) -> tuple[str, ...]:
        """Paths of the modules computed by Winograd tiles, in which non-finite values spread; see `optimize`."""
        return tuple(layer.name for layer in self.layers if layer.kernel == "winograd")

    @property
    def sentence(self) -> str:
        """Summary, "21 layers for 3×224×224 images, fp32; largest error 2e-06"."""
        size = "×".join(map(str, self.info.example[1:]))
        dense = "" if self.info.dense == self.info.precision else f", dense layers {self.info.dense}"
        error = f"; largest error {self.error:.1g}" if math.isfinite(self.error) else ""
        return f"{format_count(len(self.layers), 'layer')} for {size} images, {self.info.precision}{dense}{error}"

    def __repr__(self) -> str:
        return f"Optimized({self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(one.name, "×".join(map(str, one.shape)), one.kernel, one.precision) for one in self.layers]
        header = ("layer", "weights", "kernel", "precision")
        return NotebookBlock("Optimized network", (self.sentence,), header=header, rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, the error and the layers as JSON values."""
        return {
            "example": list(self.info.example),
            "precision": self.info.precision,
            "dense": self.info.dense,
            "strict": self.info.strict,
            "error": self.error if math.isfinite(self.error) else None,
            "layers": [{**vars(one), "shape": list(one.shape)} for one in self.layers],
        }

    def _reuse_for(self, info: OptimizedInfo) -> Self:
        """Return the network itself if it was made with these settings for images of this size.

        Args:
            info: The shape of the images and the settings.

        Raises:
            UsageError: It was made with others.
        """
        settings = [(one.example[1:], one.precision, one.dense, one.strict) for one in (info, self.info)]
        if settings[0] != settings[1]:
            raise UsageError(
                "this network is already optimized, for another size or with other settings; optimize the original "
                "network"
            )
        return self

    def _select_check_sizes(self, batch_size: int) -> set[int]:
        """Return `batch_size` and up to two other batch sizes that the network can run.

        Args:
            batch_size: Number of images of the example.
        """
        if self._steps.batch_size is not None:
            return {batch_size}
        others = [size for size in CHECKED_BATCH_SIZES if size != batch_size]
        return {batch_size, *[size for size in others if self._supports_batch_size(size)][:2]}

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns for `x`, without gradients.

        Args:
            x: Images, (N, C, H, W) float32 on the CPU.

        Raises:
            UsageError: `x` does not have the size of the example, or the network computes something else for this batch
                size; or layers are int8 and `x` contains NaN or infinity.
        """
        if torch.compiler.is_exporting():
            return self._run_traced(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Any:
        if is_traced(x):
            return self._run_traced(x)
        x = to_plain_images(x)
        self._check_batch(x)
        # The sum is finite unless a number is not, or it overflows, and costs far less than `isfinite`.
        if self._steps.quantizations and not math.isfinite(float(x.sum())) and not bool(x.isfinite().all()):
            raise UsageError(
                "some images contain NaN or infinity, which 8 bits cannot represent; correct these images, or optimize "
                "with precision='fp32'"
            )
        # The memory is reused by all callers, so it must not consist of inference tensors.
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                if not self._packed or len(x) == 0:
                    return reference.run_reference(self._steps, self._weight, x)
                return self._plan(len(x)).run(x.contiguous(memory_format=torch.channels_last), _memory_format(x))
        except (RuntimeError, ValueError, MemoryError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"this network cannot run on {len(x)} images: {reason}") from error

    _run._torchdynamo_disable = True  # type: ignore[attr-defined]  # as torch.compiler.disable, without its import

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to one file, which `load` reads on any machine.

        Args:
            path: Path of the file.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
            UsageError: The path is invalid; the network contains an operation or output that cannot be stored, or
                computes something else for some batch sizes.
        """
        whole = {name: packed.unpack() for name, packed in self._packed.items()}
        steps = dataclasses.replace(self._steps, tensors={**self._steps.tensors, **whole})
        serialize.write_network(parse_path(path), steps, self._info_for_saving())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the network in a file that `save` wrote. The file contains no code.

        Args:
            path: Path of the file.

        Raises:
            RunError: The file is missing, damaged, or not an optimized network.
        """
        return cls(*serialize.read_network(parse_path(path)))

    def __getstate__(self) -> dict[str, Any]:
        alone = {"info": self._info_for_saving(), "_plans": {}, "_repeats": None, "_lock": None}
        return {**self.__dict__, **alone}  # execution plans contain memory addresses

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__ |= {**self.__dict__, "_plans": {}, "_lock": threading.Lock()}
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # all other attributes are immutable

    def _describe_layer(self, step: FusedConvolution) -> OptimizedLayer:
        packed = self._packed.get(step.weight)
        weight = self._steps.tensors[step.weight] if packed is None else packed.numbers
        precision = "int8" if step.weight_scale else "bf16" if weight.dtype == torch.bfloat16 else "fp32"
        shape = tuple(weight.shape) if packed is None else packed.shape
        return OptimizedLayer(step.place, "torch" if packed is None else packed.kernel, shape, precision)

    def _check_batch(self, x: Tensor) -> None:
        if x.shape[1:] != self.info.example[1:]:
            sizes = ["×".join(map(str, shape[1:])) for shape in (x.shape, self.info.example)]
            raise UsageError(
                f"the images are {sizes[0]} and this network was optimized for {sizes[1]}; optimize it with an "
                "example of this size"
            )
        wanted = self._steps.batch_size
        if len(x) < self.info.least or not (self._supports_batch_size(len(x)) if wanted is None else len(x) == wanted):
            made = "does something else" if wanted is None else f"was optimized for {wanted} at a time"
            raise UsageError(
                f"the batch has {len(x)} images, and this network {made}; optimize it with an example of {len(x)} "
                "images"
            )

    def _supports_batch_size(self, batch_size: int) -> bool:
        """Return whether the network computes the captured graph for batches of this size.

        Raises:
            UsageError: It cannot run on batches of this size.
        """
        return self._repeats is None or batch_size in self._same or self._repeats(batch_size)

    def _run_traced(self, x: Tensor) -> Any:
        """Run PyTorch's operations, which callers can trace or transform."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.info.example[1:]:
            raise UsageError(
                "trace an optimized network with float32 images of shape "
                f"(N, {', '.join(map(str, self.info.example[1:]))})"
            )
        with torch.no_grad():
            return reference.run_reference(self._steps, self._weight, x)

    def _weight(self, name: str) -> Tensor:
        """Return the weights called `name`, (O, C / groups, kh, kw)."""
        return self._packed[name].unpack() if name in self._packed else self._steps.tensors[name]

    def _plan(self, batch_size: int) -> ExecutionPlan:
        with self._lock:
            plan = self._plans.get(batch_size)
        if plan is None:
            plan = ExecutionPlan(self._steps, self._packed, batch_size)
            with self._lock:
                while len(self._plans) >= MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[batch_size] = plan
        return plan

    def _info_for_saving(self) -> OptimizedInfo:
        """Return the info for a copy without the original network.

        Raises:
            UsageError: The original computes something else for some larger batches.
        """
        if self._repeats is None or self._steps.batch_size is not None:
            return self.info
        others = [size for size in SAVED_BATCH_SIZES if not self._can_run(size)]
        if max(others, default=0) > 1:
            raise UsageError(
                f"this network computes something else for {max(others)} images than for {self.info.example[0]}, which "
                "cannot be stored in a file or pickle; keep the original network and optimize it where it runs"
            )
        return dataclasses.replace(self.info, least=max(others, default=-1) + 1)

    def _can_run(self, batch_size: int) -> bool:
        try:
            return self._supports_batch_size(batch_size)
        except UsageError:
            return False
