from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.errors import UsageError
from svertka.inspection.activations import (
    convolution_names,
    feature_map_size,
    find_layer,
    follow_to_activation,
    hook_layers,
    layer_outputs,
    list_layers,
    unit_count,
)
from svertka.models.registry import MODELS, find_model


class Toy(nn.Module):
    """Functions between modules, in-place operations, repeated modules, branches, a function named like a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(4, 4, kernel_size=3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.drop = nn.Dropout()
        self.head = nn.Linear(12, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.relu(self.conv(inputs))
        carried = maps
        scale = F.relu(self.scale)  # no layer: it does not depend on the picture
        maps = F.relu(self.again(maps), inplace=True)
        maps = self.again(maps)
        maps += carried * scale
        maps = self.relu(maps)
        maps[:, 3] = 0.5
        joined = torch.cat([maps, F.avg_pool2d(maps, 3, stride=1, padding=1), maps.neg_()], dim=1)
        return self.head(self.drop(joined.amax((2, 3)).relu_()))


def by_hand(toy: Toy, pictures: Tensor) -> dict[str, Tensor]:
    """Return the outputs of its layers, computed without in-place operations."""
    found = {"conv": toy.conv(pictures)}
    found["relu"] = found["conv"].clamp(min=0)
    found["again"] = toy.again(found["relu"])
    found["relu:2"] = found["again"].clamp(min=0)
    found["again:2"] = toy.again(found["relu:2"])
    found["mul"] = found["relu"] * toy.scale.clamp(min=0)
    found["add"] = found["again:2"] + found["mul"]
    found["relu:3"] = found["add"].clamp(min=0)
    written = found["relu:3"].clone()
    written[:, 3] = 0.5
    found["avg_pool2d"] = F.avg_pool2d(written, 3, stride=1, padding=1)
    found["neg"] = -written
    found["cat"] = torch.cat([found["neg"], found["avg_pool2d"], found["neg"]], dim=1)
    found["amax"] = found["cat"].amax((2, 3))
    found["relu:4"] = found["drop"] = found["amax"].clamp(min=0)
    found["head"] = toy.head(found["relu:4"])
    return found


def test_outputs_are_read_before_later_in_place_changes():
    torch.manual_seed(1)
    toy, pictures = Toy().train(), torch.randn(5, 3, 6, 7)
    expected = by_hand(toy, pictures)
    names = [layer.name for layer in list_layers(toy, (1, 3, 6, 7))]
    assert set(names) == set(expected)
    for name, output in layer_outputs(toy, pictures, names).items():
        torch.testing.assert_close(output, expected[name], msg=name)


def test_outputs_are_differentiable():
    toy, pictures = Toy(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert not layer_outputs(toy, pictures, ["conv"])["conv"].requires_grad
    layer_outputs(toy, pictures, ["conv"])["conv"].sum().backward()
    assert toy.conv.bias.grad.tolist() == [72] * 4


def test_hooks_work_for_other_sizes_and_several_passes():
    toy, shapes = Toy(), []
    with hook_layers(
        toy, list_layers(toy, (1, 3, 6, 6)), {"relu:3": lambda output: shapes.append(tuple(output.shape))}
    ):
        for size in (6, 9):
            toy(torch.zeros(size, 3, size, size))
    assert shapes == [(6, 4, 6, 6), (9, 4, 9, 9)]


def state(network: nn.Module) -> list[Any]:
    """Return everything that a forward pass could change in a network, and the random state."""
    own = [{key: id(value) for key, value in vars(module).items()} for module in network.modules()]
    hooks = [
        [dict(value) for key, value in vars(module).items() if key.endswith("hooks")] for module in network.modules()
    ]
    tensors = [*network.parameters(), *network.buffers()]
    values = [
        tensor.detach().view(torch.uint8).flatten().tolist() if tensor.ndim else tensor.item() for tensor in tensors
    ]
    facts = [(tensor.requires_grad, tensor.grad, tensor._version) for tensor in tensors]
    training = [module.training for module in network.modules()]
    return [own, hooks, values, facts, training, torch.get_rng_state().tolist()]


def test_network_is_left_unchanged():
    network = find_model("resnet20").build().train()
    network.layer2.eval()
    network.conv1.requires_grad_(False)
    network.linear.register_forward_hook(lambda *_: None)
    before = state(network)
    known = list_layers(network, (1, 3, 32, 32))
    assert state(network) == before
    layer_outputs(network, torch.randn(2, 3, 32, 32, generator=torch.Generator()), [layer.name for layer in known])
    assert state(network) == before


@pytest.mark.parametrize("fails", ["conv", "relu:2", "add", "head"])
def test_network_is_left_unchanged_after_an_exception(fails):
    def fail(_: Tensor) -> None:
        raise KeyError("stop")

    toy = Toy()
    before = state(toy)
    known, seen = list_layers(toy, (1, 3, 6, 6)), []
    pictures = torch.zeros(2, 3, 6, 6)
    with hook_layers(toy, known, {"again:2": seen.append}):
        with pytest.raises(KeyError, match="stop"), hook_layers(toy, known, {fails: fail}):
            toy(pictures)
        toy(pictures)  # begins anew, though the last run was broken off
    assert len(seen) == 1 + (fails in ("add", "head"))
    assert state(toy) == before
    with pytest.raises(RuntimeError), hook_layers(toy, known, {}):
        toy(torch.zeros(2, 5, 6, 6))
    assert state(toy) == before


def leaves(network: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the modules without children, by path; the first output of repeated ones."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def kept(_: nn.Module, __: object, output: Tensor) -> None:  # what a hook returns would take the output's place
            found.setdefault(path, output.clone())

        return kept

    own = {path: module for path, module in network.named_modules() if next(module.children(), None) is None}
    handles = [module.register_forward_hook(keep(path)) for path, module in own.items()]
    network(picture)
    for handle in handles:
        handle.remove()
    return found


SMALL = {"lenet5": 32, "alexnet": 99, "vgg11_bn": 40, "googlenet": 64, "resnet18": 40, "resnet20": 32}
LARGE = {"inception_v3": 96, "inception_resnet_v2": 96, "efficientnet_lite0": 64, "squeezenet1_1": 64, "airbench": 32}


def test_every_listed_layer_of_every_network_can_be_hooked(large_count: Callable[[int, int], int], quiet: None):
    every = SMALL | LARGE
    for name in [*SMALL, *LARGE][:: large_count(4, 1)]:
        model = MODELS[name]
        network = model.build(size=every[name]).eval()
        picture = torch.randn(1, model.channels, every[name], every[name])
        known = list_layers(network, tuple(picture.shape))
        with torch.no_grad():
            expected = leaves(network, picture)
            found = layer_outputs(network, picture, [layer.name for layer in known])
        assert expected.keys() <= found.keys()
        for layer in known:
            assert tuple(found[layer.name].shape) == layer.shape
            if layer.name in expected:
                assert torch.equal(found[layer.name], expected[layer.name]), (name, layer.name)


def test_unknown_layer_is_rejected_with_similar_names():
    known = list_layers(find_model("squeezenet1_1").build(), (1, 3, 64, 64))
    with pytest.raises(UsageError, match="layer=features.3.sqeeze is not in the network; use features.3.squeeze or"):
        find_layer(known, "features.3.sqeeze")
    with pytest.raises(
        UsageError, match="layer=features.3 is a module that contains layers; use one of them: .* or features.3.cat$"
    ):
        find_layer(known, "features.3")
    with pytest.raises(UsageError, match="use features.0 or features.1 or features.2$"):
        find_layer(known, "§")


class Moody(nn.Module):
    """A network with a layer that runs for a single image only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rare = nn.Conv2d(3, 2, 1), nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.conv(inputs)
        return self.rare(maps) if len(inputs) == 1 else maps


