import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from svertka.data.builtin import open_builtin
from svertka.data.loader import BatchLoader
from svertka.data.preprocessing import Preprocess
from svertka.graph.summary import measure_network_size
from svertka.models.initialization import init_weights
from svertka.models.resnet import (
    BasicBlock,
    Bottleneck,
    CIFARResNet,
    ResNet,
    ZeroPadShortcut,
    make_no_shortcut,
    make_projection_shortcut,
    make_zero_pad_shortcut,
)


def stride_in_first_conv(network):
    """`network` with the stride of each bottleneck in its first convolution, as in the paper."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return network


@pytest.mark.parametrize(
    ("blocks", "parameters"),
    [(3, 269_722), (5, 464_154), (7, 658_586), (9, 853_018), (18, 1_727_962), (200, 19_421_274)],
)
def test_published_counts_for_cifar(blocks, parameters):
    with torch.device("meta"):
        network, plain = CIFARResNet(blocks), CIFARResNet(blocks, shortcuts=False)
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules()) == 6 * blocks + 2
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    # Shortcuts of option A have no parameters, so a plain network's are the same, by the same names.
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("block", "depths", "layers", "parameters", "multiply_adds"),
    [  # multiply-adds, in billions, as in the last row of the paper's table 1
        (BasicBlock, (2, 2, 2, 2), 18, 11_689_512, 1.8),
        (BasicBlock, (3, 4, 6, 3), 34, 21_797_672, 3.66),  # 3.6 there, which is the plain network's 3.64
        (Bottleneck, (3, 4, 6, 3), 50, 25_557_032, 3.86),  # 3.8 there, cut and not rounded
        (Bottleneck, (3, 4, 23, 3), 101, 44_549_160, 7.6),
        (Bottleneck, (3, 8, 36, 3), 152, 60_192_808, 11.3),
    ],
)
def test_published_counts_for_imagenet(block, depths, layers, parameters, multiply_adds):
    with torch.device("meta"):
        network = stride_in_first_conv(ResNet(block, depths))
    size = measure_network_size(network, (1, 3, 224, 224))
    assert size.parameters == parameters
    assert size.multiply_adds == pytest.approx(multiply_adds * 1e9, rel=0.01)
    main = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sum("downsample" not in name for name in main) == layers


@pytest.mark.parametrize(("blocks", "difference"), [((2, 2, 2, 2), 173_824), ((3, 4, 6, 3), 173_824)])
def test_a_plain_network_lacks_the_projections_only(blocks, difference):
    with torch.device("meta"):
        network, plain = ResNet(BasicBlock, blocks), ResNet(BasicBlock, blocks, shortcuts=False)
    projections = {name for name in network.state_dict() if "downsample" in name}
    assert network.state_dict().keys() - projections == plain.state_dict().keys()
    with_and_without = (sum(p.numel() for p in some.parameters()) for some in (network, plain))
    # 64·128 + 128·256 + 256·512 weights of 1×1, and two numbers a channel of their batch norms
    assert next(with_and_without) - next(with_and_without) == difference == 172_032 + 2 * (128 + 256 + 512)


@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (32, 3, 10), (33, 3, 5), (64, 3, 100)])
def test_each_stage_halves_the_maps(size, channels, classes):
    network, shapes = CIFARResNet(3, classes, channels).eval(), []
    for stage in (network.layer1, network.layer2, network.layer3):
        stage.register_forward_hook(lambda _stage, _inputs, maps: shapes.append(tuple(maps.shape[1:])))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)
    half, quarter = -(-size // 2), -(-size // 4)
    assert shapes == [(16, size, size), (32, half, half), (64, quarter, quarter)]


@pytest.mark.parametrize(
    ("size", "channels", "sides"),
    [(224, 3, [56, 28, 14, 7]), (97, 1, [25, 13, 7, 4]), (64, 3, [16, 8, 4, 2]), (63, 1, [63, 32, 16, 8])],
)
@pytest.mark.parametrize(("block", "wider"), [(BasicBlock, 1), (Bottleneck, 4)])
def test_maps_of_table_1_and_of_the_small_form(size, channels, sides, block, wider):
    network, shapes = ResNet(block, (1, 1, 1, 1), 7, channels, size).eval(), []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _stage, _inputs, maps: shapes.append(tuple(maps.shape[1:])))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert shapes == [(64 * 2**k * wider, side, side) for k, side in enumerate(sides)]


@pytest.mark.parametrize("size", [64, 32])
def test_smallest_images_in_training(size):
    network = ResNet(Bottleneck, (1, 1, 1, 1), 3, 3, size)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 3)


def test_every_relu_is_used_once():
    network, calls = ResNet(Bottleneck, (2, 1, 1, 1), size=64).eval(), []
    relus = [layer for layer in network.modules() if isinstance(layer, nn.ReLU)]
    for layer in relus:
        layer.register_forward_hook(lambda layer, _inputs, _outputs: calls.append(layer))
    network(torch.zeros(1, 3, 64, 64))
    assert len(calls) == len(set(calls)) == len(relus) == 1 + 3 * 5


def test_zero_pad_shortcut_subsamples_and_pads_channels():
    inputs = torch.randn(2, 16, 7, 8)
    outputs = ZeroPadShortcut(16, stride=2)(inputs)
    assert torch.equal(outputs[:, 8:24], inputs[:, :, ::2, ::2])
    assert outputs[:, :8].abs().sum() == outputs[:, 24:].abs().sum() == 0


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("shortcut", [make_zero_pad_shortcut, make_projection_shortcut])
def test_a_block_with_zero_residual_is_a_relu_of_its_shortcut(block, shortcut):
    width = 16 if block is BasicBlock else 4
    inputs = torch.randn(2, 16, 5, 5)
    for made, expected in ((shortcut, inputs.clamp(min=0)), (make_no_shortcut, torch.zeros_like(inputs))):
        network = block(16, width, 1, made).eval()
        init_weights(network, "he")
        nn.init.zeros_((network.bn2 if block is BasicBlock else network.bn3).weight)
        assert torch.equal(network(inputs), expected)


def test_initial_weights_are_he_s():
    torch.manual_seed(0)
    network = ResNet(Bottleneck, (1, 1, 1, 2))
    for weight, fan_in in (
        (network.layer4[1].conv2.weight, 9 * 512),
        (network.layer4[1].conv3.weight, 512),
        (network.layer4[0].downsample[0].weight, 1024),
        (network.fc.weight, 2048),
        (CIFARResNet(3).layer3[2].conv1.weight, 9 * 64),
    ):
        # At least 36,864 normal numbers: the standard error of their standard deviation is 0.4 %.
        assert float(weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    assert torch.equal(network.fc.bias, torch.zeros(1000))
    # Not the later custom of starting each block as the identity.
    assert torch.equal(network.layer4[1].bn3.weight, torch.ones(2048))


@pytest.mark.large  # their logits: evaluation/test_evaluate.py
def test_published_weights_reach_their_published_accuracy(shared_data):
    network = CIFARResNet(3)
    network.load_state_dict(load_file(shared_data / "weights" / "resnet20-cifar10.safetensors"))
    network.eval()
    dataset = open_builtin("cifar10")
    batches = BatchLoader(
        dataset.images.array,
        dataset.labels,
        np.flatnonzero(dataset.parts == "test"),
        Preprocess(size=32, resize=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        batch_size=500,
    )
    right = 0
    with torch.inference_mode():
        for batch in batches.epoch(0):
            right += int((network(batch.images).argmax(dim=1) == batch.labels).sum())
    assert right / 10_000 == pytest.approx(0.9173, abs=0.0002)
