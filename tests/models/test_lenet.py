import math

import pytest
import torch
import torch.nn.functional as F

from svertka.graph.summary import trace
from svertka.models.lenet import C3_CONNECTIONS, LeNet5, PartiallyConnectedConv2d, RadialBasisOutput, make_class_codes

# Table I as printed: a row for each feature map of S2, a column for each of C3.
TABLE = """
    X...XXX..XXXX.XX
    XX...XXX..XXXX.X
    XXX...XXX..X.XXX
    .XXX..XXXX..X.XX
    ..XXX..XXXX.XX.X
    ...XXX..XXXX.XXX
"""


@pytest.fixture
def network():
    torch.manual_seed(0)
    return LeNet5()


def test_connections_are_those_of_table_1():
    rows = TABLE.split()
    table = [[row for row in range(6) if rows[row][column] == "X"] for column in range(16)]
    assert [list(seen) for seen in C3_CONNECTIONS] == table


def test_parameters_layer_by_layer(network):
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    expected = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert {name: number for name, number in counts.items() if number} == expected
    assert sum(expected.values()) == 60_000


def test_maps_have_the_sizes_of_figure_2(network):
    shapes = {layer.name: layer.shape[1:] for layer in trace(network, (1, 1, 32, 32)).layers}
    assert [shapes[name] for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")] == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,),
    ]  # fmt: skip


def test_c3_is_a_convolution_over_the_connected_maps():
    torch.manual_seed(1)
    layer, inputs = PartiallyConnectedConv2d(6, C3_CONNECTIONS).double(), torch.randn(2, 6, 14, 14, dtype=torch.float64)
    separate = [weight.detach().clone().requires_grad_() for weight in layer.weight]
    numbers = iter(separate)
    outputs = []
    for seen, bias in zip(C3_CONNECTIONS, layer.bias.detach(), strict=True):
        kernels = torch.stack([next(numbers) for _ in seen])
        outputs.append(F.conv2d(inputs[:, list(seen)], kernels[None]) + bias)
    expected = torch.cat(outputs, dim=1)
    upstream = torch.randn_like(expected)
    actual = layer(inputs)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    actual.backward(upstream)
    expected.backward(upstream)
    gradient = torch.stack([weight.grad for weight in separate])
    assert torch.allclose(layer.weight.grad, gradient, rtol=0, atol=1e-11)


def test_scores_are_negative_squared_distances():
    torch.manual_seed(2)
    states = torch.randn(5, 84)
    logits = RadialBasisOutput(make_class_codes(10))(states)
    assert torch.allclose(
        logits, -torch.cdist(states.double(), make_class_codes(10).double()).square().float(), rtol=1e-5
    )
    assert logits.max() <= 0
    assert torch.equal(RadialBasisOutput(make_class_codes(10))(make_class_codes(10)).argmax(dim=1), torch.arange(10))


@pytest.mark.parametrize("classes", [1, 2, 10, 37, 1000])
def test_codes_are_plus_or_minus_one_and_far_apart(classes):
    table = make_class_codes(classes)
    assert table.shape == (classes, 84)
    assert table.abs().eq(1).all()
    differing = (84 - table @ table.T) / 2 + 84 * torch.eye(classes)
    # Digits that look alike have codes that are alike; hashed ones differ in 42 ± 4.6 bits.
    assert differing.min() >= (8 if classes == 10 else 16)


def test_a_class_keeps_its_code_whatever_the_count():
    assert torch.equal(make_class_codes(100)[:7], make_class_codes(7))
    # The rule by hand, `printf 'class 0' | sha256sum`: another Python or PyTorch must give the same network.
    bits = f"{0x47B2481D4655B4A3423CCD:088b}"[:84]
    assert make_class_codes(2)[0].tolist() == [1.0 if bit == "1" else -1.0 for bit in bits]


def test_weights_start_uniform_within_their_bound(network):
    fan_in = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, inputs in fan_in.items():
        for parameter in network.get_submodule(name).parameters():
            assert 0 < parameter.abs().max() <= 2.4 / inputs
    bounds = torch.tensor([2.4 / (25 * len(seen)) for seen in C3_CONNECTIONS for _ in seen])
    largest = network.c3.weight.detach().abs().amax(dim=(1, 2))
    assert (largest <= bounds).all()
    assert (largest > 0.7 * bounds).all()
    assert math.isclose(float(network.c5.weight.detach().std()), 2.4 / 400 / math.sqrt(3), rel_tol=0.02)


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 16, 2), (3, 28, 10), (3, 33, 5), (1, 64, 100)])
def test_other_inputs(channels, size, classes):
    logits = LeNet5(classes, channels, size)(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, classes)
