import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svertka.errors import UsageError
from svertka.graph.receptive_field import ReceptiveFieldGrid
from svertka.graph.summary import measure_network_size, trace
from svertka.models.registry import MODELS, find_model
from svertka.models.resnet import Bottleneck

LENET5 = (
    28 * 28 * 6 * 25
    + 10 * 10 * 16 * 6 * 25  # computed with all 96 kernels, of which the paper connects 60
    + 120 * 16 * 25
    + 84 * 120
)
RESNET20 = (  # 40.6 M; the 40.8 M that are usually quoted include batch norm
    32 * 32 * 16 * 27
    + 6 * (32 * 32 * 16 * 144)
    + 16 * 16 * 32 * 144 + 5 * (16 * 16 * 32 * 288)
    + 8 * 8 * 64 * 288 + 5 * (8 * 8 * 64 * 576)
    + 64 * 10
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("mlp", 238_510, 784 * 300 + 300 * 10), ("lenet5", 60_000, LENET5), ("resnet20", 269_722, RESNET20)],
)
def test_counts_are_those_of_hand_arithmetic(name, parameters, multiply_adds):
    model = MODELS[name]
    counted = measure_network_size(model.build(), (1, *model.input_shape))
    assert (counted.parameters, counted.trainable, counted.multiply_adds) == (parameters, parameters, multiply_adds)


def test_multiply_adds_grow_with_the_batch_and_fall_with_groups():
    network = nn.Conv2d(8, 8, 3, groups=4, bias=False)
    assert measure_network_size(network, (5, 8, 6, 6)).multiply_adds == 5 * 4 * 4 * 8 * 2 * 9


def test_frozen_parameters_are_counted_separately():
    network = MODELS["resnet20"].build()
    network.conv1.requires_grad_(False)
    counted = measure_network_size(network, (1, 3, 32, 32))
    assert counted.parameters - counted.trainable == 432


def test_the_network_is_not_changed():
    network = MODELS["resnet20"].build().train()
    network.layer1.eval()
    before = copy.deepcopy(network)
    measure_network_size(network, (1, 3, 32, 32))
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    after = network.state_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after[name]), name


