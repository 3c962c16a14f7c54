"""Layouts in memory: views as strides, copies for kernels, and elementwise operations with few axes."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.compiler.ir import Elementwise, Step
from svertka.compiler.layouts import (
    NetworkLayouts,
    broadcast_strides,
    collapse_axes,
    default_axis_order,
    dense_strides,
    memory_axis_order,
    pixel_stride,
    row_stride,
)
from svertka.compiler.optimize import optimize
from svertka.graph.operation_and_value_types import Operation, Value


def test_dense_strides_are_those_of_pytorch() -> None:
    for shape in ((2, 3, 4, 5), (2, 1, 4, 1), (3, 4), (7,), ()):
        for order in itertools.permutations(range(len(shape))):
            back = [order.index(axis) for axis in range(len(shape))]
            expected = torch.empty([shape[axis] for axis in order]).permute(back).stride()
            found = dense_strides(shape, order)
            assert all(a == b for a, b, size in zip(found, expected, shape, strict=True) if size > 1)
            assert dense_strides(shape, memory_axis_order(shape, found)) == found or 1 in shape


def test_kernels_read_maps_whose_pixels_are_evenly_spaced() -> None:
    x = torch.empty(2, 12, 5, 7).contiguous(memory_format=torch.channels_last)
    for view, step in (
        (x, 12),
        (x[:, 3:8], 12),
        (x[:, :, :, :1], 84),
        (x[:, :, :1], None),  # two images of one line each, further apart than their pixels
        (x[:1, :, :1], 12),
        (x.transpose(2, 3), None),
        (x.contiguous(), None),
        (x[:, ::2], None),
        (x[:, :1].expand(2, 12, 5, 7), None),
    ):
        assert pixel_stride(tuple(view.shape), view.stride()) == step
    rows = torch.empty(4, 6, 8)
    assert row_stride((4, 6, 8), rows.stride()) == row_stride((4, 6, 3), rows[..., :3].stride()) == 8
    assert row_stride((4, 8, 6), rows.transpose(1, 2).stride()) is None


@pytest.mark.parametrize(
    ("function", "name", "settings"),
    [
        (lambda x: x.permute(0, 2, 3, 1), "permute.default", {"dims": [0, 2, 3, 1]}),
        (lambda x: x.transpose(1, 3), "transpose.int", {"dim0": 1, "dim1": 3}),
        (lambda x: x[:, 1:3], "slice.Tensor", {"dim": 1, "start": 1, "end": 3}),
        (lambda x: x[:, :, 1::2], "slice.Tensor", {"dim": 2, "start": 1, "end": 6, "step": 2}),
        (lambda x: x.unsqueeze(2), "unsqueeze.default", {"dim": 2}),
        (lambda x: x.flatten(2), "flatten.using_ints", {"start_dim": 2, "end_dim": -1}),
        (lambda x: x[:1].expand(3, -1, -1, -1), "expand.default", {"size": [3, 4, 6, 5]}),
    ],
)
def test_views_of_maps_are_strides_of_their_memory(
    function: Callable[[Tensor], Tensor], name: str, settings: dict[str, Any]
) -> None:
    x = torch.randn(1 if name == "expand.default" else 2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    shapes = {0: tuple(x.shape), 1: tuple(function(x).shape)}
    layouts = NetworkLayouts([Operation(name, {"self": Value(0), **settings}, (1,), "")], shapes, 2, {})
    assert layouts.steps == []
    found = x.as_strided(shapes[1], layouts.of[1].strides, layouts.of[1].offset)
    torch.testing.assert_close(found, function(x), rtol=0, atol=0)


def test_a_reshape_that_no_view_can_give_is_one_copy() -> None:
    shapes = {0: (2, 6, 4, 5), 1: (2, 2, 3, 4, 5), 2: (2, 3, 2, 4, 5), 3: (2, 6, 4, 5)}
    steps: list[Step] = [  # a channel shuffle
        Operation("reshape.default", {"self": Value(0), "shape": list(shapes[1])}, (1,), ""),
        Operation("transpose.int", {"self": Value(1), "dim0": 1, "dim1": 2}, (2,), ""),
        Operation("reshape.default", {"self": Value(2), "shape": list(shapes[3])}, (3,), ""),
    ]
    layouts = NetworkLayouts(steps, shapes, 2, {})
    (copy,) = layouts.steps
    assert isinstance(copy, Elementwise)
    assert layouts.step_of(3) == 6
    x = torch.randn(shapes[0]).contiguous(memory_format=torch.channels_last)
    memory = torch.empty(x.numel())
    target = memory.as_strided(layouts.shapes[copy.result], layouts.of[copy.result].strides)
    target.copy_(x.view(shapes[1]).transpose(1, 2))
    found = memory.as_strided(shapes[3], layouts.of[3].strides)
    torch.testing.assert_close(found, F.channel_shuffle(x, 2), rtol=0, atol=0)


class Turned(nn.Module):
    """A convolution and a layer norm of the same transposed map, in either order."""

    def __init__(self, *, rows_first: bool) -> None:
        super().__init__()
        self.first, self.second, self.rows_first = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), rows_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned = self.first(x).transpose(2, 3)
        if self.rows_first:
            return F.layer_norm(turned, turned.shape[3:]), self.second(turned)
        return self.second(turned), F.layer_norm(turned, turned.shape[3:])


@pytest.mark.parametrize("rows_first", [False, True])
def test_one_value_may_have_a_copy_as_map_and_another_as_rows(rows_first: bool) -> None:
    network, x = Turned(rows_first=rows_first).eval(), torch.randn(2, 3, 6, 5)
    found = optimize(network, x)(x)
    with torch.inference_mode():
        torch.testing.assert_close(found, network(x), rtol=1e-4, atol=1e-5)


def test_collapsed_axes_address_the_same_elements() -> None:
    for seed in range(300):
        choose = random.Random(seed)
        shape = tuple(choose.choice((1, 2, 3, 4)) for _ in range(choose.randint(0, 6)))
        layouts = [dense_strides(shape, choose.sample(range(len(shape)), len(shape))) for _ in range(2)]
        repeated = tuple(size if choose.random() < 0.6 else 1 for size in shape)[choose.randint(0, len(shape)) :]
        layouts.append(broadcast_strides(shape, repeated, dense_strides(repeated, default_axis_order(repeated))))
        sizes, strides = collapse_axes(shape, layouts)
        assert math.prod(sizes) == math.prod(shape)

        def addresses(sizes: Any, strides: Any) -> list[tuple[int, ...]]:
            places = itertools.product(*map(range, sizes))
            return sorted(
                tuple(sum(i * step for i, step in zip(place, one, strict=True)) for one in strides) for place in places
            )

        assert addresses(sizes, strides) == addresses(shape, layouts)
