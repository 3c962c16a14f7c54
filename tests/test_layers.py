import math

import numpy as np
import torch

from svertka.layers import ScaledTanh, Subsampling


def test_scaled_tanh_keeps_one_and_has_its_largest_curvature_there():
    values = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    squashed = ScaledTanh()(values)
    # 1.7159 is rounded to five digits in the paper
    assert math.isclose(float(squashed[5000]), 1, abs_tol=2e-5)
    curvature = squashed[2:] - 2 * squashed[1:-1] + squashed[:-2]
    assert abs(abs(float(values[1 + int(curvature.abs().argmax())])) - 1) < 0.02


def test_subsampling_adds_four_neighbours_for_odd_sizes_too():
    torch.manual_seed(0)
    layer, inputs = Subsampling(3), torch.randn(2, 3, 7, 6)
    outputs = layer(inputs).detach().numpy()
    assert outputs.shape == (2, 3, 3, 3)
    pixels, coefficient, bias = inputs.numpy(), layer.coefficient.detach().numpy(), layer.bias.detach().numpy()
    for image, channel, row, column in np.ndindex(outputs.shape):
        block = pixels[image, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = coefficient[channel] * block.sum() + bias[channel]
        assert math.isclose(outputs[image, channel, row, column], expected, rel_tol=1e-5, abs_tol=1e-6)


def test_subsampling_trains_two_numbers_a_map():
    layer = Subsampling(6)
    layer(torch.ones(1, 6, 4, 4)).sum().backward()
    assert torch.equal(layer.coefficient.grad, torch.full((6,), 16.0))
    assert torch.equal(layer.bias.grad, torch.full((6,), 4.0))
    assert sum(parameter.numel() for parameter in layer.parameters()) == 12
