"""The executor: an optimized network for one batch size, with a kernel and memory for each step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.ir import (
    UNBOUNDED,
    BatchDependentSize,
    Chain,
    Concatenation,
    FusedConvolution,
    Pool,
    Sum,
    results_of,
)
from svertka.compiler.ir_verifier import check_step_shapes
from svertka.compiler.memory_planner import FeatureMapSize, assign_slots, find_concatenated_in_place, find_last_uses
from svertka.compiler.output_structure import copy_for_caller
from svertka.compiler.packing import PackedWeights
from svertka.compiler.tiling import ChainTiling, TileStep, form_chains
from svertka.conv import native
from svertka.graph.operations import Constant, Operation, Value

ARENA, INPUT, OUTPUT = range(3)  # the memories of a run
OWN, BEFORE, AFTER, RESIDUALS = range(4)  # the memories of a tile step; further residuals follow


class MapLocation(NamedTuple):
    """The location of a feature map: `memory`, `offset` in it, and distance from pixel to pixel, `step`, in numbers."""

    memory: int
    offset: int
    step: int

    def after(self, pixels: int) -> "MapLocation":
        """Return the location of the pixel `pixels` further on."""
        return MapLocation(self.memory, self.offset + pixels * self.step, self.step)

    def place(self, more: int = 0) -> "native.kernels.Place":
        """Return the location as kernels take it, `more` numbers further on."""
        return native.kernels.Place(self.memory, self.offset + more)


NO_LOCATION = MapLocation(-1, 0, 0)


@dataclass(frozen=True)
class OperationCall:
    """An operation of PyTorch, and the values that are no longer needed after it."""

    operation: Operation
    over: list[int]


class ExecutionPlan:
    """The steps of `fused` for batches of `batch_size` images, with packed `weights` by name."""

    def __init__(self, fused: FusedNetwork, weights: Mapping[str, PackedWeights], batch_size: int) -> None:
        self.fused, self.weights, self.batch_size = fused, weights, batch_size
        self.shapes = {
            value: tuple(side.of(batch_size) if isinstance(side, BatchDependentSize) else side for side in shape)
            for value, shape in fused.shapes.items()
        }
        self._check_shapes()
        ours = [step for step in fused.steps if not isinstance(step, Operation)]
        made = {step.result for step in ours}
        self.output = self._find_direct_output(made)
        read = {value for step in ours for value in step.inputs}
        self.maps = {value: self._find_map_size(value) for value in made | read}
        self.inner = find_concatenated_in_place(fused.steps, made - {self.output})
        returned = [leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)]
        steps = form_chains(fused.steps, self.maps, weights, returned)
        elsewhere = {0, self.output, *(step.x for one in steps if isinstance(one, Chain) for step in one.steps[1:])}
        self.slots, self.size = assign_slots(steps, self.maps, self.inner, returned, elsewhere)
        self.program = native.kernels.Program()
        # Ranges of steps in the native program, and between them operations of PyTorch.
        self.parts: list[tuple[int, int] | OperationCall] = []
        last, begin = find_last_uses(steps, returned), 0
        for number, step in enumerate([*steps, None]):
            if isinstance(step, Chain | FusedConvolution | Pool | Sum | Concatenation):
                self._add(step)
                continue
            if len(self.program) > begin:
                self.parts.append((begin, len(self.program)))
                begin = len(self.program)
            if step is not None:
                values = [*step.inputs, *results_of(step)]
                self.parts.append(OperationCall(step, [value for value in values if last[value] <= number]))
        self._arenas: list[Tensor] = []  # unused; each call takes one, so threads do not share it

    def _check_shapes(self) -> None:
        weights = {name: packed.shape for name, packed in self.weights.items()}
        biases = {name: tuple(tensor.shape) for name, tensor in self.fused.tensors.items()}
        for step in self.fused.steps:
            check_step_shapes(step, self.shapes, weights, biases)

    def run(self, x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        """Return the network's output for `x`, (N, C, H, W) float32, channels-last.

        Feature maps in the output, (N, C, H, W), are in `memory_format`.

        Raises:
            ValueError: an operation returns another shape or dtype than captured.
        """
        arena = self._arena()
        output = None if self.output is None else _empty_floats(self.shapes[self.output])
        memories = [arena, x, output]
        values: dict[int, Tensor] = {0: x}
        threads = torch.get_num_threads()

        def seen(leaf: Any) -> Any:
            if isinstance(leaf, Constant):
                return self.fused.tensors[leaf.name]
            if isinstance(leaf, BatchDependentSize):
                return leaf.of(self.batch_size)
            if not isinstance(leaf, Value):
                return leaf
            return values[leaf.number] if leaf.number in values else self._view(leaf.number, arena)

        for part in self.parts:
            if isinstance(part, tuple):
                self.program.run(memories, *part, threads)
                continue
            operation = part.operation
            for number, result in zip(operation.results, operation.run(seen), strict=True):
                if number is not None:
                    self._check_result(operation, number, result)
                    values[number] = result
                    if number in self.slots:
                        self._view(number, arena).copy_(result)
            for number in part.over:
                values.pop(number, None)
        returned = self.fused.output.rebuild(
            lambda leaf: copy_for_caller(seen(leaf), memory_format) if output is None else output
        )
        self._arenas.append(arena)
        return returned

    def _arena(self) -> Tensor:
        try:
            return self._arenas.pop()
        except IndexError:
            return _empty_floats((self.size,))

    def _check_result(self, operation: Operation, number: int, result: Tensor) -> None:
        """Raise ValueError unless `result` has the shape and dtype that were captured."""
        if tuple(result.shape) == self.shapes[number] and result.dtype == self.fused.dtypes[number]:
            return
        found, wanted = (
            f"{'×'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            for shape, dtype in (
                (result.shape, result.dtype),
                (self.shapes[number], self.fused.dtypes[number]),
            )
        )
        raise ValueError(f"{operation.place} ({operation.name}) gives {found}, and gave {wanted} when it was optimized")

    def _find_direct_output(self, made: set[int]) -> int | None:
        """Return the value that is written directly into the returned tensor, or None."""
        output, *more = [*self.fused.output.leaves, None]
        if more != [None] or not isinstance(output, Value):
            return None
        if output.number not in made or len(self.shapes[output.number]) != 2:
            return None
        return None if any(output.number in step.inputs for step in self.fused.steps) else output.number

    def _find_map_size(self, value: int) -> FeatureMapSize:
        batch, *sides = self.shapes[value]
        channels, height, width = (*sides, 1, 1)[:3]
        return FeatureMapSize(batch, channels, height, width)

    def _view(self, value: int, arena: Tensor) -> Tensor:
        slot, maps, shape = self.slots[value], self.maps[value], self.shapes[value]
        strides = (maps.height * maps.width * slot.step, 1, maps.width * slot.step, slot.step)
        return arena.as_strided(shape, strides[: len(shape)], slot.offset)

    def _where(self, value: int | None) -> MapLocation:
        if value is None:
            return NO_LOCATION
        if value in self.slots:
            return MapLocation(ARENA, self.slots[value].offset, self.slots[value].step)
        return MapLocation(OUTPUT if value == self.output else INPUT, 0, self.maps[value].channels)

    def _make_epilogue(
        self, step: FusedConvolution | Sum | None, residual: MapLocation, more: int = 0
    ) -> "native.kernels.Epilogue":
        """What comes after the sum of each result, of the channels from `more` on."""
        bias = self.fused.tensors[step.bias][more:] if isinstance(step, FusedConvolution) and step.bias else None
        low, high = UNBOUNDED if step is None else step.bounds
        return native.kernels.Epilogue(bias, residual.place(more), residual.step, low, high)

    def _add(self, step: Chain | FusedConvolution | Pool | Sum | Concatenation) -> None:
        if isinstance(step, Chain):
            self._add_chain(step)
        elif isinstance(step, FusedConvolution):
            x, residual, result = (self._where(value) for value in (step.x, step.residual, step.result))
            if self.weights[step.weight].kernel == "winograd":
                self._add_winograd(step, x, residual, result)
            else:
                before, after = self.maps[step.x], self.maps[step.result]
                self._add_direct(self.program, step, before, after, x, residual, result)
        elif isinstance(step, Pool):
            x, result = self._where(step.x), self._where(step.result)
            window = _window(step, step.kernel, self.maps[step.x], self.maps[step.result], (x.step, result.step))
            self.program.add_pool(window, native.kernels.Pooling[step.kind], x.place(), result.place())
        elif isinstance(step, Sum):
            self._add_sum(step.x, self._make_epilogue(step, self._where(step.y)), step.result)
        else:
            channel = 0
            for number, part in enumerate(step.inputs):
                if self.inner.get(part) != (step.result, number):
                    self._add_sum(part, self._make_epilogue(None, NO_LOCATION), step.result, channel)
                channel += self.maps[part].channels

    def _add_sum(self, x: int, ending: "native.kernels.Epilogue", result: int, more: int = 0) -> None:
        maps, source, target = self.maps[x], self._where(x), self._where(result)
        self.program.add_sum(
            maps.pixels, maps.channels, source.place(), source.step, ending, target.place(more), target.step
        )

    def _add_direct(
        self,
        program: "native.kernels.Program",
        step: FusedConvolution,
        before: FeatureMapSize,
        after: FeatureMapSize,
        x: MapLocation,
        residual: MapLocation,
        result: MapLocation,
    ) -> None:
        """Add a direct, depthwise or grouped convolution from `before` at `x` to `after` at `result`."""
        packed = self.weights[step.weight]
        if packed.kernel in ("depthwise", "grouped"):
            window, ending = (
                _window(step, packed.shape[2:], before, after, (x.step, result.step)),
                self._make_epilogue(step, residual),
            )
            program.add_grouped(window, step.groups, x.place(), packed.numbers, ending, result.place())
            return
        window = _window(step, packed.shape[2:], before, after, (x.step, result.step), step.groups)
        reads, writes = packed.shape[1], packed.shape[0] // step.groups
        for group, numbers in enumerate(packed.numbers):
            ending = self._make_epilogue(step, residual, group * writes)
            places = x.place(group * reads), result.place(group * writes)
            program.add_direct(window, places[0], numbers, packed.precision, ending, places[1])

    def _add_winograd(self, step: FusedConvolution, x: MapLocation, residual: MapLocation, result: MapLocation) -> None:
        """Add one 3×3 Winograd convolution; for larger kernels four, each added to the result of the one before."""
        packed, before, after = self.weights[step.weight], self.maps[step.x], self.maps[step.result]
        sizes = before.height, before.width, after.height, after.width
        last = len(packed.numbers) - 1
        for number, numbers in enumerate(packed.numbers):
            pads = step.padding[0] - 3 * (number // 2), step.padding[1] - 3 * (number % 2)
            shape = native.kernels.Convolution(before.batch, before.channels, after.channels, *sizes, *pads)
            shape.in_step, shape.out_step = x.step, result.step
            bias, bounds = step.bias if number == 0 else None, step.bounds if number == last else UNBOUNDED
            ending = self._make_epilogue(replace(step, bias=bias, bounds=bounds), residual if number == 0 else result)
            self.program.add_winograd(shape, x.place(), numbers, packed.precision, ending, result.place())

    def _add_chain(self, chain: Chain) -> None:
        steps = chain.steps
        maps = [*(self.maps[step.x] for step in steps), self.maps[chain.result]]
        batch_size, height = maps[-1].batch, maps[-1].height
        segments = min(-(-torch.get_num_threads() // batch_size), height)
        bands = ChainTiling(chain, maps, [self.weights[step.weight].shape[2] for step in steps], segments)
        programs = []
        for segment in bands.segments:
            program = native.kernels.Program()
            for part in segment:
                self._add_part(program, bands, part)
            programs.append(program)
        whole = [steps[0].x, chain.result, *_residuals(chain)]
        places = [(self._where(value), self.maps[value]) for value in whole]
        moving = [(where.place(), maps.height * maps.width * where.step) for where, maps in places]
        self.program.add_parts(batch_size, programs, bands.room, moving)

    def _add_part(self, program: "native.kernels.Program", bands: ChainTiling, part: TileStep) -> None:
        """Add a tile step to `program`, with locations in the memories of a thread."""
        chain, number = bands.chain, part.number
        step, last = chain.steps[number], len(chain.steps) - 1
        before, after = bands.maps[number : number + 2]
        x, residual = MapLocation(OWN, bands.starts[number], before.channels), NO_LOCATION
        if number == 0:
            x = self._locate_in_image(BEFORE, step.x).after(part.reads.start * before.width)
        if number == last:
            result = self._locate_in_image(AFTER, step.result).after(part.makes.start * after.width)
        else:
            own = MapLocation(OWN, bands.starts[number + 1], after.channels)
            result = own.after((part.makes.start - part.first) * after.width)
            if part.below:
                pixels, further = part.kept * after.width, own.after(part.below * after.width)
                ending = self._make_epilogue(None, NO_LOCATION)
                program.add_sum(pixels, after.channels, further.place(), own.step, ending, own.place(), own.step)
        if not part.makes:
            return
        if step.residual is not None:
            memory = RESIDUALS + _residuals(chain).index(step.residual)
            residual = self._locate_in_image(memory, step.residual).after(part.makes.start * after.width)
        top = step.padding[0] + part.reads.start - part.makes.start * step.stride[0]
        step = replace(step, padding=(top, step.padding[1]))
        before = replace(before, batch=1, height=len(part.reads))
        after = replace(after, batch=1, height=len(part.makes))
        self._add_direct(program, step, before, after, x, residual, result)

    def _locate_in_image(self, memory: int, value: int) -> MapLocation:
        """Return the location of `value` in `memory`, which begins at the current image."""
        return MapLocation(memory, 0, self._where(value).step)


def _empty_floats(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialized float32 tensor on the CPU, regardless of PyTorch's defaults."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _residuals(chain: Chain) -> list[int]:
    return [step.residual for step in chain.steps if step.residual is not None]


def _window(
    step: FusedConvolution | Pool,
    kernel: tuple[int, ...],
    before: FeatureMapSize,
    after: FeatureMapSize,
    steps: tuple[int, int],
    groups: int = 1,
) -> "native.kernels.Window":
    y, x = (
        native.kernels.WindowAxis(size, out_size, taps, stride, pad, dilation)
        for size, out_size, taps, stride, pad, dilation in zip(
            (before.height, before.width), (after.height, after.width), kernel, step.stride, step.padding,
            step.dilation, strict=True,
        )
    )  # fmt: skip
    return native.kernels.Window(before.batch, before.channels // groups, after.channels // groups, y, x, *steps)
