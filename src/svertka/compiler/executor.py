"""The executor of an optimized network for one batch size, with a kernel and memory for each step."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svertka.compiler.attention_tiling import fuse_attention, iter_head_ranges
from svertka.compiler.bfloat16_maps import list_bfloat16_maps
from svertka.compiler.convolution_chain_tiling import ChainTiling, TileStep, form_convolution_chains
from svertka.compiler.convolution_kernel_arguments import (
    NO_LOCATION,
    ConvolutionKernels,
    ConvolutionLocations,
    FeatureMapLocation,
    make_window,
)
from svertka.compiler.fusion import FusedNetwork
from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import (
    Attention,
    BatchDependentSize,
    Concatenation,
    ConvolutionChain,
    Elementwise,
    FusedConvolution,
    Interpolation,
    KernelStep,
    MatrixProduct,
    Normalization,
    Operand,
    Padding,
    Pool,
    Reduction,
    Softmax,
    step_output_numbers,
)
from svertka.compiler.layouts import NetworkLayouts, pixel_stride, row_stride, step_value_numbers
from svertka.compiler.memory_planner import FeatureMapSize, assign_offsets, find_concatenated_in_place, find_last_uses
from svertka.compiler.output_structure import copy_output_tensor
from svertka.compiler.packing import PackedWeights
from svertka.compiler.step_checks import check_step_shapes
from svertka.compiler.tensor_kernel_arguments import (
    MAX_AXES,
    StridedOperand,
    add_border_fill_and_copy,
    add_elementwise,
    add_matrix_product,
    add_reduction,
    add_softmax,
    to_kernel_epilogue,
    to_kernel_interpolation_axis,
)
from svertka.conv import native_support
from svertka.graph.operation_and_value_types import Constant, Operation, Value
from svertka.large_pages import empty_on_large_pages

ARENA, INPUT, OUTPUT = range(3)  # numbers of the memories of a run
OWN, BEFORE, AFTER, OPERANDS = range(4)  # numbers of the memories of a tile step; more operands follow


NUMBERS_IN_FLOAT = {"FLOAT32": 1, "BFLOAT16": 2, "BYTE": 4}  # numbers of a map that take the memory of a float


@dataclass(frozen=True)
class PyTorchOperationStep:
    """An operation of PyTorch, and the values that no later step needs."""

    operation: Operation
    over: list[int]


class ExecutionPlan:
    """The execution of `fused` for batches of `batch_size` images, with packed `weights` by name."""

    def __init__(
        self, fused: FusedNetwork, weights: Mapping[str, PackedWeights | PackedInt8Weights], batch_size: int
    ) -> None:
        self.fused, self.weights, self.batch_size = fused, weights, batch_size
        shapes = {
            value: tuple(side.of(batch_size) if isinstance(side, BatchDependentSize) else side for side in shape)
            for value, shape in fused.shapes.items()
        }
        of_weights = {name: packed.shape for name, packed in self.weights.items()}
        of_tensors = {name: tuple(tensor.shape) for name, tensor in self.fused.tensors.items()}
        for one in self.fused.steps:
            check_step_shapes(one, shapes, of_weights, of_tensors)
        self.output = self._find_direct_output(shapes)
        kinds = FusedConvolution | Pool | Elementwise | Interpolation | Padding | Concatenation
        made = {one.result for one in fused.steps if isinstance(one, kinds)}
        # Where the CPU does not multiply bfloat16, only weights are stored so.
        self.narrow = list_bfloat16_maps(fused) if native_support.multiplies_bfloat16() else set()
        inner = find_concatenated_in_place(fused.steps, made - {self.output})
        self.inner = {
            part: (outer, number)
            for part, (outer, number) in inner.items()
            if len(shapes[part]) == 4 and self._storage(part) == self._storage(outer)
        }
        always_maps = {*fused.quantizations, *self.narrow}
        self.layouts = NetworkLayouts(fused.steps, shapes, batch_size, self.inner, always_maps)
        self.shapes = self.layouts.shapes
        self.maps = {value: self._find_map_size(value) for value in self.layouts.of}
        returned = [leaf.number for leaf in fused.output.leaves if isinstance(leaf, Value)]
        viewed = self._find_viewed(returned)
        per_float = {
            value: self._numbers_in_float(value) for value in self.layouts.of if self._is_in_whole_floats(value)
        }
        chains = form_convolution_chains(
            self.layouts.steps, self.maps, weights, [*returned, *viewed], per_float, torch.get_num_threads()
        )
        steps = fuse_attention(chains, self.shapes, [*returned, *viewed])
        elsewhere = {
            0,
            self.output,
            *(step.x for one in steps if isinstance(one, ConvolutionChain) for step in one.steps[1:]),
            *(one.softmax.result for one in steps if isinstance(one, Attention)),
        }
        roots = {value: layout.root for value, layout in self.layouts.of.items()}
        sizes = {root: self._count_floats(root) for root in set(roots.values()) - elsewhere}
        for attention in steps:
            if isinstance(attention, Attention):
                scores = attention.scores.result
                heads = next(iter_head_ranges(self.shapes[scores]), ())  # the largest tile is the first; () of no image
                sizes[scores] = math.prod(map(len, heads)) * math.prod(self.shapes[scores][-2:])
        self.offsets, self.size = assign_offsets(steps, sizes, roots, returned)
        self.program = native_support.kernels.Program()
        self.convolutions = ConvolutionKernels(fused, weights, self.narrow)
        self._copied: set[tuple[int, int]] = set()  # parts of concatenations: (concatenation, index)
        # Ranges of steps in the native program, separated by operations of PyTorch.
        self.parts: list[tuple[int, int] | PyTorchOperationStep] = []
        self.ranges: list[tuple[ConvolutionChain | Attention | KernelStep, range]] = []  # places in the program
        last, begin = find_last_uses(steps, returned), 0
        for number, step in enumerate([*steps, None]):
            if step is not None and not isinstance(step, Operation):
                first = len(self.program)
                self._add(step)
                self.ranges.append((step, range(first, len(self.program))))
                continue
            if len(self.program) > begin:
                self.parts.append((begin, len(self.program)))
                begin = len(self.program)
            if step is not None:
                values = [*step.inputs, *step_output_numbers(step)]
                self.parts.append(PyTorchOperationStep(step, [value for value in values if last[value] <= number]))
        self._arenas: list[Tensor] = []  # unused ones; each call takes one, so threads do not share any

    def run(
        self,
        x: Tensor,
        memory_format: torch.memory_format = torch.contiguous_format,
        seconds: list[float] | None = None,
    ) -> Any:
        """Return the network's output for `x`, (N, C, H, W) float32, channels-last.

        Args:
            x: The images.
            memory_format: That of feature maps, (N, C, H, W), in the output.
            seconds: None, or a list to which the time of each step of the native program is appended.

        Raises:
            ValueError: An operation returns another shape or dtype than captured.
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
            return values[leaf.number] if leaf.number in values else self._view(leaf.number, memories)

        for part in self.parts:
            if isinstance(part, tuple):
                if seconds is None:
                    self.program.run(memories, *part, threads)
                    continue
                for place in range(*part):
                    began = time.perf_counter()
                    self.program.run(memories, place, place + 1, threads)
                    seconds.append(time.perf_counter() - began)
                continue
            operation = part.operation
            for number, result in zip(operation.results, operation.run(seen), strict=True):
                if number is not None:
                    self._check_result(operation, number, result)
                    values[number] = result
                    if number in self.layouts.stored:
                        self._view(number, memories).copy_(result)
            for number in part.over:
                values.pop(number, None)
        returned = self.fused.output.rebuild(
            lambda leaf: copy_output_tensor(seen(leaf), memory_format) if output is None else output
        )
        self._arenas.append(arena)
        return returned

    def _arena(self) -> Tensor:
        try:
            return self._arenas.pop()
        except IndexError:
            return empty_on_large_pages((self.size,), torch.float32)

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
        raise ValueError(
            f"{operation.place} ({operation.name}) gives {found}, and gave {wanted} when the network was optimized; "
            "optimize the parts before and after it"
        )

    def _find_direct_output(self, shapes: Mapping[int, tuple[int, ...]]) -> int | None:
        """Return the value that is written directly into the returned tensor, or None."""
        output, *more = [*self.fused.output.leaves, None]
        if more != [None] or not isinstance(output, Value) or len(shapes[output.number]) != 2:
            return None
        made = {step.result for step in self.fused.steps if isinstance(step, FusedConvolution | Pool)}
        if output.number not in made or any(output.number in step.inputs for step in self.fused.steps):
            return None
        return output.number

    def _find_viewed(self, returned: Sequence[int]) -> list[int]:
        """Return the values whose memory other values share, so that it must be complete when it is computed."""
        read = Counter(value for step in self.layouts.steps for value in step_value_numbers(step))
        roots = Counter(self.layouts.of[value].root for value in {*read, *returned} if value in self.layouts.of)
        return [root for root, count in roots.items() if count > 1]

    def _find_map_size(self, value: int) -> FeatureMapSize:
        batch, *sides = self.shapes[value] or (1,)
        channels, height, width = (*sides, 1, 1, 1)[:3]
        return FeatureMapSize(batch, channels, height, width)

    def _count_floats(self, value: int) -> int:
        """Return how many floats the memory of `value` is as large as."""
        return -(-math.prod(self.shapes[value]) // self._numbers_in_float(value))

    def _storage(self, value: int) -> str:
        """Return the kernels' name of the dtype in which `value` is stored."""
        if value in self.fused.quantizations:
            return "BYTE"
        return "BFLOAT16" if value in self.narrow else "FLOAT32"

    def _numbers_in_float(self, value: int) -> int:
        return NUMBERS_IN_FLOAT[self._storage(value)]

    def _is_in_whole_floats(self, value: int) -> bool:
        """Return whether each pixel of a map begins with a whole float."""
        layout, per_float = self.layouts.of[value], self._numbers_in_float(value)
        step = pixel_stride(self.shapes[value], layout.strides) if len(self.shapes[value]) in (2, 4) else None
        return step is not None and step % per_float == layout.offset % per_float == 0

    def _view(self, value: int, memories: Sequence[Tensor | None]) -> Tensor:
        layout = self.layouts.of[value]
        memory, offset = self._locate(value)
        tensor = memories[memory]
        assert tensor is not None
        return tensor.as_strided(self.shapes[value], layout.strides, offset)

    def _locate(self, value: int) -> tuple[int, int]:
        """Return the memory of `value` and its offset in it, in numbers of its own."""
        layout = self.layouts.of[value]
        if layout.root in self.offsets:
            return ARENA, self.offsets[layout.root] * self._numbers_in_float(value) + layout.offset
        return (OUTPUT if layout.root == self.output else INPUT), layout.offset

    def _where(self, value: int | None) -> FeatureMapLocation:
        if value is None:
            return NO_LOCATION
        return FeatureMapLocation(*self._locate(value), self.layouts.step_of(value))

    def _add(self, step: ConvolutionChain | Attention | KernelStep) -> None:
        if isinstance(step, ConvolutionChain):
            self._add_chain(step)
        elif isinstance(step, Attention):
            self._add_attention(step)
        elif isinstance(step, FusedConvolution):
            values = step.x, step.residual, step.result, step.gate
            where = ConvolutionLocations(*(self._where(value) for value in values))
            self.convolutions.add(self.program, step, self.maps[step.x], self.maps[step.result], where)
            if self.convolutions.leaves_residual(step):
                self._add_late_residual(step)
        elif isinstance(step, Pool):
            self._add_pool(step)
        elif isinstance(step, Elementwise):
            self._add_elementwise(step)
        elif isinstance(step, Normalization):
            self._add_normalization(step)
        elif isinstance(step, Concatenation):
            self._add_concatenation(step)
        elif isinstance(step, Interpolation):
            self._add_interpolation(step)
        else:
            self._add_strided(step)

    def _add_pool(self, step: Pool) -> None:
        x, result = self._where(step.x), self._where(step.result)
        window = make_window(step, step.kernel, self.maps[step.x], self.maps[step.result], (x.step, result.step))
        kind = native_support.kernels.Pooling[step.kind]
        if step.result not in self.fused.quantizations:
            self.program.add_pool(window, kind, x.place(), result.place(), step.result in self.narrow)
            return
        before, after = (self.fused.quantizations[value] for value in (step.x, step.result))
        mean = before.scale / after.scale, float(after.zero_point)
        self.program.add_int8_pool(window, kind, before.zero_point, mean, x.place(), result.place())

    def _operand(self, one: Operand) -> Any:
        """Return an operand as strided kernels take it."""
        if isinstance(one, Constant):
            tensor = self.fused.tensors[one.name]
            return StridedOperand(tensor, tuple(tensor.shape), tensor.stride())
        if one is None:
            return None
        strides, quantization = self.layouts.of[one].strides, self.fused.quantizations.get(one)
        return StridedOperand(self._locate(one), self.shapes[one], strides, quantization, self._storage(one))

    def _add_strided(self, step: MatrixProduct | Softmax | Reduction | Padding) -> None:
        operands = [self._operand(one) for one in (*step.operands, step.result)]
        if isinstance(step, MatrixProduct):
            add_matrix_product(self.program, step, *operands)
        elif isinstance(step, Softmax):
            add_softmax(self.program, step, *operands)
        elif isinstance(step, Reduction):
            add_reduction(self.program, step, *operands)
        else:
            add_border_fill_and_copy(self.program, step, *operands)

    def _add_attention(self, step: Attention) -> None:
        """Add the three steps for a few heads at a time; the softmax replaces their scores."""
        left, right, values, result = (self._operand(one) for one in (*step.inputs, step.result))
        shape = self.shapes[step.scores.result]
        for heads in iter_head_ranges(shape):
            of_heads = *map(len, heads), *shape[-2:]
            strides = tuple(math.prod(of_heads[axis + 1 :]) for axis in range(len(of_heads)))
            scores = StridedOperand((ARENA, self.offsets[step.scores.result]), of_heads, strides)
            add_matrix_product(self.program, step.scores, left.of_heads(heads), right.of_heads(heads), scores)
            add_softmax(self.program, step.softmax, scores, None, scores)
            add_matrix_product(self.program, step.product, scores, values.of_heads(heads), result.of_heads(heads))

    def _add_interpolation(self, step: Interpolation) -> None:
        x, result = self._where(step.x), self._where(step.result)
        before, tensors = self.maps[step.x], self.fused.tensors
        y_axis = to_kernel_interpolation_axis(before.height, tensors[step.row_indices], tensors[step.row_weights])
        x_axis = to_kernel_interpolation_axis(before.width, tensors[step.column_indices], tensors[step.column_weights])
        places = x.place(), x.step, to_kernel_epilogue(step), result.place(), result.step
        self.program.add_interpolation(before.batch, before.channels, y_axis, x_axis, *places)

    def _add_elementwise(self, step: Elementwise) -> None:
        add_elementwise(self.program, step, *(self._operand(one) for one in (*step.operands, step.result)))

    def _add_normalization(self, step: Normalization) -> None:
        shape = self.shapes[step.x]
        weight, bias = (None if name is None else self.fused.tensors[name] for name in (step.weight, step.bias))
        if step.groups is None:
            channels, groups, pixels = shape[-1], 1, 1
            batch = math.prod(shape[:-1])
            in_step, out_step = (row_stride(shape, self.layouts.of[value].strides) for value in (step.x, step.result))
            assert in_step is not None
            assert out_step is not None
        else:
            batch, channels, *sides = shape
            groups, pixels = step.groups, math.prod(sides)
            in_step, out_step = (self.layouts.step_of(value) for value in (step.x, step.result))
        settings = native_support.kernels.Normalization(
            batch, pixels, channels, groups, in_step, out_step, step.epsilon
        )
        before, after = (native_support.kernels.Place(*self._locate(value)) for value in (step.x, step.result))
        self.program.add_normalize(settings, before, weight, bias, to_kernel_epilogue(step), after)

    def _add_concatenation(self, step: Concatenation) -> None:
        """Copy the parts that are not computed in place, nor copied by a concatenation with the same beginning."""
        whole, result = self.layouts.find_longest(step), self._operand(step.result)
        start = 0
        for number, part in enumerate(step.inputs):
            one = self._operand(part)
            if self.inner.get(part) != (whole, number) and (whole, number) not in self._copied:
                self._copied.add((whole, number))
                to = result.part(step.axis, start, one.shape[step.axis])
                add_elementwise(self.program, Elementwise(part, step.result), one, None, to)
            start += one.shape[step.axis]

    def _add_late_residual(self, step: FusedConvolution) -> None:
        """Apply the epilogue of `step`, without bias, to its result in memory."""
        assert step.residual is not None
        combination = "MULTIPLY" if step.multiply else "ADD"
        activated = Elementwise(step.result, step.result, activation=step.activation, slope=step.slope)
        combined = Elementwise(step.result, step.result, step.residual, combination)
        first, last = (activated, combined) if step.residual_last else (combined, activated)
        self._add_elementwise(first)
        self._add_elementwise(replace(last, bounds=step.bounds))

    def _add_chain(self, chain: ConvolutionChain) -> None:
        steps = chain.steps
        maps = [*(self.maps[step.x] for step in steps), self.maps[chain.result]]
        batch_size, height = maps[-1].batch, maps[-1].height
        segments = min(-(-torch.get_num_threads() // batch_size), height)
        per_float = [self._numbers_in_float(value) for value in (*(step.x for step in steps), chain.result)]
        taps = [self.weights[step.weight].shape[2] for step in steps]
        bands = ChainTiling(chain, maps, taps, segments, per_float)
        programs = []
        for segment in bands.segments:
            program = native_support.kernels.Program()
            for part in segment:
                self._add_part(program, bands, part)
            programs.append(program)
        whole = [steps[0].x, chain.result, *_list_operands(chain)]
        self.program.add_parts(batch_size, programs, bands.room, [self._locate_images(value) for value in whole])

    def _locate_images(self, value: int) -> "tuple[native_support.kernels.Place, int]":
        """Return the place of the first image of `value`, and the distance between images, in floats."""
        where, maps, per_float = self._where(value), self.maps[value], self._numbers_in_float(value)
        place = native_support.kernels.Place(where.memory, where.offset // per_float)
        return place, maps.height * maps.width * where.step // per_float

    def _add_part(self, program: "native_support.kernels.Program", bands: ChainTiling, part: TileStep) -> None:
        """Add a tile step to `program`, with locations in the memories of a thread."""
        chain, number = bands.chain, part.number
        step, last = chain.steps[number], len(chain.steps) - 1
        before, after = bands.maps[number : number + 2]
        x, residual = FeatureMapLocation(OWN, bands.starts[number], before.channels), NO_LOCATION
        if number == 0:
            x = self._locate_in_image(BEFORE, step.x).after(part.reads.start * before.width)
        if number == last:
            result = self._locate_in_image(AFTER, step.result).after(part.makes.start * after.width)
        else:
            own = FeatureMapLocation(OWN, bands.starts[number + 1], after.channels)
            result = own.after((part.makes.start - part.first) * after.width)
            if part.below:
                count, further = part.kept * after.width * after.channels, own.after(part.below * after.width)
                self._add_move(program, further, own, count, self._numbers_in_float(step.result))
        if not part.makes:
            return
        if step.residual is not None:
            residual = self._locate_operand(chain, step.residual).after(part.makes.start * after.width)
        gate = NO_LOCATION if step.gate is None else self._locate_operand(chain, step.gate)
        top = step.padding[0] + part.reads.start - part.makes.start * step.stride[0]
        step = replace(step, padding=(top, step.padding[1]))
        before = replace(before, batch=1, height=len(part.reads))
        after = replace(after, batch=1, height=len(part.makes))
        self.convolutions.add(program, step, before, after, ConvolutionLocations(x, residual, result, gate))

    def _add_move(
        self,
        program: "native_support.kernels.Program",
        source: FeatureMapLocation,
        target: FeatureMapLocation,
        count: int,
        per_float: int,
    ) -> None:
        """Add a copy of `count` numbers in whole floats, `per_float` numbers each."""
        line = [[1, 1, 1, 1, count // per_float], [0, 0, 0, 0, 1], [0] * MAX_AXES, [0, 0, 0, 0, 1]]
        sizes, first = native_support.kernels.Strided(*line), native_support.kernels.Combination.FIRST
        before, after = (native_support.kernels.Place(one.memory, one.offset // per_float) for one in (source, target))
        program.add_elementwise(sizes, first, before, None, to_kernel_epilogue(Elementwise(0, 1)), after)

    def _locate_operand(self, chain: ConvolutionChain, value: int) -> FeatureMapLocation:
        """Return the location of a residual or gate of `chain`, where its memory begins at the current image."""
        return self._locate_in_image(OPERANDS + _list_operands(chain).index(value), value)

    def _locate_in_image(self, memory: int, value: int) -> FeatureMapLocation:
        """Return the location of `value` in `memory`, where the memory begins at the current image."""
        return FeatureMapLocation(memory, 0, self._where(value).step)


def _empty_floats(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialized float32 tensor on the CPU, regardless of PyTorch's defaults."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _list_operands(chain: ConvolutionChain) -> list[int]:
    """Return the residuals and gates of the steps of `chain`."""
    return [value for step in chain.steps for value in (step.residual, step.gate) if value is not None]
