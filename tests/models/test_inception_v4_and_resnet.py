from functools import cache

import pytest
import torch
from torch import nn

from svertka.models.googlenet import ConvBNReLU
from svertka.models.inception_v4_and_resnet import (
    TIMM_NAMES,
    Branches,
    InceptionResNetV2,
    InceptionV4,
    ScaledResidualBranches,
    convert_timm_state_dict,
    make_avg_pool_conv,
    make_conv_chain,
)

BOTH = pytest.mark.parametrize("builder", [InceptionV4, InceptionResNetV2])


def on_meta(builder, **arguments):
    """The network without values: shapes and counts cost nothing."""
    with torch.device("meta"):
        return builder(**arguments)


@cache
def state_of(builder):
    return on_meta(builder).state_dict()


@pytest.mark.parametrize(("builder", "parameters"), [(InceptionV4, 42_679_816), (InceptionResNetV2, 55_843_464)])
def test_published_counts_of_parameters(builder, parameters):
    assert sum(parameter.numel() for parameter in on_meta(builder).parameters()) == parameters


@pytest.mark.parametrize(
    ("builder", "modules", "channels"),
    [
        (InceptionV4, (4, 7, 3), (384, 384, 1024, 1024, 1536, 1536)),
        (InceptionResNetV2, (10, 20, 10), (320, 320, 1088, 1088, 2080, 2080)),
    ],
)
def test_stages_have_their_modules_and_sizes(builder, modules, channels):
    network, shapes = on_meta(builder), {}
    stages = ("stem", "inception_a", "reduction_a", "inception_b", "reduction_b", "inception_c")
    for name in stages:
        network.get_submodule(name).register_forward_hook(
            lambda _stage, _inputs, maps, name=name: shapes.update({name: tuple(maps.shape[1:])})
        )
    network.eval()(torch.empty(1, 3, 299, 299, device="meta"))
    assert (
        tuple(len(network.get_submodule(stage)) for stage in ("inception_a", "inception_b", "inception_c")) == modules
    )
    sides = (35, 35, 17, 17, 8, 8)
    expected = {name: (width, side, side) for name, width, side in zip(stages, channels, sides, strict=True)}
    assert shapes == expected


@BOTH
@pytest.mark.parametrize(
    ("size", "channels", "classes"), [(75, 1, 2), pytest.param(333, 3, 5, marks=pytest.mark.large)]
)
def test_logits_alone_at_any_size(builder, size, channels, classes):
    network = on_meta(builder, classes=classes, channels=channels, size=size)
    pictures = torch.empty(2, channels, size, size, device="meta")
    assert network.train()(pictures).shape == network.eval()(pictures).shape == (2, classes)


@BOTH
def test_each_layer_is_used_once(builder):
    network, uses = on_meta(builder), {}
    leaves = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
    for name, layer in leaves.items():
        layer.register_forward_hook(lambda *_, name=name: uses.update({name: uses.get(name, 0) + 1}))
    network.eval()(torch.empty(1, 3, 299, 299, device="meta"))
    assert uses == dict.fromkeys(leaves, 1)


@pytest.mark.usefixtures("quiet")
@BOTH
def test_gradients_reach_the_first_layer(builder):
    torch.manual_seed(0)
    network = builder(classes=2)
    network(torch.randn(2, 3, 75, 75)).square().sum().backward()
    gradient = network.get_parameter("stem.0.conv.weight").grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@BOTH
def test_weights_start_with_he_s_variance(builder):
    torch.manual_seed(0)
    # 1,536,000 normal numbers: their standard deviation is known to 0.06 %.
    assert float(builder().fc.weight.detach().std()) == pytest.approx((2 / 1536) ** 0.5, rel=0.003)


