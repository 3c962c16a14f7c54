"""Arguments of the native kernels that compute convolutions and dense layers."""

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import NamedTuple

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.int8_requantization import make_requantization
from svertka.compiler.ir import UNBOUNDED, FusedConvolution, Pool
from svertka.compiler.memory_planner import FeatureMapSize
from svertka.compiler.packing import PackedWeights, select_winograd_tile
from svertka.conv import native_support


class FeatureMapLocation(NamedTuple):
    """The location of a feature map: `memory`, `offset` in it and `step`, the distance between pixels, in numbers.

    The numbers of maps are floats, bfloat16 or bytes.
    """

    memory: int
    offset: int
    step: int

    def after(self, pixels: int) -> "FeatureMapLocation":
        """Return the location of the pixel that is `pixels` further on."""
        return FeatureMapLocation(self.memory, self.offset + pixels * self.step, self.step)

    def place(self, more: int = 0) -> "native_support.kernels.Place":
        """Return the location for a kernel, moved by `more` numbers."""
        return native_support.kernels.Place(self.memory, self.offset + more)


NO_LOCATION = FeatureMapLocation(-1, 0, 0)


class ConvolutionLocations(NamedTuple):
    """Where a convolution reads and writes; `residual` and `gate` may be NO_LOCATION."""

    x: FeatureMapLocation
    residual: FeatureMapLocation
    result: FeatureMapLocation
    gate: FeatureMapLocation


