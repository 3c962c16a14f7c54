"""Max pooling and its gradient, against PyTorch's in float64. Whole numbers make sums exact, and maxima equal."""

import copy
import random

import pytest
import torch
from torch import nn

from fences import Fenced
from svertka.conv import native_max_pool, native_support
from svertka.conv.accelerate import accelerate, restore

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))


def draw(choose, size, dtype, spoiled=0.0):
    generator = torch.Generator().manual_seed(choose.randrange(2**32))
    numbers = torch.randint(-4, 5, size, generator=generator).float()
    numbers[torch.rand(size, generator=generator) < spoiled] = torch.nan
    numbers[torch.rand(size, generator=generator) < spoiled] = -torch.inf
    return numbers.to(dtype).contiguous(memory_format=torch.channels_last)


def drawn_layer(choose):
    kernel = tuple(choose.choice((1, 2, 2, 3, 3, 4, 5, 11)) for _ in "yx")
    stride = tuple(choose.choice((1, 2, 2, 3, 4)) for _ in "yx")
    padding = tuple(choose.randint(0, taps // 2) for taps in kernel)
    return nn.MaxPool2d(kernel, stride, padding, ceil_mode=choose.random() < 0.4)


def both_passes(layer, x, choose):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    result = layer(x)
    upstream = draw(choose, result.shape, x.dtype)
    result.backward(upstream)
    return result.detach(), x.grad


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that were called, with their tensors between pages that may not be touched."""
    found, choose = [], random.Random(0)
    for name in ("max_pool_forward", "max_pool_input_gradient"):
        kernel = getattr(native_support.kernels, name)

        def call(shape, *tensors_and_threads, name=name, kernel=kernel):
            *tensors, threads = tensors_and_threads
            flat = [one.as_strided((one.numel(),), (1,), one.storage_offset()) for one in tensors]
            fenced = [Fenced(one, at_end=choose.random() < 0.7).numbers for one in flat]
            kernel(shape, *fenced, threads)
            for one, inside in zip(flat, fenced, strict=True):
                one.copy_(inside)
            found.append(name)

        monkeypatch.setattr(native_support.kernels, name, call)
    monkeypatch.setattr(native_max_pool, "MIN_VALUES", 1)
    return found


def test_random_pools_are_those_of_pytorch(instructions, calls, large_count):
    count = large_count(25, 2000)
    for seed in range(count):
        choose = random.Random(seed)
        torch.set_num_threads(choose.choice((1, 2, 3)))
        layer, dtype = drawn_layer(choose), choose.choice((torch.float32, torch.bfloat16))
        kernel, padding = layer.kernel_size, layer.padding
        sides = [taps - 2 * pad + choose.randint(0, 7) for taps, pad in zip(kernel, padding, strict=True)]
        size = torch.Size((choose.randint(1, 3), choose.choice((1, 3, 8, 15, 16, 17, 33)), *(max(1, s) for s in sides)))
        x = draw(choose, size, dtype, spoiled=choose.choice((0.0, 0.0, 0.1)))
        expected = both_passes(layer, x.double(), random.Random(seed))
        found = both_passes(accelerate(layer), x, random.Random(seed))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(
                one.double(), other, rtol=0, atol=0, equal_nan=True, msg=f"seed {seed}: {layer}, {size}"
            )
    assert calls.count("max_pool_forward") == calls.count("max_pool_input_gradient") == count


def test_the_gradient_is_differentiable(calls):
    torch.manual_seed(1)
    x = torch.randn(1, 2, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    second = []
    for layer in (nn.MaxPool2d(2), accelerate(nn.MaxPool2d(2))):
        (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(of_x.square().sum(), x)[0])
    torch.testing.assert_close(*second)
    assert "max_pool_forward" in calls


def test_other_calls_are_left_to_pytorch(calls):
    x = torch.randn(1, 3, 30, 30).contiguous(memory_format=torch.channels_last).requires_grad_()
    for own in (nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(12)):
        torch.testing.assert_close(accelerate(copy.deepcopy(own))(x), own(x))
    restore(accelerate(nn.MaxPool2d(2)))(x)
    layer = accelerate(nn.MaxPool2d(2))
    layer(x.detach())
    layer(x.contiguous())
    layer(x[0])
    layer(x.double())
    with torch.no_grad():
        layer(x)
    assert calls == []
    layer(x)
    assert calls == ["max_pool_forward"]


def test_windows_outside_the_image_are_refused():
    axis = native_support.kernels.WindowAxis
    x, places = torch.zeros(1000), torch.zeros(1000, dtype=torch.int8)
    for y in (axis(4, 3, 2, 2, 0, 1), axis(4, 2, 2, 2, 2, 1), axis(4, 1, 2, 2, 0, 2), axis(200, 1, 128, 1, 0, 1)):
        shape = native_support.kernels.Window(1, 1, 1, y, axis(1, 1, 1, 1, 0, 1), 1, 1)
        with pytest.raises(ValueError, match="must be from"):
            native_support.kernels.max_pool_forward(shape, x, x, places, 1)
        with pytest.raises(ValueError, match="must be from"):
            native_support.kernels.max_pool_input_gradient(shape, x, places, x, 1)


def fence(tensors, choose):
    """Copies of tensors in memory order, between pages that may not be touched."""
    flat = [one.as_strided((one.numel(),), (1,), one.storage_offset()) for one in tensors]
    return flat, [Fenced(one, at_end=choose.random() < 0.7).numbers for one in flat]


def test_gradients_of_pooled_convolutions_are_those_of_pytorch(instructions, large_count):
    for seed in range(large_count(20, 1000)):
        choose = random.Random(seed)
        layer = drawn_layer(choose)
        sides = [taps + choose.randint(0, 5) for taps in layer.kernel_size]
        batch, channels, inputs = choose.randint(1, 3), choose.choice((1, 3, 8, 16, 17, 33)), choose.choice((1, 3, 5))
        taps = tuple(choose.choice((1, 2, 3, 7)) for _ in "yx")
        strides = tuple(choose.choice((1, 2, 4)) for _ in "yx")
        maps = draw(choose, (batch, channels, *sides), torch.float32)
        pooled, indices = layer.__class__(
            layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode, return_indices=True
        )(maps)
        gradient = draw(choose, pooled.shape, torch.float32)
        weight = draw(choose, (channels, inputs, *taps), torch.float32)
        rectify = choose.random() < 0.7
        spread = torch.zeros(batch, channels, sides[0] * sides[1], dtype=torch.float64)
        spread.scatter_add_(2, indices.flatten(2), gradient.double().flatten(2))
        spread = spread.relu() if rectify else spread
        expected = torch.nn.functional.conv_transpose2d(
            spread.view(batch, channels, *sides), weight.double(), stride=strides
        )

        places = torch.zeros(pooled.shape).contiguous(memory_format=torch.channels_last)
        for axis, step in ((0, layer.kernel_size[1]), (1, 1)):
            at = indices // sides[1] if axis == 0 else indices % sides[1]
            starts = torch.arange(pooled.shape[2 + axis]) * layer.stride[axis] - layer.padding[axis]
            places += (at - (starts[:, None] if axis == 0 else starts)) * step
        rows = weight.permute(0, 2, 3, 1).flatten(2)
        packed = torch.nn.functional.pad(rows, (0, -rows.shape[2] % 16)).contiguous()
        result = native_support.empty_channels_last(tuple(expected.shape)).fill_(torch.nan)
        make = native_support.make_window_sizes
        axes = zip(sides, pooled.shape[2:], layer.kernel_size, layer.stride, layer.padding, (1, 1), strict=True)
        pool = make(batch, (channels, channels), axes, (channels, channels))
        axes = zip(expected.shape[2:], sides, taps, strides, (0, 0), (1, 1), strict=True)
        convolution = make(batch, (inputs, channels), axes, (inputs, channels))
        upstream = gradient.contiguous(memory_format=torch.channels_last)
        flat, fenced = fence([upstream, places.to(torch.int8), packed, result], choose)
        of, where, by, to = fenced
        native_support.kernels.max_pool_convolution_gradient(
            pool, convolution, of, where, rectify, by, to, choose.choice((1, 3))
        )
        flat[3].copy_(to)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=0, msg=f"seed {seed}: {layer}, {sides}")


def test_convolutions_that_do_not_fit_a_pool_are_refused():
    axis, window = native_support.kernels.WindowAxis, native_support.kernels.Window
    pool = window(1, 1, 1, axis(4, 2, 2, 2, 0, 1), axis(4, 2, 2, 2, 0, 1), 1, 1)
    x, places = torch.zeros(1000), torch.zeros(1000, dtype=torch.int8)
    fitting = axis(9, 4, 3, 2, 0, 1)
    for wrong in (axis(8, 4, 3, 2, 0, 1), axis(9, 3, 3, 2, 0, 1), axis(9, 4, 3, 2, 1, 1), axis(9, 4, 2, 2, 0, 2)):
        for y, x_axis in ((wrong, fitting), (fitting, wrong)):
            convolution = window(1, 1, 1, y, x_axis, 1, 1)
            with pytest.raises(ValueError, match="must be from"):
                native_support.kernels.max_pool_convolution_gradient(pool, convolution, x, places, True, x, x, 1)
    convolution = window(1, 1, 1, fitting, fitting, 1, 1)
    for small in ((x[:3], places, x, x), (x, places[:3], x, x), (x, places, x[:47], x), (x, places, x, x[:80])):
        given = [one.clone() for one in small]
        with pytest.raises(ValueError, match="holds"):
            native_support.kernels.max_pool_convolution_gradient(pool, convolution, *given[:2], True, *given[2:], 1)
