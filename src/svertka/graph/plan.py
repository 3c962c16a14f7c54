"""An optimized network for so many pictures: every step with its kernel and its memory, ready to run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svertka.conv import native
from svertka.graph.buffers import Maps, inner_parts, slots
from svertka.graph.fusion import Fused
from svertka.graph.operations import Constant, Operation, Size, Value, leaves, replaced
from svertka.graph.packing import Packed
from svertka.graph.steps import UNBOUNDED, Concatenation, Convolution, Pool, Sum, inputs_of

ARENA, INPUT, OUTPUT = range(3)  # the memories of a run
NOWHERE = -1


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
        self.slots, self.size = slots(fused.steps, self.maps, self.inner, returned, {0, self.output})
        self.program = native.kernels.Program()
        # Steps of the program, first to last; between them operations.
        self.parts: list[tuple[int, int] | Operation] = []
        begin = 0
        for step in (*fused.steps, None):
            if isinstance(step, Convolution | Pool | Sum | Concatenation):
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
        memories = [arena.data_ptr(), x.data_ptr(), 0 if output is None else output.data_ptr()]
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

    def _step(self, value: int) -> int:
        return self.slots[value].step if value in self.slots else self.maps[value].channels

    def _place(self, value: int, more: int = 0) -> "native.kernels.Place":
        if value in self.slots:
            return native.kernels.Place(ARENA, self.slots[value].offset + more)
        return native.kernels.Place(OUTPUT if value == self.output else INPUT, more)

    def _ending(self, step: Convolution | Sum | None, more: int = 0) -> "native.kernels.Ending":
        """What comes after the sum of each result, of the channels from `more` on."""
        residual = step.residual if isinstance(step, Convolution) else None if step is None else step.y
        bias = self.fused.tensors[step.bias].data_ptr() if isinstance(step, Convolution) and step.bias else 0
        low, high = UNBOUNDED if step is None else step.bounds
        place = native.kernels.Place(NOWHERE, 0) if residual is None else self._place(residual, more)
        stride = 0 if residual is None else self._step(residual)
        return native.kernels.Ending(bias + 4 * more if bias else 0, place, stride, low, high)

    def _add(self, step: Convolution | Pool | Sum | Concatenation) -> None:
        if isinstance(step, Convolution):
            self._add_convolution(step)
        elif isinstance(step, Pool):
            kind = native.kernels.Pooling[step.kind]
            self.program.add_pool(self._window(step, step.kernel), kind, self._place(step.x), self._place(step.result))
        elif isinstance(step, Sum):
            self._add_sum(step.x, self._ending(step), step.result)
        else:
            before = 0
            for number, part in enumerate(step.inputs):
                if self.inner.get(part) != (step.result, number):
                    self._add_sum(part, self._ending(None), step.result, before)
                before += self.maps[part].channels

    def _add_sum(self, x: int, ending: "native.kernels.Ending", result: int, more: int = 0) -> None:
        maps = self.maps[x]
        places = self._place(x), self._step(x), ending, self._place(result, more), self._step(result)
        self.program.add_sum(maps.pixels, maps.channels, *places)

    def _add_convolution(self, step: Convolution) -> None:
        packed = self.weights[step.weight]
        address = packed.numbers.data_ptr()
        if packed.kernel == "winograd":
            self._add_winograd(step, packed)
        elif packed.kernel == "depthwise":
            window = self._window(step, packed.shape[2:])
            self.program.add_depthwise(
                window, self._place(step.x), address, self._ending(step), self._place(step.result)
            )
        else:
            window = self._window(step, packed.shape[2:], step.groups)
            reads, writes = packed.shape[1], packed.shape[0] // step.groups
            for group, numbers in enumerate(packed.numbers):
                self.program.add_direct(
                    window,
                    self._place(step.x, group * reads),
                    numbers.data_ptr(),
                    packed.precision,
                    self._ending(step, group * writes),
                    self._place(step.result, group * writes),
                )

    def _add_winograd(self, step: Convolution, packed: Packed) -> None:
        """One kernel, or four, each of which reads three pixels further and adds to what the one before has left."""
        before, after, (pad_y, pad_x) = self.maps[step.x], self.maps[step.result], step.padding
        sizes = before.height, before.width, after.height, after.width
        last = len(packed.numbers) - 1
        for number, numbers in enumerate(packed.numbers):
            pads = pad_y - 3 * (number // 2), pad_x - 3 * (number % 2)
            shape = native.kernels.Convolution(before.batch, before.channels, after.channels, *sizes, *pads)
            shape.in_step, shape.out_step = self._step(step.x), self._step(step.result)
            part = step if last == 0 else replace(
                step,
                bias=step.bias if number == 0 else None,
                residual=step.residual if number == 0 else step.result,
                bounds=step.bounds if number == last else UNBOUNDED,
            )  # fmt: skip
            weights, places = (numbers.data_ptr(), packed.precision), (self._place(step.x), self._place(step.result))
            self.program.add_winograd(shape, places[0], *weights, self._ending(part), places[1])

    def _window(self, step: Convolution | Pool, kernel: tuple[int, ...], groups: int = 1) -> "native.kernels.Window":
        before, after = self.maps[step.x], self.maps[step.result]
        y, x = (
            native.kernels.Sliding(size, out_size, taps, stride, pad, dilation)
            for size, out_size, taps, stride, pad, dilation in zip(
                (before.height, before.width), (after.height, after.width), kernel, step.stride, step.padding,
                step.dilation, strict=True,
            )
        )  # fmt: skip
        channels = before.channels // groups, after.channels // groups
        return native.kernels.Window(before.batch, *channels, y, x, self._step(step.x), self._step(step.result))
