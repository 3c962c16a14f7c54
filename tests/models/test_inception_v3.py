import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svertka.graph.summary import measure_network_size
from svertka.models.inception_v3 import InceptionV3, make_avg_pool


@pytest.fixture
def network():
    """Without values: shapes and counts cost nothing."""
    with torch.device("meta"):
        return InceptionV3()


def test_published_counts_of_parameters(network):
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert sum(counts.values()) == 27_161_264
    assert sum(number for name, number in counts.items() if name not in InceptionV3.auxiliaries) == 23_834_568
    # The abstract: 5 billion multiply-adds, less than 25 million parameters.
    assert 5e9 < measure_network_size(network, (1, 3, 299, 299)).multiply_adds < 6e9


def test_maps_have_the_sizes_of_table_1(network):
    shapes = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(
            lambda _layer, _inputs, maps, name=name: shapes.update({name: tuple(maps.shape[1:])})
        )
    network.eval()(torch.empty(2, 3, 299, 299, device="meta"))
    expected = {
        "Conv2d_1a_3x3": (32, 149, 149), "Conv2d_2a_3x3": (32, 147, 147), "Conv2d_2b_3x3": (64, 147, 147),
        "maxpool1": (64, 73, 73), "Conv2d_4a_3x3": (192, 71, 71), "maxpool2": (192, 35, 35),
        "Mixed_5b": (256, 35, 35), "Mixed_5c": (288, 35, 35), "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17), "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8), "Mixed_7c": (2048, 8, 8), "avgpool": (2048, 1, 1),
    }  # fmt: skip
    assert {name: shapes[name] for name in expected} == expected
    assert "AuxLogits" not in shapes


def test_names_are_the_published_ones(network):
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # As torchvision's file has them.
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6a.branch3x3.bn.running_mean"] == (384,)
    assert shapes["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert shapes["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7b.branch3x3_2a.conv.weight"] == (384, 384, 1, 3)
    assert shapes["Mixed_7b.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Mixed_7c.branch_pool.conv.weight"] == (192, 2048, 1, 1)
    assert shapes["AuxLogits.conv1.conv.weight"] == (768, 128, 5, 5)
    # 96 convolutions with their norms, and two dense layers
    assert len(shapes) == 96 * 6 + 4
    assert {layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize(("size", "channels", "classes"), [(299, 3, 1000), (75, 1, 2), (128, 3, 10), (400, 3, 5)])
def test_a_tuple_in_training_only_at_any_size(size, channels, classes):
    with torch.device("meta"):
        network = InceptionV3(classes, channels, size)
    pictures = torch.empty(2, channels, size, size, device="meta")
    outputs = network.train()(pictures)
    assert isinstance(outputs, tuple)
    assert [tuple(scores.shape) for scores in outputs] == [(2, classes)] * 2
    assert network.eval()(pictures).shape == (2, classes)


@pytest.mark.usefixtures("quiet")
def test_both_losses_reach_the_first_layer():
    torch.manual_seed(0)
    network = InceptionV3(classes=2)
    logits, auxiliary = network(torch.randn(2, 3, 75, 75))
    labels = torch.tensor([0, 1])
    first = network.get_parameter("Conv2d_1a_3x3.conv.weight")
    gradients = torch.autograd.grad(F.cross_entropy(auxiliary, labels), first, retain_graph=True)
    gradients += torch.autograd.grad(F.cross_entropy(logits, labels), first)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.equal(*gradients)


def test_each_layer_is_used_once(network):
    uses = {}
    leaves = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
    for name, layer in leaves.items():
        layer.register_forward_hook(lambda *_, name=name: uses.update({name: uses.get(name, 0) + 1}))
    network.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert uses == dict.fromkeys(leaves, 1)


def test_average_pooling_counts_the_padding():
    assert make_avg_pool()(torch.ones(1, 1, 5, 5))[0, 0, 0, 0] == pytest.approx(4 / 9)


def test_initial_weights_have_he_s_variance_and_the_auxiliary_s_are_small():
    torch.manual_seed(0)
    network = InceptionV3()
    # A million and a quarter normal numbers: the standard error of their standard deviation is 0.1 %.
    weight = network.get_parameter("Mixed_7c.branch3x3dbl_2.conv.weight").detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * 448)) ** 0.5, rel=0.005)
    assert float(network.get_parameter("AuxLogits.conv1.conv.weight").detach().std()) == pytest.approx(0.01, rel=0.005)
    assert float(network.get_parameter("AuxLogits.fc.weight").detach().std()) == pytest.approx(0.001, rel=0.005)
