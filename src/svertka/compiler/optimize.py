"""Optimization of a network for inference on the CPU, by fusion, packed weights and planned memory."""

import contextlib
import copy
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from svertka.compiler import serialize
from svertka.compiler.accuracy_bound import MixedPrecisionReport, ValidationImages, check_max_loss
from svertka.compiler.accuracy_check import check_int8_error, measure_error, run_original
from svertka.compiler.activation_ranges import observe_activations
from svertka.compiler.bfloat16_maps import drop_unsupported_bfloat16, store_maps_in_bfloat16
from svertka.compiler.calibration_batches import MIN_IMAGES, CalibrationBatches, describe_few_images
from svertka.compiler.capture_and_fuse import capture_and_fuse, explain_constants
from svertka.compiler.capture_at_several_batch_sizes import SameGraphChecker
from svertka.compiler.compiled_network import CompiledNetwork, OptimizedLayer
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.image_sizes import make_examples, parse_sizes, resize_images
from svertka.compiler.mixed_precision import MixedNetwork, MixedPrecisionSearch
from svertka.compiler.packing import DTYPES, choose_precisions, convert_weight_precision, separate_shared_weights
from svertka.compiler.quantization import quantize_network, unfuse_gates
from svertka.compiler.serialize import OptimizationRecord
from svertka.compiler.shared_weights import SharedTensors, pack_networks
from svertka.compiler.validation import is_traced_tensor, to_plain_images, unwrap_network
from svertka.conv import native_support
from svertka.errors import UsageError
from svertka.files import parse_path
from svertka.graph.network_copy import copy_sharing_parameters
from svertka.pages.notebook_block import NotebookBlock
from svertka.pages.number_format import count_with_noun
from svertka.progress import show_spinner

DEFAULT_MAX_LOSS = 0.005  # of the share of correct classes
MIN_NUM_IMAGES = 64  # fewer images do not justify the second that optimizing takes
MIN_NUM_VALUES = 2**20  # in all images, about 341 images of 32×32 RGB; fewer do not justify it either
MANY_IMAGES = 2**40  # a network that is used again and again is worth optimizing


