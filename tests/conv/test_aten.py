"""PyTorch's algorithm where PyTorch itself is wrong: a crash would end the test run, so the cases run in a process."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import svertka
from fork_server import run_python
from svertka.conv import aten, sparse_matrix
from svertka.conv.api import conv2d
from svertka.conv_shape import ConvShape

TRAINING = """
import torch
import svertka
from svertka.conv import aten
from svertka.conv.api import conv2d
from svertka.conv_shape import ConvShape

last = torch.channels_last
for channels in (2, 3, 8, 15):
    for size in (64, 112, 160):
        x = torch.randn(8, channels, size, size).contiguous(memory_format=last)
        layer = torch.nn.Conv2d(channels, 16, 1, stride=2).to(memory_format=last)
        torch.func.grad(lambda weight: conv2d(x, weight, stride=2).sum())(layer.weight.detach())
        svertka.accelerate(layer)(x).square().sum().backward()
        exact = torch.nn.Conv2d(channels, 16, 1, stride=2)
        exact.load_state_dict(layer.state_dict())
        exact.double()(x.double().contiguous()).square().sum().backward()
        error = (layer.weight.grad - exact.weight.grad).abs().max() / exact.weight.grad.abs().max()
        assert error < 1e-4, (channels, size, error)
        shape = ConvShape.of(x.shape, layer.weight.shape, stride=2)
        aten.weight_gradient(torch.randn(shape.output).contiguous(memory_format=last), x, shape)
print("right")
"""


def test_a_strided_1x1_convolution_of_few_channels_trains_channels_last():
    done = run_python(["-c", TRAINING], text=True)
    assert done.stdout == "right\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("padding", [0, (2, 1)])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (4, 2)])
def test_its_gradients_are_those_of_the_definition(stride, padding):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
    shape = ConvShape.of(x.shape, (4, 3, 1, 1), stride, padding)
    gradient = torch.randn(shape.output, dtype=torch.float64)
    assert aten.weight_gradient_corrupts_memory(shape)
    torch.testing.assert_close(
        aten.weight_gradient(gradient, x, shape),
        sparse_matrix.weight_gradient(gradient, x, shape).reshape(shape.weight),
    )
    weight = torch.randn(shape.weight, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    ours, theirs = (
        torch.autograd.grad(function(x, weight, None, stride, padding), (x, weight), gradient)
        for function in (conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, theirs)


def test_other_convolutions_are_left_to_pytorch():
    for inputs, weight, settings in (
        ((2, 16, 9, 9), (4, 16, 1, 1), {"stride": 2}),
        ((2, 3, 9, 9), (4, 3, 1, 1), {}),
        ((2, 3, 9, 9), (4, 3, 3, 3), {"stride": 2}),
        ((2, 6, 9, 9), (4, 3, 1, 1), {"stride": 2, "groups": 2}),
    ):
        assert not aten.weight_gradient_corrupts_memory(ConvShape.of(inputs, weight, **settings))


def test_an_accelerated_layer_left_to_pytorch_runs_its_own_method(monkeypatch):
    layer, x = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5)
    svertka.accelerate(layer)
    with torch.no_grad():  # no other algorithm is timed for the result of a 1×1 convolution
        expected = layer(x)
        monkeypatch.setattr("svertka.conv.accelerate.conv2d", None)
        assert torch.equal(layer(x), expected)