@pytest.mark.parametrize(
    ("builder", "name", "shape"),
    # Names and shapes as timm's files have them.
    [
        (InceptionV4, "features.0.conv.weight", (32, 3, 3, 3)),
        (InceptionV4, "features.3.conv.bn.running_mean", (96,)),
        (InceptionV4, "features.4.branch1.2.conv.weight", (64, 64, 7, 1)),
        (InceptionV4, "features.5.conv.conv.weight", (192, 192, 3, 3)),
        (InceptionV4, "features.9.branch3.1.conv.weight", (96, 384, 1, 1)),
        (InceptionV4, "features.10.branch1.2.conv.weight", (256, 224, 3, 3)),
        (InceptionV4, "features.17.branch2.3.conv.weight", (224, 224, 7, 1)),
        (InceptionV4, "features.18.branch1.2.conv.weight", (320, 256, 7, 1)),
        (InceptionV4, "features.21.branch1_1a.conv.weight", (256, 384, 1, 3)),
        (InceptionV4, "features.21.branch2_3b.conv.weight", (256, 512, 3, 1)),
        (InceptionV4, "last_linear.bias", (1000,)),
        (InceptionResNetV2, "conv2d_4a.conv.weight", (192, 80, 3, 3)),
        (InceptionResNetV2, "mixed_5b.branch1.1.conv.weight", (64, 48, 5, 5)),
        (InceptionResNetV2, "repeat.9.conv2d.weight", (320, 128, 1, 1)),
        (InceptionResNetV2, "mixed_6a.branch1.2.conv.weight", (384, 256, 3, 3)),
        (InceptionResNetV2, "repeat_1.19.branch1.1.conv.weight", (160, 128, 1, 7)),
        (InceptionResNetV2, "mixed_7a.branch2.2.conv.weight", (320, 288, 3, 3)),
        (InceptionResNetV2, "repeat_2.8.conv2d.bias", (2080,)),
        (InceptionResNetV2, "block8.branch1.2.conv.weight", (256, 224, 3, 1)),
        (InceptionResNetV2, "conv2d_7b.bn.weight", (1536,)),
        (InceptionResNetV2, "classif.weight", (1000, 1536)),
    ],
)
def test_converted_names_have_timm_s_shapes(builder, name, shape):
    (converted,) = convert_timm_state_dict({name: torch.empty(0)})
    assert tuple(state_of(builder)[converted].shape) == shape


def test_timm_names_cover_both_networks():
    # Each tensor has a stage that some name of timm's leads to; 149 convolutions with norms in the first, 204 and 40
    # plain ones in the second.
    targets = set(TIMM_NAMES.values())
    for builder, tensors in ((InceptionV4, 149 * 6 + 2), (InceptionResNetV2, 204 * 6 + 40 * 2 + 2)):
        names = state_of(builder)
        assert len(names) == tensors
        for name in names:
            first, second = name.split(".")[:2]
            assert targets & {first, f"{first}.{second}"}


def test_names_that_timm_lacks_are_kept():
    assert list(convert_timm_state_dict({"head.weight": torch.empty(0)})) == ["head.weight"]


def test_the_last_residual_block_has_neither_scaling_nor_relu():
    network = on_meta(InceptionResNetV2)
    scales = [{module.scale for module in network.get_submodule(f"inception_{stage}")} for stage in "abc"]
    assert scales == [{0.17}, {0.10}, {0.20, 1.0}]
    last = network.inception_c[-1]
    assert last.scale == 1.0
    assert isinstance(last.relu, nn.Identity)
    assert sum(isinstance(module.relu, nn.Identity) for module in network.inception_c) == 1


def test_branches_are_concatenated_in_their_order():
    one, two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
    inputs = torch.randn(2, 4, 5, 5)
    assert torch.equal(Branches(first=one, second=two)(inputs), torch.cat([one(inputs), two(inputs)], dim=1))


def test_scaled_residual_is_added_to_the_input():
    torch.manual_seed(0)
    inputs = torch.randn(2, 6, 5, 5)
    branch = nn.Conv2d(6, 4, 3, padding=1)
    block = ScaledResidualBranches(6, 4, 0.25, branch0=branch)
    nn.init.normal_(block.conv2d.weight)
    nn.init.normal_(block.conv2d.bias)
    expected = (inputs + block.conv2d(branch(inputs)) / 4).clamp(min=0)
    assert torch.allclose(block(inputs), expected, atol=1e-6)


def test_the_last_convolution_of_a_chain_downsamples():
    layers = make_conv_chain(8, (4, 1), (6, (1, 7)), (5, 3), downsample=True)
    assert all(isinstance(layer, ConvBNReLU) for layer in layers)
    assert [layer.conv.stride for layer in layers] == [(1, 1), (1, 1), (2, 2)]
    assert [layer.conv.padding for layer in layers] == [(0, 0), (0, 3), (0, 0)]
    assert layers[2].conv.weight.shape == (5, 6, 3, 3)


def test_average_pooling_ignores_the_padding():
    assert torch.equal(make_avg_pool_conv(1, 1)[0](torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))
