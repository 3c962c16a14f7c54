import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svertka.graph.summary import measure_network_size
from svertka.layers import LocalResponseNorm
from svertka.models.googlenet import AuxAvgPool2d, GoogLeNet, GoogLeNetBN, Inception

# Table 1 as printed: output size, its channels, millions of operations. In two rows the operations are not those of the
# widths beside them: 34M for conv1 (7·7·3·64 weights at 112×112 give 118M) and 54M for 5a (51M).
TABLE = {
    "conv1": (112, 64, 118),
    "conv3": (56, 192, 360),  # with conv2, its 1×1 reduction
    "inception3a": (28, 256, 128),
    "inception3b": (28, 480, 304),
    "inception4a": (14, 512, 73),
    "inception4b": (14, 512, 88),
    "inception4c": (14, 512, 100),
    "inception4d": (14, 528, 119),
    "inception4e": (14, 832, 170),
    "inception5a": (7, 832, 51),
    "inception5b": (7, 1024, 71),
}


def on_meta(builder, **arguments):
    """The network without values: shapes and counts cost nothing."""
    with torch.device("meta"):
        return builder(**arguments)


def shapes_of(network, size, channels=3):
    """The shape behind each layer of the first level, (C, H, W), in inference."""
    shapes = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(
            lambda _layer, _inputs, maps, name=name: shapes.update({name: tuple(maps.shape[1:])})
        )
    network.eval()(torch.empty(2, channels, size, size, device="meta"))
    return shapes


@pytest.mark.parametrize(
    ("builder", "without", "with_auxiliaries"),
    [(GoogLeNet, 6_998_552, 13_378_280), (GoogLeNetBN, 6_624_904, 13_004_888)],
)
def test_published_counts_of_parameters(builder, without, with_auxiliaries):
    network = on_meta(builder)
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert sum(counts.values()) == with_auxiliaries
    assert sum(number for name, number in counts.items() if name not in builder.auxiliaries) == without


def test_table_1_row_by_row():
    network = on_meta(GoogLeNet)
    shapes = shapes_of(network, 224)
    for name, (side, channels, millions) in TABLE.items():
        assert shapes[name] == (channels, side, side)
        layers = network.get_submodule(name), *([network.conv2] if name == "conv3" else [])
        weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() == 4)
        # The paper cuts or rounds to millions.
        assert weights * side**2 / 1e6 == pytest.approx(millions, abs=1)


def test_multiply_adds_are_the_paper_s_billion_and_a_half():
    # §1: a budget of 1.5 billion; by hand 1,582,671,872.
    assert measure_network_size(on_meta(GoogLeNet), (1, 3, 224, 224)).multiply_adds == 1_582_671_872


def test_layers_and_their_order():
    network = on_meta(GoogLeNet, classes=10)
    names = [name for name, _layer in network.named_children()]
    assert sum(name.startswith("inception") for name in names) == 9
    assert names.index("aux1") == names.index("inception4a") + 1
    assert names.index("aux2") == names.index("inception4d") + 1
    assert [names[names.index(norm) - 1] for norm in ("norm1", "norm2")] == ["maxpool1", "conv3"]
    assert isinstance(network.norm1, LocalResponseNorm)
    dense = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    assert dense == {"fc", "aux1.fc1", "aux1.fc2", "aux2.fc1", "aux2.fc2"}
    assert (network.dropout.p, network.aux1.dropout.p, network.aux2.dropout.p) == (0.4, 0.7, 0.7)
    kernels = {layer.kernel_size[0] for layer in network.modules() if isinstance(layer, nn.Conv2d)}
    assert kernels == {1, 3, 5, 7}


def test_departures_of_the_published_weights():
    network = on_meta(GoogLeNetBN)
    layers = list(network.modules())
    assert not any(isinstance(layer, LocalResponseNorm) for layer in layers)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 59
    assert {norm.eps for norm in norms} == {1e-3}
    assert not any(layer.kernel_size == (5, 5) for layer in convolutions)
    assert network.maxpool4.kernel_size == 2
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # As torchvision's file has them.
    assert shapes["inception4b.branch3.1.conv.weight"] == (64, 24, 3, 3)
    assert shapes["inception5b.branch4.1.bn.running_var"] == (128,)
    assert shapes["aux2.conv.conv.weight"] == (128, 528, 1, 1)
    assert shapes["aux1.fc1.weight"] == (1024, 2048)
    assert len(shapes) == 12 + 59 * 6 - 2


