"""An optimized network for so many pictures: every step with its kernel and its memory, ready to run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svertka.conv import native
from svertka.graph.bands import Bands, Part, chained
from svertka.graph.buffers import Maps, inner_parts, slots
from svertka.graph.fusion import Fused
from svertka.graph.operations import Constant, Operation, Size, Value, leaves, replaced
from svertka.graph.packing import Packed
from svertka.graph.steps import UNBOUNDED, Chain, Concatenation, Convolution, Pool, Sum, inputs_of

ARENA, INPUT, OUTPUT = range(3)  # the memories of a run,
OWN, BEFORE, AFTER, RESIDUALS = range(4)  # and of a part of a chain; further residuals follow


class Where(NamedTuple):
    """A map's `memory`, how many numbers from its beginning, and from one pixel to the next."""

    memory: int
    offset: int
    step: int

    def after(self, pixels: int) -> "Where":
        """The same from some pixel on."""
        return Where(self.memory, self.offset + pixels * self.step, self.step)

    def place(self, more: int = 0) -> "native.kernels.Place":
        """So many numbers further, as kernels take it."""
        return native.kernels.Place(self.memory, self.offset + more)


NOWHERE = Where(-1, 0, 0)


class Plan:
    """The steps of `fused` for `pictures` pictures; `weights`: those of its convolutions, by name."""

    def __init__(self, fused: Fused, weights: Mapping[str, Packed], pictures: int) -> None:
        self.fused, self.weights, self.pictures = fused, weights, pictures
        self.shapes = {
            value: tuple(side.of(pictures) if isinstance(side, Size) else side for side in shape)
            for value, shape in fused.shapes.items()
        }
        ours = [step for step in fused.steps if not isinstance(step, Operation)]
        made = {step.result for step in ours}
        self.output = self._written(made)
        read = {value for step in ours for value in step.inputs}
        self.maps = {value: self._map(value) for value in made | read}
        self.inner = inner_parts(fused.steps, made - {self.output})
        returned = [leaf.number for leaf in leaves(fused.output) if isinstance(leaf, Value)]
        steps = chained(fused.steps, self.maps, weights, returned)
        elsewhere = {0, self.output, *(step.x for one in steps if isinstance(one, Chain) for step in one.steps[1:])}
        self.slots, self.size = slots(steps, self.maps, self.inner, returned, elsewhere)
        self.program = native.kernels.Program()
        # Steps of the program, first to last; between them operations.
        self.parts: list[tuple[int, int] | Operation] = []
        begin = 0
        for step in (*steps, None):
            if isinstance(step, Chain | Convolution | Pool | Sum | Concatenation):
                self._add(step)
                continue
            if len(self.program) > begin:
                self.parts.append((begin, len(self.program)))
                begin = len(self.program)
            if step is not None:
                self.parts.append(step)
        self._arenas: list[Tensor] = []  # not in use; a call takes one, so that threads do not meet in it

    def run(self, x: Tensor) -> Any:
        """What the network returns for `x`, (N, C, H, W) float32, channels-last."""
        arena = self._arenas.pop() if self._arenas else torch.empty(self.size)
        output = None if self.output is None else torch.empty(self.shapes[self.output])
        memories = [arena, x, output]
        values: dict[int, Tensor] = {0: x}
        threads = torch.get_num_threads()

        def seen(leaf: Any) -> Any:
            if isinstance(leaf, Constant):
                return self.fused.tensors[leaf.name]
            if isinstance(leaf, Size):
                return leaf.of(self.pictures)
            if not isinstance(leaf, Value):
                return leaf
            return values[leaf.number] if leaf.number in values else self._view(leaf.number, arena)

        for part in self.parts:
            if isinstance(part, tuple):
                self.program.run(memories, *part, threads)
                continue
            for number, result in zip(part.results, part.run(seen), strict=True):
                if number is not None:
                    values[number] = result
                    if number in self.slots:
                        self._view(number, arena).copy_(result)
        if output is not None:
            self._arenas.append(arena)
            return output
        result = replaced(self.fused.output, lambda leaf: seen(leaf).clone() if isinstance(leaf, Value) else leaf)
        self._arenas.append(arena)
        return result

    def _written(self, made: set[int]) -> int | None:
        """The value that is written right where it is returned."""
        output = self.fused.output
        if not isinstance(output, Value) or output.number not in made or len(self.shapes[output.number]) != 2:
            return None
        return None if any(output.number in inputs_of(step) for step in self.fused.steps) else output.number

    def _map(self, value: int) -> Maps:
        batch, *sides = self.shapes[value]
        channels, height, width = (*sides, 1, 1)[:3]
        return Maps(batch, channels, height, width)

    def _view(self, value: int, arena: Tensor) -> Tensor:
        slot, maps, shape = self.slots[value], self.maps[value], self.shapes[value]
        strides = (maps.height * maps.width * slot.step, 1, maps.width * slot.step, slot.step)
        return arena.as_strided(shape, strides[: len(shape)], slot.offset)

    def _where(self, value: int | None) -> Where:
        if value is None:
            return NOWHERE
        if value in self.slots:
            return Where(ARENA, self.slots[value].offset, self.slots[value].step)
        return Where(OUTPUT if value == self.output else INPUT, 0, self.maps[value].channels)

    def _ending(self, step: Convolution | Sum | None, residual: Where, more: int = 0) -> "native.kernels.Ending":
        """What comes after the sum of each result, of the channels from `more` on."""
        bias = self.fused.tensors[step.bias][more:] if isinstance(step, Convolution) and step.bias else None
        low, high = UNBOUNDED if step is None else step.bounds
        return native.kernels.Ending(bias, residual.place(more), residual.step, low, high)

    def _add(self, step: Chain | Convolution | Pool | Sum | Concatenation) -> None:
        if isinstance(step, Chain):
            self._add_chain(step)
        elif isinstance(step, Convolution):
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
            self._add_sum(step.x, self._ending(step, self._where(step.y)), step.result)
        else:
            channel = 0
            for number, part in enumerate(step.inputs):
                if self.inner.get(part) != (step.result, number):
                    self._add_sum(part, self._ending(None, NOWHERE), step.result, channel)
                channel += self.maps[part].channels

    def _add_sum(self, x: int, ending: "native.kernels.Ending", result: int, more: int = 0) -> None:
        maps, source, target = self.maps[x], self._where(x), self._where(result)
        self.program.add_sum(
            maps.pixels, maps.channels, source.place(), source.step, ending, target.place(more), target.step
        )

    def _add_direct(
        self,
        program: "native.kernels.Program",
        step: Convolution,
        before: Maps,
        after: Maps,
        x: Where,
        residual: Where,
        result: Where,
    ) -> None:
        """A convolution as it is defined, from `before` at `x` to `after` at `result`."""
        packed = self.weights[step.weight]
        if packed.kernel == "depthwise":
            window = _window(step, packed.shape[2:], before, after, (x.step, result.step))
            weights = packed.numbers
            program.add_depthwise(window, x.place(), weights, self._ending(step, residual), result.place())
            return
        window = _window(step, packed.shape[2:], before, after, (x.step, result.step), step.groups)
        reads, writes = packed.shape[1], packed.shape[0] // step.groups
        for group, numbers in enumerate(packed.numbers):
            ending = self._ending(step, residual, group * writes)
            places = x.place(group * reads), result.place(group * writes)
            program.add_direct(window, places[0], numbers, packed.precision, ending, places[1])

    def _add_winograd(self, step: Convolution, x: Where, residual: Where, result: Where) -> None:
        """One kernel, or four, each of which reads three pixels further and adds to what the one before has left."""
        packed, before, after = self.weights[step.weight], self.maps[step.x], self.maps[step.result]
        sizes = before.height, before.width, after.height, after.width
        last = len(packed.numbers) - 1
        for number, numbers in enumerate(packed.numbers):
            pads = step.padding[0] - 3 * (number // 2), step.padding[1] - 3 * (number % 2)
            shape = native.kernels.Convolution(before.batch, before.channels, after.channels, *sizes, *pads)
            shape.in_step, shape.out_step = x.step, result.step
            bias, bounds = step.bias if number == 0 else None, step.bounds if number == last else UNBOUNDED
            ending = self._ending(replace(step, bias=bias, bounds=bounds), residual if number == 0 else result)
            self.program.add_winograd(shape, x.place(), numbers, packed.precision, ending, result.place())

    def _add_chain(self, chain: Chain) -> None:
        steps = chain.steps
        maps = [*(self.maps[step.x] for step in steps), self.maps[chain.result]]
        pictures, height = maps[-1].batch, maps[-1].height
        segments = min(-(-torch.get_num_threads() // pictures), height)
        bands = Bands(chain, maps, [self.weights[step.weight].shape[2] for step in steps], segments)
        programs = []
        for segment in bands.segments:
            program = native.kernels.Program()
            for part in segment:
                self._add_part(program, bands, part)
            programs.append(program)
        whole = [steps[0].x, chain.result, *_residuals(chain)]
        places = [(self._where(value), self.maps[value]) for value in whole]
        moving = [(where.place(), maps.height * maps.width * where.step) for where, maps in places]
        self.program.add_parts(pictures, programs, bands.room, moving)

    def _add_part(self, program: "native.kernels.Program", bands: Bands, part: Part) -> None:
        """A part of a chain, in the memories that a thread has for it."""
        chain, number = bands.chain, part.number
        step, last = chain.steps[number], len(chain.steps) - 1
        before, after = bands.maps[number : number + 2]
        x, residual = Where(OWN, bands.starts[number], before.channels), NOWHERE
        if number == 0:
            x = self._of_picture(BEFORE, step.x).after(part.reads.start * before.width)
        if number == last:
            result = self._of_picture(AFTER, step.result).after(part.makes.start * after.width)
        else:
            own = Where(OWN, bands.starts[number + 1], after.channels)
            result = own.after((part.makes.start - part.first) * after.width)
            if part.below:
                pixels, further = part.kept * after.width, own.after(part.below * after.width)
                ending = self._ending(None, NOWHERE)
                program.add_sum(pixels, after.channels, further.place(), own.step, ending, own.place(), own.step)
        if not part.makes:
            return
        if step.residual is not None:
            memory = RESIDUALS + _residuals(chain).index(step.residual)
            residual = self._of_picture(memory, step.residual).after(part.makes.start * after.width)
        top = step.padding[0] + part.reads.start - part.makes.start * step.stride[0]
        step = replace(step, padding=(top, step.padding[1]))
        before = replace(before, batch=1, height=len(part.reads))
        after = replace(after, batch=1, height=len(part.makes))
        self._add_direct(program, step, before, after, x, residual, result)

    def _of_picture(self, memory: int, value: int) -> Where:
        """A value in a memory that begins where it does, for the picture that is at hand."""
        return Where(memory, 0, self._where(value).step)


def _residuals(chain: Chain) -> list[int]:
    return [step.residual for step in chain.steps if step.residual is not None]


def _window(
    step: Convolution | Pool,
    kernel: tuple[int, ...],
    before: Maps,
    after: Maps,
    steps: tuple[int, int],
    groups: int = 1,
) -> "native.kernels.Window":
    y, x = (
        native.kernels.Sliding(size, out_size, taps, stride, pad, dilation)
        for size, out_size, taps, stride, pad, dilation in zip(
            (before.height, before.width), (after.height, after.width), kernel, step.stride, step.padding,
            step.dilation, strict=True,
        )
    )  # fmt: skip
    return native.kernels.Window(before.batch, before.channels // groups, after.channels // groups, y, x, *steps)
