"""Memory planning: values in use do not overlap; parts of a concatenation are written in place."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.compiler.ir import Concatenation, Elementwise, Step
from svertka.compiler.layouts import NetworkLayouts
from svertka.compiler.memory_planner import ALIGNMENT, assign_offsets, find_concatenated_in_place
from svertka.graph.operation_and_value_types import Operation, Value

Shapes = dict[int, tuple[int, ...]]


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], Shapes]:
    """Draw steps that read earlier values: sums, concatenations, and slices of channels."""
    images, side = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    channels, steps = {0: draw(st.integers(1, 40))}, list[Step]()
    for result in range(1, draw(st.integers(2, 14))):
        some = st.integers(0, result - 1)
        kind, x = draw(st.sampled_from(("concatenation", "slice", "copy"))), draw(some)
        if kind == "concatenation":
            earlier = [step.inputs for step in steps if isinstance(step, Concatenation)]
            begin = draw(st.sampled_from([(), *earlier]))
            parts = (*begin, *draw(st.lists(some, min_size=1, max_size=4 if begin == () else 2)))
            steps.append(Concatenation(parts, result))
            channels[result] = sum(channels[part] for part in parts)
        elif kind == "slice":
            begin = draw(st.integers(0, channels[x] - 1))
            end = draw(st.integers(begin + 1, channels[x]))
            arguments = {"self": Value(x), "dim": 1, "start": begin, "end": end}
            steps.append(Operation("slice.Tensor", arguments, (result,), ""))
            channels[result] = end - begin
        else:
            steps.append(Elementwise(x, result))
            channels[result] = channels[x]
    steps.append(Elementwise(len(channels) - 1, len(channels)))
    channels[len(channels)] = channels[len(channels) - 1]
    return steps, {value: (images, count, side, side) for value, count in channels.items()}


def lay_out(steps: list[Step], shapes: Shapes, last: int) -> tuple[NetworkLayouts, dict[int, int], int]:
    made = {step.result for step in steps if isinstance(step, Elementwise | Concatenation)}
    inner = find_concatenated_in_place(steps, made - {last})
    layouts = NetworkLayouts(steps, shapes, 1, inner)
    roots = {value: layout.root for value, layout in layouts.of.items()}
    sizes = {root: torch.Size(shapes[root]).numel() for root in set(roots.values()) - {0}}
    return layouts, *assign_offsets(layouts.steps, sizes, roots, [last])


@given(program=programs())
@settings(max_examples=150, deadline=None)
def test_values_in_use_are_not_overwritten(program: tuple[list[Step], Shapes]) -> None:
    steps, shapes = program
    last = len(shapes) - 1
    layouts, offsets, total = lay_out(steps, shapes, last)
    memory, source = torch.zeros(total), torch.randn(shapes[0]).contiguous(memory_format=torch.channels_last)

    def seen(value: int) -> torch.Tensor:
        """Return the value as it is in memory."""
        layout = layouts.of[value]
        if layout.root == 0:
            return source.as_strided(shapes[value], layout.strides, layout.offset)
        return memory.as_strided(shapes[value], layout.strides, offsets[layout.root] + layout.offset)

    expected = {0: source.clone()}
    for step in steps:
        if isinstance(step, Operation):
            (expected[step.results[0] or 0],) = step.run(
                lambda leaf: expected[leaf.number] if isinstance(leaf, Value) else leaf
            )
        elif isinstance(step, Concatenation):
            expected[step.result] = torch.cat([expected[part] for part in step.inputs], 1)
        elif isinstance(step, Elementwise):
            expected[step.result] = expected[step.x] + 1
    for step in layouts.steps:
        for value in step.inputs:
            torch.testing.assert_close(seen(value), expected[value], rtol=0, atol=0)
        if isinstance(step, Concatenation | Elementwise) and layouts.of[step.result].root != 0:
            seen(step.result).copy_(expected[step.result])
    torch.testing.assert_close(seen(last), expected[last], rtol=0, atol=0)
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())


def test_memory_is_reused() -> None:
    steps: list[Step] = [Elementwise(number, number + 1) for number in range(20)]
    _, offsets, total = lay_out(steps, dict.fromkeys(range(21), (1, 64, 8, 8)), 20)
    assert total == 2 * 64 * 64
    assert len(offsets) == 20


def test_concatenated_values_are_written_in_place() -> None:
    steps: list[Step] = [Elementwise(0, 1), Elementwise(0, 2), Concatenation((1, 2), 3)]
    shapes = {0: (1, 8, 2, 2), 1: (1, 16, 2, 2), 2: (1, 8, 2, 2), 3: (1, 24, 2, 2)}
    assert find_concatenated_in_place(steps, {1, 2}) == {1: (3, 0), 2: (3, 1)}
    layouts, _, total = lay_out(steps, shapes, 3)
    assert [(layouts.of[part].root, layouts.of[part].offset) for part in (1, 2)] == [(3, 0), (3, 16)]
    assert layouts.step_of(1) == layouts.step_of(2) == 24
    assert total == 24 * 4
    dense: list[Step] = [*steps, Elementwise(3, 4), Concatenation((1, 2, 4), 5)]  # as in DenseNet
    layouts, _, total = lay_out(dense, shapes | {4: (1, 24, 2, 2), 5: (1, 48, 2, 2)}, 5)
    assert [(layouts.of[part].root, layouts.of[part].offset) for part in (1, 2, 3, 4)] == [
        (5, 0),
        (5, 16),
        (5, 0),
        (5, 24),
    ]
    assert total == 48 * 4
    # A value cannot be in two places.
    assert find_concatenated_in_place([Elementwise(0, 1), Concatenation((1, 1), 2)], {1, 2}) == {}
