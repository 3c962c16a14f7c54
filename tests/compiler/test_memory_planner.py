"""Memory planning: values in use do not overlap; parts of a concatenation are written in place."""

from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.compiler.ir import Concatenation, Step, Sum
from svertka.compiler.memory_planner import ALIGNMENT, FeatureMapSize, Slot, assign_slots, find_concatenated_in_place


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], dict[int, FeatureMapSize]]:
    """Steps that read values of before; values of the same size, so that they can be joined and summed up."""
    images, side = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    channels, steps = {0: draw(st.integers(1, 40))}, []
    for result in range(1, draw(st.integers(2, 14))):
        some = st.integers(0, result - 1)
        if draw(st.booleans()):
            parts = tuple(draw(st.lists(some, min_size=1, max_size=4)))
            steps.append(Concatenation(parts, result))
            channels[result] = sum(channels[part] for part in parts)
        else:
            x = draw(some)
            steps.append(Sum(x, result))
            channels[result] = channels[x]
    return steps, {value: FeatureMapSize(images, count, side, side) for value, count in channels.items()}


def numbers(slot: Slot, maps: FeatureMapSize) -> set[int]:
    """The places of all numbers of a value."""
    return {
        slot.offset + pixel * slot.step + channel for pixel in range(maps.pixels) for channel in range(maps.channels)
    }


@given(program=programs())
@settings(max_examples=150, deadline=None)
def test_values_in_use_are_not_overwritten(program: tuple[list[Step], dict[int, FeatureMapSize]]) -> None:
    steps, maps = program
    last = steps[-1].result  # type: ignore[union-attr]
    inner = find_concatenated_in_place(steps, set(maps) - {0, last})
    found, total = assign_slots(steps, maps, inner, [last], {0})
    # Run it: each number remembers whose it is.
    memory: dict[int, tuple[int, int, int]] = {}

    def places(value: int) -> list[int]:
        slot, one = found[value], maps[value]
        return [slot.offset + p * slot.step + c for p in range(one.pixels) for c in range(one.channels)]

    def content(value: int) -> list[object]:
        if value == 0:
            return [(0, place) for place in range(maps[0].pixels * maps[0].channels)]
        return [memory.get(place) for place in places(value)]

    expected: dict[int, list[object]] = {0: content(0)}
    for step in steps:
        result: int = step.result  # type: ignore[union-attr]
        for value in step.inputs:
            assert content(value) == expected[value]
        if isinstance(step, Concatenation):
            count, rows = maps[result].channels, []
            for pixel in range(maps[result].pixels):
                for part in step.inputs:
                    width = maps[part].channels
                    rows += expected[part][pixel * width : (pixel + 1) * width]
            assert len(rows) == count * maps[result].pixels
            expected[result] = rows
        else:
            expected[result] = [(result, place) for place in range(maps[result].pixels * maps[result].channels)]
        if result in found:
            memory.update(zip(places(result), expected[result], strict=True))  # type: ignore[arg-type]
    assert content(last) == expected[last]
    assert all(max(numbers(slot, maps[value])) < total for value, slot in found.items())


def test_memory_is_reused() -> None:
    steps: list[Step] = [Sum(number, number + 1) for number in range(20)]
    maps = {value: FeatureMapSize(1, 64, 8, 8) for value in range(21)}
    found, total = assign_slots(steps, maps, {}, [20], {0})
    assert total == 2 * 64 * 64
    assert all(slot.offset % ALIGNMENT == 0 for slot in found.values())


def test_concatenated_values_are_written_in_place() -> None:
    steps: list[Step] = [Sum(0, 1), Sum(0, 2), Concatenation((1, 2), 3)]
    maps = {
        0: FeatureMapSize(1, 8, 2, 2),
        1: FeatureMapSize(1, 16, 2, 2),
        2: FeatureMapSize(1, 8, 2, 2),
        3: FeatureMapSize(1, 24, 2, 2),
    }
    inner = find_concatenated_in_place(steps, {1, 2, 3})
    assert inner == {1: (3, 0), 2: (3, 1)}
    found, total = assign_slots(steps, maps, inner, [3], {0})
    assert (found[1], found[2]) == (Slot(found[3].offset, 24), Slot(found[3].offset + 16, 24))
    assert total == 24 * 4
    assert (
        find_concatenated_in_place([Sum(0, 1), Concatenation((1, 1), 2)], {1, 2}) == {}
    )  # it cannot lie in two places