@pytest.mark.parametrize("builder", [GoogLeNet, GoogLeNetBN])
@pytest.mark.parametrize(
    ("built", "size", "channels", "classes"),
    [
        (224, 224, 3, 1000),
        (224, 31, 1, 2),
        (64, 64, 3, 7),
        (224, 333, 3, 5),
        (32, 32, 3, 10),
        (28, 28, 1, 10),
        (32, 4, 3, 3),
    ],
)
def test_a_tuple_in_training_only_at_any_size(builder, built, size, channels, classes):
    network = on_meta(builder, classes=classes, channels=channels, size=built)
    pictures = torch.empty(2, channels, size, size, device="meta")
    outputs = network.train()(pictures)
    assert isinstance(outputs, tuple)
    assert [tuple(scores.shape) for scores in outputs] == [(2, classes)] * 3
    assert network.eval()(pictures).shape == (2, classes)


@pytest.mark.parametrize("builder", [GoogLeNet, GoogLeNetBN])
def test_the_small_form_differs_in_its_stem_only(builder):
    small, large = on_meta(builder, size=32), on_meta(builder)
    shapes = shapes_of(small, 32)
    assert shapes["inception3b"] == (480, 32, 32)
    assert shapes["inception4e"] == (832, 16, 16)
    assert shapes["inception5b"] == (1024, 8, 8)
    differing = {name for name, tensor in small.state_dict().items() if tensor.shape != large.state_dict()[name].shape}
    assert differing == {"conv1.conv.weight"}
    assert small.state_dict().keys() == large.state_dict().keys()


@pytest.mark.usefixtures("quiet")
def test_auxiliary_losses_reach_what_comes_before_them_and_nothing_else():
    torch.manual_seed(0)
    network = GoogLeNet(classes=3, size=32)
    _logits, first, _second = network(torch.randn(2, 3, 32, 32))
    F.cross_entropy(first, torch.tensor([0, 2])).backward()
    reached = {name for name, layer in network.named_children() if any(p.grad is not None for p in layer.parameters())}
    assert reached == {"conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a", "aux1"}


def test_inception_concatenates_its_branches_in_the_order_of_table_1():
    torch.manual_seed(0)
    module, inputs = Inception(6, 5, 2, 4, 2, 3, 1), torch.randn(2, 6, 7, 7)
    for parameter in module.parameters():
        nn.init.normal_(parameter)

    def conv(layer, maps):
        return F.conv2d(maps, layer.conv.weight, layer.conv.bias, padding=layer.conv.kernel_size[0] // 2).relu()

    expected = [
        conv(module.branch1, inputs),
        conv(module.branch2[1], conv(module.branch2[0], inputs)),
        conv(module.branch3[1], conv(module.branch3[0], inputs)),
        conv(module.branch4[1], F.max_pool2d(inputs, 3, 1, 1)),
    ]
    assert [maps.shape[1] for maps in expected] == [5, 4, 3, 1]
    torch.testing.assert_close(module(inputs), torch.cat(expected, dim=1))


def test_auxiliaries_are_not_computed_in_inference():
    network, ran = on_meta(GoogLeNet), []
    for name in network.auxiliaries:
        network.get_submodule(name).register_forward_hook(lambda *_: ran.append(1))
    network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert ran == []
    network.train()(torch.empty(1, 3, 224, 224, device="meta"))
    assert len(ran) == 2


def test_each_layer_is_used_once():
    network, uses = on_meta(GoogLeNetBN), {}
    for name, layer in network.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda *_, name=name: uses.update({name: uses.get(name, 0) + 1}))
    network.train()(torch.empty(2, 3, 224, 224, device="meta"))
    leaves = {name for name, layer in network.named_modules() if not list(layer.children())}
    assert uses == dict.fromkeys(leaves, 1)


def test_initial_weights_are_glorot_s():
    torch.manual_seed(0)
    network = GoogLeNet()
    weight = network.get_parameter("inception5b.branch2.1.conv.weight").detach()
    bound = (6 / (9 * 192 + 9 * 384)) ** 0.5
    assert 0.999 * bound < float(weight.abs().max()) <= bound
    # 663,552 uniform numbers: the standard error of their standard deviation is 0.1 %.
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.005)
    assert all(p.abs().sum() == 0 for name, p in network.named_parameters() if name.endswith("bias"))


def test_auxiliary_pooling_is_the_paper_s_at_14x14():
    maps = torch.randn(2, 8, 14, 14)
    assert torch.equal(AuxAvgPool2d(4)(maps), F.avg_pool2d(maps, 5, stride=3))
    for size in (1, 2, 4, 5, 7, 13, 20):
        maps = torch.full((1, 2, size, size), 3.0)
        grid = AuxAvgPool2d(4)(maps)
        assert grid.shape == (1, 2, 4, 4)
        assert torch.allclose(grid, torch.tensor(3.0))