def optimize(
    network: nn.Module,
    example: Tensor | Sequence[int],
    *,
    precision: str = "fp32",
    dense: str | None = None,
    strict: bool = False,
    sizes: Iterable[int | tuple[int, int]] = (),
    calibration: Tensor | Iterable[Any] | None = None,
    validation: tuple[Tensor, Tensor] | Iterable[Any] | None = None,
    max_loss: float = DEFAULT_MAX_LOSS,
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
    most 25 % of the values, and in each output channel (of 16 numbers or more) 50 % of its standard deviation, or of
    that of all channels together if the output is a vector of 100 scores or more; 80 % of these images keep their
    class. On `example`, unless it is a shape, the error is at most 25 % of the values, too; a larger one means that the
    calibration images are preprocessed otherwise. Evaluate the result on more images.

    With "auto", each layer gets one of these precisions, so that the network is as fast as possible while the share of
    validation images classified correctly drops by at most `max_loss`. The time of each layer in each precision is
    measured here, for batches of the example's size, in about 10 seconds, with the current number of threads; then some
    mixtures are run on the validation images. A time limit of 100 seconds ends the search, and `Optimized.accuracy`
    tells of how many layers it left a lower precision untried. The result is never slower in this measurement than the
    network in one precision that keeps the bound. `Optimized.accuracy` reports the loss with its interval, and the
    times.

    With `sizes`, one network takes images of several sizes. It is captured, checked and planned for each, so that
    position embeddings and masks are those of the size; a size that `network` does not take is refused. Weights are
    stored once. In int8, the calibration images are resized to each size (bilinear, antialiased): 8-bit weights are
    shared, and each size has its own ranges of maps and corrected biases.

    Convolutions of 3×3 and 5×5 use Winograd tiles. A NaN, an infinity, or a value about 1e5 times as large as its
    neighbors affects up to 3 pixels more than in PyTorch (5×5: up to 6). Float32 maps of at least 24×24 pixels have
    larger tiles, which round four times as coarsely: a value about 2e4 times as large affects up to 5 pixels more there
    (5×5: up to 8). If values of a layer exceed 1e30, its results may overflow, because tiles are sums of values.
    `Optimized.winograd_layers` names these layers; `strict` avoids Winograd. In int8, convolutions of 3×3 use Winograd
    tiles of integers where these are faster and no sum can exceed 32 bits. Results are those of direct kernels up to
    rounding in float32, after which a value may be off by one of the 256 steps.

    Args:
        network: Any nn.Module with float32 parameters on the CPU. The result computes what it does in evaluation mode.
        example: Typical images, (N, C, H, W) float32; or a shape, (C, H, W) or (N, C, H, W), for which random images
            are drawn from a normal distribution. The result takes images of this size, in batches of any size if the
            network allows it.
        precision: "fp32", "bf16", "int8" or "auto". With "bf16", weights are stored in bfloat16. Where the CPU
            multiplies bfloat16, feature maps between convolutions are bfloat16, too: sums stay float32, and the result
            of a layer, with its bias, residual and activation function, is rounded once.
        dense: The precision of dense layers. None: `precision`. For single images, reading their weights takes most of
            their time.
        strict: Whether to use only algorithms whose result at each position depends only on its receptive field.
        sizes: Sizes of images that the result takes besides that of `example`, in pixels: a number for square images,
            or (height, width). They are checked on images of `example`, resized, or drawn if it is a shape.
        calibration: For "int8" and "auto", a hundred or more typical images, (N, C, H, W) float32, or an iterable of
            batches such as a DataLoader. They are read once, and only their statistics are kept.
        validation: For "auto", labeled images that the network was not trained on: images, (N, C, H, W) float32, and
            labels, (N) whole numbers; or an iterable of such batches. They are read once and kept in memory meanwhile.
        max_loss: For "auto", by how much the share of correct classes may drop, above 0 and below 1. At least
            2.77 / `max_loss` validation images are needed: with fewer, the 95 % interval exceeds it even if no image
            changes its class.

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
    _check_settings(precision, dense, strict, calibration, validation, max_loss)
    network = unwrap_network(network)
    examples = make_examples(example, parse_sizes(sizes))
    if precision == "auto" and len(examples) > 1:
        raise UsageError("precision='auto' measures the times for one image size; leave sizes= out")
    instructions = "" if native_support.why_not() else native_support.selected_instruction_set()
    infos = [
        OptimizationRecord(tuple(one.shape), precision, dense, strict=strict, instructions=instructions)
        for one in examples
    ]
    if isinstance(network, Optimized):
        return network._reuse_for(infos)
    tensors = SharedTensors()
    fused, checks = [], []
    for images in examples:
        with _name_size(images, examples[0]), explain_constants(network):
            steps, repeats = capture_and_fuse(network, images)
            fused.append(tensors.share(separate_shared_weights(steps)))
            checks.append(repeats)
    if calibration is not None:
        batch_size = next((one.batch_size for one in fused if one.batch_size is not None), None)
        calibration = CalibrationBatches(calibration, infos[0].example[1:], batch_size)
        with explain_constants(network):
            if precision == "auto":
                labeled = ValidationImages(validation, infos[0].example[1:], max_loss)
                mixed = _mix(fused[0], infos[0], calibration, labeled, copy_sharing_parameters(network))
                fused, infos = [mixed.fused], [dataclasses.replace(infos[0], accuracy=mixed.report)]
            else:
                fused = _quantize(fused, infos[0], calibration)
        _warn_about_calibration(type(network).__name__, fused, calibration, precision)
        if not any(one.quantizations for one in fused):
            precision, dense = ("fp32" if one == "int8" else one for one in (precision, dense))
            infos = [dataclasses.replace(info, precision=precision, dense=dense) for info in infos]
            calibration = None
    if precision != "auto":
        fused = [convert_weight_precision(one, choose_precisions(one, precision, dense)) for one in fused]
        fused = [store_maps_in_bfloat16(one) for one in fused]
    tensors = SharedTensors()
    fused = [tensors.share(one) for one in fused]
    optimized = Optimized(list(zip(fused, infos, checks, strict=True)))
    is_drawn = isinstance(example, tuple | list)
    for images, compiled in zip(examples, optimized.compiled, strict=True):
        with _name_size(images, examples[0]):
            error = _check_accuracy(compiled, network, images, calibration, is_drawn=is_drawn)
        compiled.info = dataclasses.replace(compiled.info, error=error)
    return optimized


@contextlib.contextmanager
def _name_size(example: Tensor, first: Tensor) -> Iterator[None]:
    """Name the image size of `example` in errors, unless it is that of the `first` example."""
    try:
        yield
    except UsageError as reason:
        if example.shape[2:] == first.shape[2:]:
            raise
        size = "×".join(map(str, example.shape[2:]))
        raise UsageError(f"sizes= has {size}, for which {reason}; or leave this size out") from reason


def _check_accuracy(
    compiled: CompiledNetwork,
    network: nn.Module,
    example: Tensor,
    calibration: CalibrationBatches | None,
    *,
    is_drawn: bool,
) -> float:
    """Return the error of a compiled network on the example, and in int8 on calibration images.

    Raises:
        UsageError: The results of `network` differ too much.
    """
    info, size = compiled.info, (example.shape[2], example.shape[3])
    checked = example
    if calibration is not None:
        checked = resize_images(calibration.kept[: compiled.fused.batch_size], size)
    sizes = compiled.select_check_sizes(len(checked))
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        original = copy_sharing_parameters(network)
        used = {info.precision, info.dense}
        if info.precision == "auto":
            used = _checked_precisions({layer.precision for layer in compiled.layers})
        error = measure_error(compiled.run, original, checked, sizes, used)
        if calibration is not None and not is_drawn:
            check_int8_error(
                compiled.run, copy_sharing_parameters(network), example, (calibration.low, calibration.high)
            )
    return error


def _check_settings(
    precision: Any, dense: Any, strict: Any, calibration: object, validation: object, max_loss: object
) -> None:
    """Raise UsageError unless these arguments of `optimize` exist and fit one another."""
    for one in (precision, dense):
        if not isinstance(one, str) or one not in (*DTYPES, "auto"):
            raise UsageError(f"there is no precision {one!r}; use one of {', '.join(DTYPES)}, auto")
    option = "precision" if precision in ("int8", "auto") else "dense"
    needed = {"int8", "auto"}.intersection((precision, dense))
    if "auto" in (precision, dense) and precision != dense:
        raise UsageError("precision='auto' chooses the precision of dense layers, too; give it alone, without dense=")
    if needed and calibration is None:
        raise UsageError(
            f"{option}={needed.pop()!r} needs calibration=, some hundred typical images, (N, C, H, W) float32"
        )
    if not needed and calibration is not None:
        raise UsageError(
            "calibration= is read only with precision='int8', precision='auto' or dense='int8'; leave it out"
        )
    if precision == "auto" and validation is None:
        raise UsageError(
            "precision='auto' needs validation=, images and labels on which the loss of accuracy is measured; without "
            "them use precision='int8', 'bf16' or 'fp32'"
        )
    check_max_loss(max_loss)
    if precision != "auto" and (validation is not None or max_loss != DEFAULT_MAX_LOSS):
        raise UsageError("validation= and max_loss= are read only with precision='auto'; leave them out")
    if precision == "auto" and (reason := native_support.why_not()):
        raise UsageError(f"precision='auto' measures the compiled kernels, and {reason}; use precision='fp32'")
    if not isinstance(strict, bool):
        raise UsageError(f"strict={strict!r} must be True or False")


def _warn_about_calibration(
    name: str, quantized: list[FusedNetwork], calibration: CalibrationBatches, precision: str
) -> None:
    """Warn the caller of `optimize` of few calibration images and of a network, called `name`, without int8 layers."""
    if calibration.count < MIN_IMAGES:
        warnings.warn(describe_few_images(calibration.count), stacklevel=3)
    if not any(one.quantizations for one in quantized) and precision != "auto":
        what = "leave calibration= and dense= out" if precision == "fp32" else "use precision='fp32'"
        warnings.warn(
            f"{name} has no layer that int8 supports, so its feature maps stay float32; {what}",
            stacklevel=3,
        )


def _quantize(
    networks: list[FusedNetwork], info: OptimizationRecord, calibration: CalibrationBatches
) -> list[FusedNetwork]:
    """Return the networks of all sizes with their int8 layers, whose ranges are those on the calibration images."""
    precisions = [choose_precisions(fused, info.precision, info.dense) for fused in networks]
    networks = [unfuse_gates(fused, layers) for fused, layers in zip(networks, precisions, strict=True)]
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        observed = observe_activations(networks, calibration)
        return [
            quantize_network(fused, values, {result for result, one in layers.items() if one == "int8"})
            for fused, values, layers in zip(networks, observed, precisions, strict=True)
        ]


def _checked_precisions(used: set[str]) -> set[str]:
    """Return the precision for whose limits a mixture is checked; the bound on its loss replaces those of bfloat16."""
    return {"int8"} if used - {"fp32"} else {"fp32"}


def _mix(
    steps: FusedNetwork,
    info: OptimizationRecord,
    calibration: CalibrationBatches,
    validation: ValidationImages,
    original: nn.Module,
) -> MixedNetwork:
    """Return the fastest mixture of precisions that keeps the bound on the validation images."""
    layers = choose_precisions(steps, "int8", "int8")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        right, classes = validation.find_right(original, steps.batch_size)
        validation.require_better_than_chance(type(original).__name__, right, classes)
        (observed,) = observe_activations([unfuse_gates(steps, layers)], calibration)
        checked = calibration.kept[: steps.batch_size]
        known = run_original(original, checked)
        search = MixedPrecisionSearch(
            steps, observed, checked, validation, right,
            lambda run, used: measure_error(run, original, checked, set(), _checked_precisions(used), known),
            strict=info.strict, batch_size=info.example[0],
        )  # fmt: skip
        return search.find()


@show_spinner("optimizing the network")
def optimize_if_worthwhile(network: nn.Module, shape: tuple[int, ...], num_images: int) -> nn.Module:
    """Return `network` optimized if `num_images` images of `shape`, (C, H, W), justify it, otherwise `network`.

    `network` itself is returned if it is not float32 on the CPU, if there are no kernels, or if it cannot be captured.
    """
    tensors = [*network.parameters(), *network.buffers()]
    here = all(one.device.type == "cpu" and one.dtype in (torch.float32, torch.int64) for one in tensors)
    is_little = num_images < MIN_NUM_IMAGES or num_images * math.prod(shape) < MIN_NUM_VALUES
    if is_little or isinstance(network, Optimized) or native_support.why_not() or not here:
        return network
    try:
        return optimize(network, shape)
    except UsageError:
        return network


class Optimized(nn.Module):
    """A network made by `optimize`, for inference on the CPU. It has no parameters and cannot be trained.

    It may be called from several threads at once. torch.compile does not compile it, but calls it. torch.export,
    torch.jit and torch.func see PyTorch's operations with the folded weights.

    Args:
        networks: For each image size, the fused operations and their weights, the settings, and a check of batch sizes:
            whether the original network computes the same graph, or None if it always does. Weights that are the same
            object in several sizes are packed once.

    Attributes:
        compiled: The network for each image size, that of the example first.
    """

    def __init__(self, networks: Sequence[tuple[FusedNetwork, OptimizationRecord, SameGraphChecker | None]]) -> None:
        super().__init__()
        packed = pack_networks([fused for fused, _, _ in networks], strict=networks[0][1].strict)
        self.compiled = tuple(
            CompiledNetwork(*own, info, repeats) for own, (_, info, repeats) in zip(packed, networks, strict=True)
        )
        self.eval()

    @property
    def info(self) -> OptimizationRecord:
        """The example's shape, the settings, and the error and loss that were measured."""
        return self.compiled[0].info

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes of images that the network takes, (height, width), that of the example first."""
        return tuple((height, width) for *_, height, width in (one.info.example for one in self.compiled))

    @property
    def error(self) -> float:
        """The largest difference from the original on the example, relative to the largest value, of all sizes."""
        return max(one.info.error for one in self.compiled)

    @property
    def accuracy(self) -> MixedPrecisionReport | None:
        """The loss of accuracy and the speed, which precision="auto" and `optimize_run` measure; else None."""
        return self.info.accuracy

    @property
    def precision(self) -> str:
        """The precision, for "auto" with the number of layers of each: "auto (1 fp32, 20 int8)"."""
        if self.info.precision != "auto":
            return self.info.precision
        counts = Counter(layer.precision for layer in self.layers)
        return f"auto ({', '.join(f'{counts[one]} {one}' for one in DTYPES if counts[one])})"

    @property
    def layers(self) -> tuple[OptimizedLayer, ...]:
        """The convolutions and dense layers, in the order in which they run; then those of other image sizes only."""
        found = list(self.compiled[0].layers)
        for compiled in self.compiled[1:]:
            found += [layer for layer in compiled.layers if layer not in found]
        return tuple(found)

    @property
    def winograd_layers(self) -> tuple[str, ...]:
        """Paths of the modules computed by Winograd tiles, in which non-finite values spread; see `optimize`."""
        return tuple(layer.name for layer in self.layers if layer.kernel == "winograd")

    @property
    def sentence(self) -> str:
        """Summary, "21 layers for 3×224×224 images, fp32; largest error 2e-06"."""
        dense = "" if self.info.dense == self.info.precision else f", dense layers {self.info.dense}"
        error = f"; largest error {self.error:.1g}" if math.isfinite(self.error) else ""
        layers = count_with_noun(len(self.layers), "layer")
        accuracy = f"; {self.accuracy.sentence}" if self.accuracy else ""
        return f"{layers} for {self._describe_sizes()} images, {self.precision}{dense}{error}{accuracy}"

    def __repr__(self) -> str:
        return f"Optimized({self.sentence})"

    def _repr_html_(self) -> str:
        rows = [(one.name, "×".join(map(str, one.shape)), one.kernel, one.precision) for one in self.layers]
        header = ("layer", "weights", "kernel", "precision")
        return NotebookBlock("Optimized network", (self.sentence,), header=header, rows=rows).render()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, the image sizes, the error and the layers as JSON values.

        Returns:
            The keys example, sizes, precision, dense, strict, instructions, error, accuracy and layers.
        """
        return {
            "example": list(self.info.example),
            "sizes": [list(size) for size in self.sizes],
            "precision": self.info.precision,
            "dense": self.info.dense,
            "strict": self.info.strict,
            "instructions": self.info.instructions,
            "error": self.error if math.isfinite(self.error) else None,
            "accuracy": self.accuracy and self.accuracy.to_dict(),
            "layers": [{**vars(one), "shape": list(one.shape)} for one in self.layers],
        }

    def _reuse_for(self, infos: Sequence[OptimizationRecord]) -> Self:
        """Return the network itself if it was made with these settings and takes images of all of these sizes.

        Args:
            infos: The shapes of the images and the settings.

        Raises:
            UsageError: It was made with others.
        """
        wanted, own = (
            {(one.example[1:], one.precision, one.dense, one.strict) for one in some}
            for some in (infos, [one.info for one in self.compiled])
        )
        if not wanted <= own:
            raise UsageError(
                "this network is already optimized, for another size or with other settings; optimize the original "
                "network"
            )
        return self

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns for `x`, without gradients.

        Args:
            x: Images, (N, C, H, W) float32 on the CPU.

        Returns:
            The output of the network, as the network itself returns it: a tensor, or a tuple, list or dict of tensors.

        Raises:
            UsageError: `x` has none of the sizes that the network was optimized for, or the network computes something
                else for this batch size; or layers are int8 and `x` contains NaN or infinity.
        """
        if torch.compiler.is_exporting():
            return self._run_traced(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Any:
        if is_traced_tensor(x):
            return self._run_traced(x)
        x = to_plain_images(x)
        compiled = self._find_compiled(x)
        if compiled is None:
            has_channels = any(one.info.example[1] == x.shape[1] for one in self.compiled)
            again = f"sizes=[{tuple(x.shape[2:])}] too" if has_channels else "an example of this size"
            raise UsageError(
                f"the images are {'×'.join(map(str, x.shape[1:]))} and this network was optimized for "
                f"{self._describe_sizes()}; {'resize' if has_channels else 'convert'} them, or optimize it again with "
                f"{again}"
            )
        return compiled.run(x)

    _run._torchdynamo_disable = True  # type: ignore[attr-defined]  # as torch.compiler.disable, without its import

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to one file, which `load` reads on any machine. Sizes share the weights in it.

        Args:
            path: Path of the file.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
            UsageError: The path is invalid; the network contains an operation or output that cannot be stored, or
                computes something else for some batch sizes.
        """
        packed = {id(one): one for compiled in self.compiled for one in compiled.packed.values()}
        whole = {number: one.unpack() for number, one in packed.items()}
        networks = []
        for compiled in self.compiled:
            weights = {name: whole[id(one)] for name, one in compiled.packed.items()}
            fused = dataclasses.replace(compiled.fused, tensors={**compiled.fused.tensors, **weights})
            networks.append((drop_unsupported_bfloat16(fused), compiled.info_for_saving()))
        serialize.write_networks(parse_path(path), networks)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the network in a file that `save` wrote. The file contains no code.

        Args:
            path: Path of the file.

        Returns:
            The optimized network.

        Raises:
            RunError: The file is missing, damaged, or not an optimized network.
        """
        return cls([(fused, info, None) for fused, info in serialize.read_networks(parse_path(path))])

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__ |= {**self.__dict__, "compiled": tuple(map(copy.copy, self.compiled))}
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # all other attributes are immutable

    def _describe_sizes(self) -> str:
        """Return the sizes of images as text, "3×224×224 or 3×256×256"."""
        *others, last = ("×".join(map(str, one.info.example[1:])) for one in self.compiled)
        return f"{', '.join(others)} or {last}" if others else last

    def _find_compiled(self, x: Tensor) -> CompiledNetwork | None:
        """Return the network for images of the size of `x`; None if there is none."""
        return next((one for one in self.compiled if one.info.example[1:] == x.shape[1:]), None)

    def _run_traced(self, x: Tensor) -> Any:
        """Run PyTorch's operations, which callers can trace or transform."""
        compiled = self._find_compiled(x) if x.dim() == 4 else None
        if compiled is None:
            shapes = [f"(N, {', '.join(map(str, one.info.example[1:]))})" for one in self.compiled]
            raise UsageError(f"trace an optimized network with float32 images of shape {' or '.join(shapes)}")
        with torch.no_grad():
            return compiled.run_reference(x)