def test_layer_that_does_not_run_is_an_error():
    network = Moody()
    known = list_layers(network, (1, 3, 4, 4))
    message = "layer=rare did not run on these images"
    with pytest.raises(UsageError, match=message), hook_layers(network, known, {"rare": lambda _: None}):
        network(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("model", "layer", "expected"),
    [
        ("squeezenet1_1", "features.3.expand3x3", "features.3.expand3x3_relu"),
        ("squeezenet1_1", "features.1", "features.1"),
        ("squeezenet1_1", "features.3.cat", "features.3.cat"),  # read by a pooling
        ("resnet18", "layer1.0.conv1", "layer1.0.relu1"),  # behind its batch norm
        ("resnet18", "layer1.0.conv2", "layer1.0.bn2"),  # then comes a sum
        ("resnet18", "layer2.0.downsample.0", "layer2.0.downsample.1"),
        ("plain18", "layer1.0.conv2", "layer1.0.relu2"),
        ("efficientnet_lite0", "conv_stem", "relu0"),  # ReLU6
    ],
)
def test_units_are_read_after_their_relu(model, layer, expected):
    with torch.device("meta"):
        network = find_model(model).build()
    known = list_layers(network, (1, 3, 64, 64))
    assert follow_to_activation(known, layer).name == expected


