import numpy as np
import pytest
import torch
from torch import nn

from svertka.errors import UsageError
from svertka.graph.summary import measure_network_size
from svertka.models.airbench import AirBench


@pytest.fixture(scope="module")
def images(photo_tiles):
    """300 tiles of photographs, normalized, (300, 3, 32, 32)."""
    some = torch.from_numpy(photo_tiles[:300]).permute(0, 3, 1, 2).float() / 255
    return (some - some.mean(dim=(0, 2, 3), keepdim=True)) / some.std(dim=(0, 2, 3), keepdim=True)


def test_published_counts():
    with torch.device("meta"):
        network = AirBench()
    size = measure_network_size(network, (1, 3, 32, 32))
    assert size.parameters == 1_972_792  # the paper says 1.97 million
    assert size.trainable == size.parameters - 24 * 12 - 2 * (64 + 256 + 256)  # filters and scales are fixed
    # §1: 3.6e14 operations for 9.9 epochs of 50,000; forward and both gradients, two operations each
    assert size.multiply_adds * 6 * 9.9 * 50_000 == pytest.approx(3.6e14, rel=0.03)


@pytest.mark.parametrize(
    ("size", "channels", "classes", "sides"),
    [(32, 3, 10, [31, 15, 7, 3, 1]), (33, 1, 2, [32, 16, 8, 4, 1]), (9, 3, 5, [8, 4, 2, 1, 1])],
)
def test_maps(size, channels, classes, sides):
    network, found = AirBench(classes, channels).eval(), []
    for layer in (network.whitening, network.layer1, network.layer2, network.layer3, network.maxpool):
        layer.register_forward_hook(lambda _layer, _inputs, maps: found.append(maps.shape[2]))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)
    assert found == sides
    assert network.whitening.out_channels == 8 * channels


def test_whitening_whitens(images):
    network = AirBench()
    network.whiten(images)
    values = network.whitening(images).detach().transpose(0, 1).flatten(1).double()
    assert torch.equal(values[12:], -values[:12])
    moments = (values[:12] @ values[:12].T / values.shape[1]).numpy()
    # The oracle: variances of the patches, from NumPy's singular values. Each comes to v / (v + eps).
    patches = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    variances = np.linalg.svd(rows, compute_uv=False) ** 2 / len(rows)
    np.testing.assert_allclose(moments, np.diag(variances / (variances + 5e-4)), atol=1e-4)


def test_whitening_does_not_depend_on_layout(images):
    first, second = AirBench(), AirBench().to(memory_format=torch.channels_last)
    first.whiten(images)
    second.whiten(images.to(memory_format=torch.channels_last))
    assert torch.equal(first.whitening.weight, second.whitening.weight)
    assert not first.whitening.weight.requires_grad
    assert first.whitening.bias.requires_grad


def test_before_whitening_filters_are_orthogonal():
    weight = AirBench(channels=1).whitening.weight.flatten(1)
    assert torch.allclose(weight[:4] @ weight[:4].T, torch.eye(4), atol=1e-5)
    assert torch.equal(weight[4:], -weight[:4])


@pytest.mark.parametrize("shape", [(3, 32, 32), (5, 1, 32, 32), (5, 3, 1, 32), (0, 3, 32, 32)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(
        UsageError,
        match=r"cannot be used for whitening; they must be \(N, 3, H, W\) with",
    ):
        AirBench().whiten(torch.zeros(shape))


def test_convolutions_start_as_the_identity():
    torch.manual_seed(0)
    network, inputs = AirBench(), torch.randn(1, 24, 6, 6)
    outputs = network.layer1.conv1(inputs)
    assert torch.equal(outputs[:, :24], inputs)
    assert torch.equal(network.layer3.conv2(outputs.repeat(1, 4, 1, 1)), outputs.repeat(1, 4, 1, 1))
    # The remaining filters are uniform within 1 / √fan-in.
    weight, bound = network.layer2.conv1.weight[64:].detach(), (9 * 64) ** -0.5
    assert 0.999 * bound < weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_batch_norms_learn_a_bias_alone():
    norms = [layer for layer in AirBench().modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 6
    for layer in norms:
        assert (layer.eps, layer.momentum) == (1e-12, pytest.approx(0.4))
        assert torch.equal(layer.weight, torch.ones_like(layer.weight))
        assert not layer.weight.requires_grad
        assert layer.bias.requires_grad


def test_logits_are_a_ninth_of_the_last_layers():
    network, found = AirBench().eval(), []
    network.linear.register_forward_hook(lambda _layer, _inputs, outputs: found.append(outputs))
    logits = network(torch.randn(4, 3, 32, 32))
    torch.testing.assert_close(logits * 9, found[0])


def test_bf16_and_channels_last_agree_with_float32(images):
    torch.manual_seed(0)
    network = AirBench().eval()
    network.whiten(images)
    with torch.no_grad():
        expected = network(images[:16])
    network = network.to(memory_format=torch.channels_last)
    inputs = images[:16].to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(inputs)
    # bfloat16 has 8 bits: each rounding adds 0.4 %, and there are a dozen in sequence.
    assert float((rough - expected).norm() / expected.norm()) < 0.03