class ConvolutionKernels:
    """The kernels of the convolutions of a network.

    Args:
        fused: The network.
        weights: Its packed weights by name.
        narrow: Values that are stored in bfloat16.
    """

    def __init__(
        self,
        fused: FusedNetwork,
        weights: Mapping[str, PackedWeights | PackedInt8Weights],
        narrow: Container[int],
    ) -> None:
        self.fused, self.weights, self.narrow = fused, weights, narrow

    def add(
        self,
        program: "native_support.kernels.Program",
        step: FusedConvolution,
        before: FeatureMapSize,
        after: FeatureMapSize,
        where: ConvolutionLocations,
    ) -> None:
        """Add the kernels of `step` to `program`, from a map of size `before` to one of size `after`."""
        packed = self.weights[step.weight]
        if isinstance(packed, PackedInt8Weights):
            self._add_int8(program, step, packed, before, after, where)
        elif packed.kernel == "winograd" and step.groups > 1:
            self._add_winograd_groups(program, step, packed, before, after, where)
        elif packed.kernel == "winograd":
            self._add_winograd(program, step, packed, before, after, where)
        elif packed.kernel == "direct":
            self._add_direct(program, step, packed, before, after, where)
        else:
            window = make_window(step, packed.shape[2:], before, after, (where.x.step, where.result.step))
            ending, narrow = self._make_epilogue(step, where.residual), step.result in self.narrow
            program.add_grouped(
                window, step.groups, where.x.place(), packed.numbers, ending, where.result.place(), narrow
            )

    def leaves_residual(self, step: FusedConvolution) -> bool:
        """Return whether the kernels of `step` apply neither its residual nor what comes after it.

        Each of four sums is the residual of the next kernel, so a residual that is not a summand is applied afterwards.
        """
        packed = self.weights[step.weight]
        several = packed.kernel == "winograd" and step.groups == 1 and len(packed.numbers) > 1
        return several and step.residual is not None and (step.multiply or step.residual_last)

    def _narrow_maps(self, step: FusedConvolution) -> "native_support.kernels.NarrowMaps":
        return native_support.kernels.NarrowMaps(step.x in self.narrow, step.result in self.narrow)

    def _make_epilogue(
        self, step: FusedConvolution, residual: FeatureMapLocation, more: int = 0
    ) -> "native_support.kernels.Epilogue":
        """Return the epilogue of `step` for the channels from `more` on."""
        bias = self.fused.tensors[step.bias][more:] if step.bias else None
        activation = native_support.kernels.Activation[step.activation]
        return native_support.kernels.Epilogue(
            bias, residual.place(more), residual.step, *step.bounds, activation, step.slope, step.multiply,
            step.residual_last,
        )  # fmt: skip

    def _add_int8(
        self,
        program: "native_support.kernels.Program",
        step: FusedConvolution,
        packed: PackedInt8Weights,
        before: FeatureMapSize,
        after: FeatureMapSize,
        where: ConvolutionLocations,
    ) -> None:
        """Add a convolution with 8-bit weights; one for each group, unless it is depthwise."""
        x, residual, result, _ = where
        depthwise = packed.kernel == "int8-depthwise"
        groups = 1 if depthwise else step.groups
        window = make_window(step, packed.shape[2:], before, after, (x.step, result.step), groups)
        kernel = native_support.kernels.Int8Kernel.DEPTHWISE if depthwise else packed.choose_kernel(window)
        tensors = [None if name is None else self.fused.tensors[name] for name in (step.weight_scale, step.bias)]
        found = [
            None if value is None else self.fused.quantizations.get(value)
            for value in (step.x, step.residual, step.result)
        ]
        zero = self.fused.quantizations[step.x].zero_point
        reads, writes = before.channels // groups, after.channels // groups
        for group in range(groups):
            numbers = packed.numbers if depthwise else packed.numbers[group]
            place = residual.place(group * writes), residual.step
            program.add_int8_convolution(
                window, kernel, x.place(group * reads), zero, numbers,
                make_requantization(step, packed, group, tensors, found, place), result.place(group * writes),
            )  # fmt: skip

    def _add_direct(
        self,
        program: "native_support.kernels.Program",
        step: FusedConvolution,
        packed: PackedWeights,
        before: FeatureMapSize,
        after: FeatureMapSize,
        where: ConvolutionLocations,
    ) -> None:
        """Add a direct convolution for each group."""
        x, residual, result, gate = where
        window = make_window(step, packed.shape[2:], before, after, (x.step, result.step), step.groups)
        reads, writes = packed.shape[1], packed.shape[0] // step.groups
        narrow = self._narrow_maps(step)
        for group, numbers in enumerate(packed.numbers):
            ending = self._make_epilogue(step, residual, group * writes)
            places = x.place(group * reads), result.place(group * writes)
            program.add_direct(
                window, places[0], numbers, packed.precision, ending, places[1], gate.place(), gate.step, narrow
            )

    def _add_winograd(
        self,
        program: "native_support.kernels.Program",
        step: FusedConvolution,
        packed: PackedWeights,
        before: FeatureMapSize,
        after: FeatureMapSize,
        where: ConvolutionLocations,
    ) -> None:
        """Add one 3×3 Winograd convolution; for larger kernels four, each added to the previous result."""
        x, residual, result, _ = where
        channels = before.channels, after.channels
        plain = replace(step, bounds=UNBOUNDED, activation="NONE", multiply=False, residual_last=False)
        last = len(packed.numbers) - 1
        apart, narrow = self.leaves_residual(step), self._narrow_maps(step)
        for number, numbers in enumerate(packed.numbers):
            pads = step.padding[0] - 3 * (number // 2), step.padding[1] - 3 * (number % 2)
            shape = _make_winograd_shape(channels, pads, packed, before, after, where)
            part = plain if number < last or apart else step
            if number > 0:
                part = replace(part, bias=None, multiply=False, residual_last=False)
            added = result if number > 0 else NO_LOCATION if apart else residual
            ending = self._make_epilogue(part, added)
            program.add_winograd(shape, x.place(), numbers, packed.precision, ending, result.place(), narrow)

    def _add_winograd_groups(
        self,
        program: "native_support.kernels.Program",
        step: FusedConvolution,
        packed: PackedWeights,
        before: FeatureMapSize,
        after: FeatureMapSize,
        where: ConvolutionLocations,
    ) -> None:
        """Add one 3×3 Winograd convolution for each group."""
        x, residual, result, _ = where
        reads, writes = packed.shape[1], packed.shape[0] // step.groups
        shape = _make_winograd_shape((reads, writes), step.padding, packed, before, after, where)
        narrow = self._narrow_maps(step)
        for group, numbers in enumerate(packed.numbers):
            ending = self._make_epilogue(step, residual, group * writes)
            places = x.place(group * reads), result.place(group * writes)
            program.add_winograd(shape, places[0], numbers, packed.precision, ending, places[1], narrow)


def _make_winograd_shape(
    channels: tuple[int, int],
    pads: tuple[int, ...],
    packed: PackedWeights,
    before: FeatureMapSize,
    after: FeatureMapSize,
    where: ConvolutionLocations,
) -> "native_support.kernels.Convolution":
    """Return the sizes of a 3×3 Winograd convolution of some input and output channels of two feature maps."""
    sizes = before.height, before.width, after.height, after.width
    shape = native_support.kernels.Convolution(before.batch, *channels, *sizes, *pads)
    shape.in_step, shape.out_step = where.x.step, where.result.step
    shape.tile = select_winograd_tile(min(after.height, after.width), packed.precision)
    return shape


def make_window(
    step: FusedConvolution | Pool,
    kernel: tuple[int, ...],
    before: FeatureMapSize,
    after: FeatureMapSize,
    steps: tuple[int, int],
    groups: int = 1,
) -> "native_support.kernels.Window":
    """Return the window of a convolution or pool with `kernel`, with pixels `steps` apart, in one of `groups`."""
    axes = zip(
        (before.height, before.width), (after.height, after.width), kernel, step.stride, step.padding, step.dilation,
        strict=True,
    )  # fmt: skip
    channels = before.channels // groups, after.channels // groups
    return native_support.make_window_sizes(before.batch, channels, axes, steps)
