import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.graph.receptive_field import ReceptiveField, ReceptiveFieldGrid


def seen_through(kernel: int, stride: int, padding: int, dilation: int, size: int) -> ReceptiveField:
    return ReceptiveField.of_pixels(size).through(kernel, stride, padding, dilation)


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
)
def test_fields_of_one_layer_are_the_taps_of_its_kernel(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        return
    field = seen_through(kernel, stride, padding, dilation, size)
    signal = torch.zeros(1, 1, size, requires_grad=True)
    output = torch.conv1d(signal, torch.ones(1, 1, kernel), stride=stride, padding=padding, dilation=dilation)[0, 0]
    assert len(field.intervals) == len(output)
    for position, value in enumerate(output):
        (gradient,) = torch.autograd.grad(value, signal, retain_graph=True)
        taps = gradient.flatten().nonzero().flatten().tolist()
        first, last = field.of(position)
        assert (first, last) == ((taps[0], taps[-1]) if taps else (size, -1))
        assert field.grid is not None
        start = field.grid.start + position * field.grid.jump
        assert not taps or start <= first <= last < start + field.grid.extent


def test_a_pixel_that_strides_skip_is_seen_by_nothing_behind_them() -> None:
    field = ReceptiveField.of_pixels(6).through(kernel=1, stride=2).through(kernel=3, padding=1)
    assert field.grid == ReceptiveFieldGrid(start=-2, jump=2, extent=5)
    assert field.of(2) == (2, 4)  # not (2, 5), where the grid alone would end it
    assert not field.gathered().whole


def test_branches_unite_position_by_position() -> None:
    wide, narrow = seen_through(5, 1, 2, 1, size=9), seen_through(3, 1, 0, 2, size=13)
    united = wide.united(ReceptiveField(9, narrow.intervals, narrow.grid))
    assert united.grid == ReceptiveFieldGrid(start=-2, jump=1, extent=7)
    assert united.of(4) == (2, 8)
    strided = seen_through(1, 2, 0, 1, size=17)
    assert seen_through(1, 1, 0, 1, size=9).united(strided).grid is None
