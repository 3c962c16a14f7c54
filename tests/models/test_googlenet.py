import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svertka.graph.trace import count
from svertka.layers import LocalResponseNorm
from svertka.models.googlenet import AuxiliaryPool, Branches, GoogLeNet, GoogLeNetBN, SideExits

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
    assert count(on_meta(GoogLeNet), (1, 3, 224, 224)).multiply_adds == 1_582_671_872


def test_what_makes_it_that_network():
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


def test_what_published_weights_change():
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
def test_the_small_form_is_the_same_network_but_for_its_entrance(builder):
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


def test_weights_start_as_glorot_and_bengio_say():
    torch.manual_seed(0)
    network = GoogLeNet()
    weight = network.get_parameter("inception5b.branch2.1.conv.weight").detach()
    bound = (6 / (9 * 192 + 9 * 384)) ** 0.5
    assert 0.999 * bound < float(weight.abs().max()) <= bound
    # 663,552 uniform numbers: their standard deviation is known to 0.1 %.
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.005)
    assert all(p.abs().sum() == 0 for name, p in network.named_parameters() if name.endswith("bias"))


def test_auxiliary_pool_is_the_paper_s_where_its_grid_fits():
    maps = torch.randn(2, 8, 14, 14)
    assert torch.equal(AuxiliaryPool(4)(maps), F.avg_pool2d(maps, 5, stride=3))
    for size in (1, 2, 4, 5, 7, 13, 20):
        maps = torch.full((1, 2, size, size), 3.0)
        grid = AuxiliaryPool(4)(maps)
        assert grid.shape == (1, 2, 4, 4)
        assert torch.allclose(grid, torch.tensor(3.0))


def test_branches_stack_channels_in_their_order():
    one, two, left, right = (nn.Conv2d(4, 4, 1) for _ in range(4))
    branches = Branches({"first": one}, {"second": two, "fork_2": (left, right)})
    inputs = torch.randn(2, 4, 5, 5)
    assert torch.equal(branches(inputs), torch.cat([one(inputs), left(two(inputs)), right(two(inputs))], dim=1))
    assert [name for name, _layer in branches.named_children()] == ["first", "second", "fork_2a", "fork_2b"]


def test_side_exits_leave_the_row_as_it_is():
    class Row(SideExits):
        auxiliaries = ("exit",)

    row = Row({"twice": nn.Linear(1, 1, bias=False), "exit": nn.Flatten(), "halved": nn.Linear(1, 1, bias=False)})
    nn.init.constant_(row.twice.weight, 2.0)
    nn.init.constant_(row.halved.weight, 0.5)
    outputs, at_exit = row(torch.tensor([[3.0]]))
    assert (outputs.item(), at_exit.item()) == (3.0, 6.0)
    assert row.eval()(torch.tensor([[3.0]])).item() == 3.0
