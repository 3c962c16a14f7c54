import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from svertka.data.batches import Batches
from svertka.data.preprocess import Preprocess
from svertka.data.published import open_published
from svertka.models.resnet import BasicBlock, PaddedShortcut, resnet20


def test_published_count_of_parameters_and_layers():
    network = resnet20()
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules()) == 20


@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (32, 3, 10), (33, 3, 5), (64, 3, 100)])
def test_each_stage_halves_the_maps(size, channels, classes):
    network, shapes = resnet20(classes, channels).eval(), []
    for stage in (network.layer1, network.layer2, network.layer3):
        stage.register_forward_hook(lambda _stage, _inputs, maps: shapes.append(tuple(maps.shape[1:])))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)
    half, quarter = -(-size // 2), -(-size // 4)
    assert shapes == [(16, size, size), (32, half, half), (64, quarter, quarter)]


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    inputs = torch.randn(2, 16, 7, 8)
    outputs = PaddedShortcut(16, stride=2)(inputs)
    assert torch.equal(outputs[:, 8:24], inputs[:, :, ::2, ::2])
    assert outputs[:, :8].abs().sum() == outputs[:, 24:].abs().sum() == 0


def test_a_block_that_adds_nothing_is_a_relu():
    block, inputs = BasicBlock(4, 4, stride=1).eval(), torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(inputs), inputs.clamp(min=0))


def test_weights_start_as_he_et_al_say():
    torch.manual_seed(0)
    weight = resnet20().layer3[2].conv1.weight
    # 36,864 normal numbers: their standard deviation is known to 0.4 %
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_published_weights_reach_their_published_accuracy(shared_data, large_count):
    network = resnet20()
    network.load_state_dict(load_file(shared_data / "weights" / "resnet20-cifar10.safetensors"))
    network.eval()
    dataset = open_published("cifar10")
    batches = Batches(
        dataset.pictures.array,
        dataset.labels,
        np.flatnonzero(dataset.parts == "test")[: large_count(2000, 10_000)],
        Preprocess(size=32, resize=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        batch_size=500,
    )
    right = 0
    with torch.inference_mode():
        for batch in batches.epoch(0):
            right += int((network(batch.images).argmax(dim=1) == batch.labels).sum())
    count = len(batches.indices)
    # A fifth of the pictures says it within two and a half of its standard deviations, 0.6 %.
    assert right / count == pytest.approx(0.9173, abs=0.0002 if count == 10_000 else 0.015)
