import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from svertka.data.image_io import decode_to_pixels
from svertka.errors import UsageError
from svertka.layers import ChannelPool, LocalResponseNorm, ScaledTanh, Subsampling, SumPool2d

NUMPY = {"max": np.max, "sum": np.sum, "average": np.mean}


def test_scaled_tanh_maps_one_to_itself_where_its_curvature_is_largest():
    values = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    squashed = ScaledTanh()(values)
    # 1.7159 is rounded to five digits in the paper
    assert math.isclose(float(squashed[5000]), 1, abs_tol=2e-5)
    curvature = squashed[2:] - 2 * squashed[1:-1] + squashed[:-2]
    assert abs(abs(float(values[1 + int(curvature.abs().argmax())])) - 1) < 0.02


def test_subsampling_sums_2x2_windows_for_odd_sizes_too():
    torch.manual_seed(0)
    layer, inputs = Subsampling(3), torch.randn(2, 3, 7, 6)
    outputs = layer(inputs).detach().numpy()
    assert outputs.shape == (2, 3, 3, 3)
    pixels, coefficient, bias = inputs.numpy(), layer.coefficient.detach().numpy(), layer.bias.detach().numpy()
    for image, channel, row, column in np.ndindex(outputs.shape):
        block = pixels[image, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = coefficient[channel] * block.sum() + bias[channel]
        assert math.isclose(outputs[image, channel, row, column], expected, rel_tol=1e-5, abs_tol=1e-6)


def test_subsampling_has_two_parameters_per_channel():
    layer = Subsampling(6)
    layer(torch.ones(1, 6, 4, 4)).sum().backward()
    assert torch.equal(layer.coefficient.grad, torch.full((6,), 16.0))
    assert torch.equal(layer.bias.grad, torch.full((6,), 4.0))
    assert sum(parameter.numel() for parameter in layer.parameters()) == 12


def test_sum_pool_sums_its_windows():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 11, 8, requires_grad=True)
    outputs = SumPool2d(3, stride=2)(inputs)
    windows = sliding_window_view(inputs.detach().numpy(), (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    np.testing.assert_allclose(outputs.detach().numpy(), windows.sum((4, 5)), rtol=1e-5, atol=1e-5)
    outputs.sum().backward()
    # Pixel (2, 2) is in four windows, (0, 0) in one, and the last column in none.
    assert inputs.grad[0, 0, 2, 2] == 4
    assert inputs.grad[0, 0, 0, 0] == 1
    assert not inputs.grad[:, :, :, 7].any()
    assert SumPool2d(2)(inputs).shape == (2, 3, 5, 4)  # the stride is the kernel size


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize(
    ("channels", "size", "stride"), [(12, 3, None), (12, 1, None), (11, 3, 2), (5, 5, 1), (7, 2, 3)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pool_across_channels(kind, channels, size, stride, memory_format):
    torch.manual_seed(0)
    inputs = torch.randn(2, channels, 4, 3).contiguous(memory_format=memory_format)
    outputs = ChannelPool(kind, size, stride)(inputs)
    windows = sliding_window_view(inputs.numpy(), size, axis=1)[:, :: stride or size]
    np.testing.assert_allclose(outputs.numpy(), NUMPY[kind](windows, axis=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NUMPY)
def test_gradient_of_pool_across_channels(kind):
    torch.manual_seed(0)
    # A permutation, so that values differ by more than gradcheck's step.
    inputs = (torch.randperm(2 * 7 * 6).double() / 10).view(2, 7, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(ChannelPool(kind, kernel_size=3, stride=2), inputs)


@pytest.mark.parametrize("pool", [ChannelPool("max", 3), nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3))])
def test_the_first_of_equal_maxima_gets_the_gradient(pool):
    inputs = torch.tensor([1.0, 5, 5, 5, 2, 5]).view(1, 6, 1, 1)
    axis = inputs if isinstance(pool, ChannelPool) else inputs.view(1, 1, 6)  # PyTorch's pooling, for comparison
    axis = axis.clone().requires_grad_()
    pool(axis).sum().backward()
    assert axis.grad.flatten().tolist() == [0, 1, 0, 1, 0, 0]


def test_overlapping_maxima_add_up_in_one_channel():
    inputs = torch.tensor([0.0, 0, 9, 0, 0]).view(1, 5, 1, 1).requires_grad_()
    ChannelPool("max", kernel_size=3, stride=1)(inputs).sum().backward()
    assert inputs.grad.flatten().tolist() == [0, 0, 3, 0, 0]


def test_maxout_learns_what_one_linear_layer_cannot():
    """Goodfellow et al. 2013, figure 1: the maximum of two linear functions can be the absolute value."""
    layer = nn.Sequential(nn.Conv2d(1, 2, kernel_size=1, bias=False), ChannelPool("max", kernel_size=2))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    values = torch.linspace(-3, 3, 49).view(1, 1, 7, 7)
    assert torch.equal(layer(values), values.abs())


def test_pool_across_channels_refuses_bad_arguments():
    with pytest.raises(UsageError, match=r"^kind=median is not known; use max, sum, average$"):
        ChannelPool("median", 2)
    with pytest.raises(
        UsageError, match=r"^kernel_size=4 is larger than the 3 channels of the input; make it smaller$"
    ):
        ChannelPool("max", 4)(torch.zeros(1, 3, 2, 2))


def local_response(inputs, size, alpha, beta, k):
    """The formula of Krizhevsky et al. 2012, §3.3, channel by channel, float64."""
    channels = inputs.shape[1]
    outputs = np.empty(inputs.shape)
    for i in range(channels):
        first, last = max(0, i - size // 2), min(channels - 1, i + size // 2)
        total = sum(inputs[:, j].astype(np.float64) ** 2 for j in range(first, last + 1))
        outputs[:, i] = inputs[:, i] / (k + alpha * total) ** beta
    return outputs


@pytest.mark.parametrize(("channels", "size"), [(9, 5), (5, 5), (2, 5), (1, 3), (6, 1), (4, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_response_norm_is_the_formula_of_the_paper(channels, size, memory_format):
    torch.manual_seed(0)
    inputs = (torch.randn(2, channels, 4, 3) * 40).contiguous(memory_format=memory_format)
    outputs = LocalResponseNorm(size, alpha=1e-3, beta=0.6, k=1.5)(inputs)
    np.testing.assert_allclose(outputs.numpy(), local_response(inputs.numpy(), size, 1e-3, 0.6, 1.5), rtol=1e-5)
    assert outputs.is_contiguous(memory_format=memory_format)


def test_response_norm_has_the_paper_s_constants_and_alpha_multiplies_the_sum():
    torch.manual_seed(0)
    inputs = torch.randn(1, 16, 3, 3) * 100
    outputs = LocalResponseNorm()(inputs)
    np.testing.assert_allclose(outputs.numpy(), local_response(inputs.numpy(), 5, 1e-4, 0.75, 2), rtol=1e-5)
    torch.testing.assert_close(outputs, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)(inputs))
    assert not torch.allclose(outputs, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)(inputs), rtol=0.05)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_response_norm_has_first_and_second_derivatives(memory_format):
    torch.manual_seed(0)
    layer = LocalResponseNorm(size=3, alpha=0.3, beta=0.75, k=1)
    inputs = torch.randn(2, 5, 2, 2, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)


def test_response_norm_of_a_photograph_has_pytorch_s_gradient(shared_data: Path):
    path = min((shared_data / "imagenet-samples").glob("*.JPEG"))
    picture = decode_to_pixels(path.read_bytes())
    torch.manual_seed(0)
    maps = nn.Conv2d(3, 96, kernel_size=11, stride=4)(torch.from_numpy(picture).permute(2, 0, 1)[None].float()).detach()
    weights, results = torch.randn_like(maps), []
    for layer in (LocalResponseNorm(), nn.LocalResponseNorm(5, alpha=5e-4, k=2)):
        inputs = maps.clone().requires_grad_()
        outputs = layer(inputs)
        (outputs * weights).sum().backward()
        results.append((outputs.detach(), inputs.grad))
    torch.testing.assert_close(results[0], results[1])


def test_response_norm_is_exported_as_aten_operations():
    layer, example = LocalResponseNorm(), torch.randn(2, 8, 3, 3)
    program = torch.export.export(layer, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"} == {"aten"}
    inputs = torch.randn(5, 8, 3, 3)
    torch.testing.assert_close(program.module()(inputs), layer(inputs))


def test_response_norm_needs_an_odd_size():
    with pytest.raises(UsageError, match=r"^size=4 must be odd, .*; use 5$"):
        LocalResponseNorm(size=4)