class Toy(nn.Module):
    """What people write: functions between modules, in place, again, on branches, with parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(4, 4, kernel_size=3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.drop = nn.Dropout()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.conv(inputs))
        carried = self.shortcut(maps)
        maps = F.relu(self.again(maps), inplace=True)
        maps = self.again(maps)
        maps += carried
        maps = self.relu(maps) * self.scale
        left, right = maps.chunk(2, dim=1)
        joined = torch.cat([left, F.avg_pool2d(right, 3, stride=1, padding=1), maps], dim=1)
        return self.head(self.drop(F.adaptive_max_pool2d(joined, 1).squeeze(3)))


def test_functions_between_modules_are_layers_and_edges_go_through_them():
    layers = trace(Toy(), (1, 3, 6, 6)).layers
    assert [(layer.name, layer.kind, layer.inputs) for layer in layers] == [
        ("conv", "Conv2d", ("input",)),
        ("relu", "ReLU", ("conv",)),
        ("shortcut", "Sequential", ("relu",)),
        ("again", "Conv2d", ("relu",)),
        ("relu:2", "relu", ("again",)),
        ("again:2", "Conv2d", ("relu:2",)),
        ("add", "add", ("again:2", "shortcut")),
        ("relu:3", "ReLU", ("add",)),
        ("mul", "mul", ("relu:3",)),
        ("avg_pool2d", "avg_pool2d", ("mul",)),
        ("cat", "cat", ("mul", "avg_pool2d")),
        ("adaptive_max_pool2d", "adaptive_max_pool2d", ("cat",)),
        ("drop", "Dropout", ("adaptive_max_pool2d",)),
        ("head.0", "Flatten", ("drop",)),
        ("head.1", "Linear", ("head.0",)),
    ]


def test_shapes_parameters_and_sums_of_layers():
    network = Toy()
    traced = trace(network, (1, 3, 6, 6))
    layers = {layer.name: layer for layer in traced.layers}
    assert layers["conv"].shape == (1, 4, 6, 6)
    assert layers["cat"].shape == (1, 8, 6, 6)
    assert (layers["conv"].parameters, layers["conv"].multiply_adds) == (112, 36 * 4 * 27)
    # A module that runs twice has its parameters once.
    assert (layers["again"].parameters, layers["again"].multiply_adds) == (144, 36 * 4 * 36)
    assert (layers["again:2"].parameters, layers["again:2"].multiply_adds) == (0, 36 * 4 * 36)
    assert layers["mul"].parameters == 4
    assert traced.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (
        traced.multiply_adds
        == measure_network_size(network, (1, 3, 6, 6)).multiply_adds
        == 36 * 4 * (27 + 36 + 36) + 16
    )


def test_fields_of_layers():
    layers = {layer.name: layer for layer in trace(Toy(), (1, 3, 6, 9)).layers}
    assert [field.grid for field in layers["add"].fields] == [ReceptiveFieldGrid(-3, 1, 7)] * 2
    assert [field.of(0) for field in layers["cat"].fields] == [(0, 4), (0, 4)]
    assert [field.grid for field in layers["head.1"].fields] == [None, None]
    assert [field.intervals for field in layers["head.1"].fields] == [((0, 5),), ((0, 8),)]


def test_values_that_are_overwritten_are_read_from_the_layer_that_wrote_them():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.relu, self.one, self.other = nn.Identity(), nn.ReLU(inplace=True), *conv(2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            maps = self.one(inputs)
            self.relu(self.same(maps))
            maps[:, :1].mul_(maps[:, 1:2].mean())
            return self.other(maps)

    layers = {layer.name: layer for layer in trace(Overwriting(), (1, 2, 5, 5)).layers}
    assert layers["relu"].inputs == ("same",)
    assert layers["mean"].inputs == ("relu",)
    assert set(layers["other"].inputs) == {"relu", "mul"}
    assert all(field.whole for field in layers["other"].fields)


def conv(times: int) -> list[nn.Conv2d]:
    return [nn.Conv2d(2, 2, kernel_size=1) for _ in range(times)]


def as_in_the_paper(layers: int) -> Callable[[], nn.Module]:
    """A ResNet with the stride of each bottleneck in its first convolution."""

    def build() -> nn.Module:
        network = find_model(f"resnet{layers}").build()
        for block in network.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        return network

    return build


@pytest.mark.parametrize(
    ("build", "layer", "extent"),
    [
        (find_model("alexnet_owt").build, "features.12", 195),
        (find_model("vgg16").build, "features.30", 212),
        (find_model("inception_v3").build, "Mixed_7c.cat:3", 1311),
        (find_model("inception_resnet_v2").build, "conv.relu", 3039),
        (as_in_the_paper(50), "layer4.2.relu3", 483),
        (as_in_the_paper(101), "layer4.2.relu3", 1027),
        (as_in_the_paper(152), "layer4.2.relu3", 1507),
        # 3×3 at jumps 4, 8, 16, 32; the one that has the stride at the jump before it: the stem's 11, 3·8, then
        (find_model("resnet50").build, "layer4.2.relu3", 11 + 3 * 8 + (8 + 3 * 16) + (16 + 5 * 32) + (32 + 2 * 64)),
    ],
)
def test_fields_are_those_of_the_literature(build, layer, extent):
    # Source: Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks", the table.
    with torch.device("meta"):
        layers = {layer.name: layer for layer in trace(build(), (1, 3, 299, 299)).layers}
    assert [(field.extent, field.grid.jump) for field in layers[layer].fields] == [(extent, 32)] * 2


def test_layers_that_only_train_are_not_traced():
    model = find_model("googlenet")
    with torch.device("meta"):
        network = model.build()
    traced = trace(network.train(), (1, *model.input_shape))
    assert (traced.parameters, measure_network_size(network, (1, *model.input_shape)).parameters) == (
        6_998_552,
        13_378_280,
    )


class Failing(nn.Module):
    """It changes itself while it runs, and then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, kernel_size=1)
        self.seen = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.latest = self.conv(inputs)
        if self.latest.sum() > 0:
            return self.latest
        return inputs