class Tokens(nn.Module):
    """Convolutions in several forms, then a linear layer and attention over positions, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.back = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.dense = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.back(F.conv2d(self.patches(inputs), self.weight - self.weight.mean()))
        tokens = self.dense(maps.permute(0, 2, 3, 1)).flatten(1, 2)
        return F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])


def test_convolution_names_of_networks():
    known = list_layers(Tokens(), (1, 3, 16, 24))
    assert convolution_names(known) == ["patches", "conv2d", "back"]
    assert feature_map_size(find_layer(known, "back")) == (8, 12)
    dense = find_layer(known, "dense")  # (N, H, W, C)
    assert (feature_map_size(dense), unit_count(dense)) == ((8, 12), 8)
    with pytest.raises(UsageError, match="layer=.* has outputs of shape 1×96×8, not feature maps"):
        feature_map_size(known[-1])


def test_layers_after_a_global_operation_still_have_feature_maps():
    known = list_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)), (1, 3, 6, 8))
    assert convolution_names(known) == ["0", "2"]
    assert feature_map_size(known[2]) == (6, 8)


class CachedBias(nn.Module):
    """A layer that looks its biases up once in inference, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.biases, self.cache, self.calls = nn.Parameter(torch.randn(3, 1, 1)), {}, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.cache.setdefault("bias", self.biases * 2)
        return inputs + self.cache["bias"]


def test_what_a_network_caches_during_inspection_is_removed():
    network = CachedBias()
    with torch.inference_mode():
        layer_outputs(network, torch.zeros(1, 3, 4, 4), ["CachedBias"])
    assert (network.cache, network.calls) == ({}, 0)
    network.eval()(torch.zeros(1, 3, 4, 4)).sum().backward()
    assert network.biases.grad.flatten().tolist() == [32, 32, 32]


ACTIVATIONS = [
    (nn.SiLU, F.silu),
    (nn.Hardswish, F.hardswish),
    (nn.GELU, F.gelu),
    (nn.Mish, F.mish),
    (nn.LeakyReLU, F.leaky_relu),
    (nn.ELU, F.elu),
    (nn.ReLU6, F.relu6),
    (nn.PReLU, lambda x: F.prelu(x, torch.full((1,), 0.25))),
    (nn.Tanh, torch.tanh),
    (nn.Sigmoid, Tensor.sigmoid),
    (nn.SiLU, lambda x: F.silu(x, inplace=True)),
]


@pytest.mark.parametrize(("module", "function"), ACTIVATIONS)
def test_units_are_read_after_any_activation_function(module: Callable[[], nn.Module], function: Callable[..., Any]):
    class Functional(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return function(self[1](self[0](inputs)))

    convolution = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]
    for network in (nn.Sequential(*convolution, module()), Functional(*convolution)):
        known = list_layers(network, (1, 3, 8, 8))
        assert follow_to_activation(known, "0").name == known[-1].name
        network.eval()
        images = torch.randn(2, 3, 8, 8)
        output = layer_outputs(network, images, [known[-1].name])[known[-1].name]
        assert torch.equal(output, network(images))