def test_an_untraceable_network_raises_and_is_not_changed():
    network = Failing().train()
    watched = []
    network.conv.register_forward_hook(lambda *_: watched.append(1))
    before = set(vars(network))
    with pytest.raises(UsageError, match=r"the network itself depends on the values of a tensor \(\w+\)"):
        trace(network, (1, 3, 4, 4))
    with pytest.raises(UsageError, match="Failing cannot be traced with an input of 1×2×4×4; conv says: "):
        trace(network, (1, 2, 4, 4))
    assert set(vars(network)) == before
    assert network.training
    assert network.conv.training
    assert not network._forward_hooks
    assert not network._forward_pre_hooks
    assert not watched
    assert network.conv.weight.device.type == "cpu"
    network.conv(torch.zeros(1, 3, 2, 2))
    assert watched == [1]


@pytest.mark.parametrize("shape", [(10**9, 3, 10**6, 10**6), (-1, 3, 4, 4)])
def test_impossible_shapes_are_rejected(shape):
    with pytest.raises(UsageError, match="is not the shape of an input"):
        trace(nn.Conv2d(3, 2, 1), shape)


def test_a_composite_function_is_one_layer():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.table = nn.Parameter(torch.zeros(1, 12, 8))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            tokens = inputs.transpose(2, 3).flatten(2).transpose(1, 2) + self.table[:, :9]
            return self.attention(tokens, tokens, tokens)[0].mean(dim=1)

    layers = trace(Attending(), (2, 8, 3, 3)).layers
    assert [(layer.name, layer.inputs, layer.parameters) for layer in layers] == [
        ("add", ("input",), 12 * 8),
        ("attention.multi_head_attention_forward", ("add",), 4 * 8 * 8 + 4 * 8),
        ("mean", ("attention.multi_head_attention_forward",), 0),
    ]
    assert layers[1].multiply_adds == 2 * (9 * 4 * 8 * 8 + 2 * 9 * 9 * 8)
    assert all(field.whole for field in layers[1].fields)


@pytest.mark.parametrize("size", [(4, 4), (4,)])
def test_inputs_that_are_not_images(size):
    network = nn.Conv1d(2, 3, kernel_size=3) if len(size) == 1 else nn.Conv2d(2, 3, kernel_size=3)
    (layer,) = trace(network.double(), (2, 2, *size)).layers
    assert layer.name == layer.kind == type(network).__name__
    assert layer.shape == (2, 3, *(2 for _ in size))
    assert [field.intervals for field in layer.fields] == [((0, 2), (1, 3))] * len(size)


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet_bn"])
def test_convolutions_have_the_multiply_adds_of_their_layers(name):
    model = MODELS[name]
    with torch.device("meta"):
        traced = trace(model.build(), (1, *model.input_shape))
    expected = {layer.name: layer.multiply_adds for layer in traced.layers if layer.kind == "Conv2d"}
    assert {name: shape.multiply_adds for name, shape in traced.convolutions.items()} == expected


def test_convolutions_have_their_settings_and_order():
    layers = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1, padding="same")
    found = trace(nn.Sequential(*layers, nn.ConvTranspose2d(2, 3, 2)), (3, 4, 9, 10)).convolutions
    assert list(found) == ["0", "2"]
    assert found["0"].input == (3, 4, 9, 10)
    assert (found["0"].stride, found["0"].padding, found["0"].groups) == ((2, 2), (1, 2), 2)
    assert found["2"].output == (3, 2, 5, 5)


class Rewriting(nn.Module):
    """It writes into a view that two layers read, and decides by its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        maps = self.one(inputs)
        part = maps[:, :, 1:]
        maps.relu_()
        maps = self.two(part) + self.three(part)
        return maps if self.one.weight.isfinite().all() else -maps


def test_views_follow_writes_and_decisions_by_weights_are_known():
    layers = {layer.name: layer for layer in trace(Rewriting(), (1, 2, 5, 5)).layers}
    assert layers["two"].inputs == layers["three"].inputs == ("relu",)
    assert list(layers) == ["one", "relu", "two", "three", "add"]
    assert [field.intervals[0] for field in layers["add"].fields] == [(1, 1), (0, 0)]
