import pytest
import torch
from torch import nn

from svertka.errors import UsageError
from svertka.graph.summary import measure_network_size
from svertka.layers import LocalResponseNorm
from svertka.models.vgg import CONFIGURATIONS, VGG, warm_start_tensors

DEPTHS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


def on_meta(configuration, *arguments, **options):
    with torch.device("meta"):
        return VGG(configuration, *arguments, **options)


@pytest.mark.parametrize(
    ("configuration", "parameters"),
    [
        ("A", 132_863_336),
        ("A-LRN", 132_863_336),
        ("B", 133_047_848),
        # B, and 1×1 convolutions with 256, 512 and 512 channels
        ("C", 133_047_848 + 256 * 257 + 2 * 512 * 513),
        ("D", 138_357_544),
        ("E", 143_667_240),
    ],
)
def test_parameters_as_published(configuration, parameters):
    network = on_meta(configuration)
    assert sum(values.numel() for values in network.parameters()) == parameters
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == DEPTHS[configuration]  # the paper's "weight layers"
    widths = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    twin = on_meta(configuration, batch_norm=True)
    assert sum(values.numel() for values in twin.parameters()) == parameters + 2 * sum(widths)
    norms = [layer.num_features for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms == widths


@pytest.mark.parametrize(("configuration", "billions"), [("D", 15.5), ("E", 19.6)])
def test_multiply_adds(configuration, billions):
    """19.6 billion for E: He et al. 2015, figure 3."""
    assert round(measure_network_size(on_meta(configuration), (1, 3, 224, 224)).multiply_adds / 1e9, 1) == billions


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_blocks_are_those_of_table_1(configuration):
    blocks, block = [], []
    for layer in on_meta(configuration).features:
        if isinstance(layer, nn.Conv2d):
            assert layer.stride == (1, 1)
            assert layer.padding == (layer.kernel_size[0] // 2,) * 2  # the size stays
            block.append(f"conv{layer.kernel_size[0]}-{layer.out_channels}")
        elif isinstance(layer, LocalResponseNorm):
            block.append("LRN")
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            blocks.append(" ".join(block))
            block = []
    assert not block
    c1, c2, c3, c4 = (f"conv3-{width}" for width in (64, 128, 256, 512))
    assert (
        blocks
        == {
            "A": [c1, c2, f"{c3} {c3}", f"{c4} {c4}", f"{c4} {c4}"],
            "A-LRN": [f"{c1} LRN", c2, f"{c3} {c3}", f"{c4} {c4}", f"{c4} {c4}"],
            "B": [f"{c1} {c1}", f"{c2} {c2}", f"{c3} {c3}", f"{c4} {c4}", f"{c4} {c4}"],
            "C": [f"{c1} {c1}", f"{c2} {c2}", f"{c3} {c3} conv1-256", f"{c4} {c4} conv1-512", f"{c4} {c4} conv1-512"],
            "D": [f"{c1} {c1}", f"{c2} {c2}", f"{c3} {c3} {c3}", f"{c4} {c4} {c4}", f"{c4} {c4} {c4}"],
            "E": [f"{c1} {c1}", f"{c2} {c2}", " ".join([c3] * 4), " ".join([c4] * 4), " ".join([c4] * 4)],
        }[configuration]
    )


def test_names_are_the_published_ones():
    def names(network, kinds):
        return [name for name in network.state_dict() if name.rpartition(".")[2] in kinds]

    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    dense = ["classifier.0.weight", "classifier.3.weight", "classifier.6.weight"]
    assert names(on_meta("D"), ["weight"]) == [f"features.{index}.weight" for index in indices] + dense
    twin = on_meta("A", batch_norm=True)
    assert names(twin, ["running_var"]) == [f"features.{index}.running_var" for index in (1, 5, 9, 12, 16, 19, 23, 26)]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_any_size_other_classes_and_channels(configuration):
    for size, channels, classes in ((224, 3, 1000), (97, 1, 7), (64, 3, 2), (63, 3, 10), (32, 3, 10), (28, 1, 10)):
        pictures = torch.empty(2, channels, size, size + 1, device="meta")
        assert on_meta(configuration, classes, channels, size)(pictures).shape == (2, classes)


def test_small_form_has_the_same_blocks_and_a_narrow_head():
    small, large = on_meta("D", 10, 3, 63), on_meta("D", 10, 3, 64)
    assert sum(values.numel() for values in small.parameters()) == 15_245_130
    shapes = [
        [values.shape for name, values in form.named_parameters() if "features" in name] for form in (small, large)
    ]
    assert shapes[0] == shapes[1]
    assert [layer.out_features for layer in small.classifier if isinstance(layer, nn.Linear)] == [512, 512, 10]
    assert [layer.p for layer in small.classifier if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initial_weights_are_hes_and_keep_the_signal(batch_norm):
    torch.manual_seed(0)
    network = VGG("E", 10, 3, 32, batch_norm=batch_norm)
    for name, values in network.named_parameters():
        if values.ndim > 1:
            fan_in = values[0].numel()
            assert abs(values.var() * fan_in / 2 - 1) < 12 / values.numel() ** 0.5 + 1e-3, name  # eq. 10; 8 std. errors
        else:
            assert values.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
    logits = network(torch.randn(2, 3, 32, 32))
    assert 0.01 < logits.std() < 100  # from N(0, 0.01²): 1e-11
    logits.square().sum().backward()
    assert all(values.grad.abs().sum() > 0 for values in network.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("configuration", ["B", "C", "D", "E"])
@pytest.mark.parametrize("shallow_configuration", ["A", "A-LRN"])
def test_deep_networks_start_from_a_shallow_one(shallow_configuration, configuration, batch_norm):
    torch.manual_seed(0)
    shallow = VGG(shallow_configuration, 10, 3, 32, batch_norm=batch_norm)
    deep = VGG(configuration, 10, 3, 32, batch_norm=batch_norm)
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    loaded = deep.load_state_dict(warm_start_tensors(shallow, deep), strict=False)
    assert not loaded.unexpected_keys

    def convolutions(network):
        """Those of each block, in order."""
        blocks = [[]]
        for layer in network.features:
            if isinstance(layer, nn.Conv2d):
                blocks[-1].append(layer)
            elif isinstance(layer, nn.MaxPool2d):
                blocks.append([])
        return blocks

    old, new = convolutions(shallow), convolutions(deep)
    for block, place in ((0, 0), (1, 0), (2, 0), (2, 1)):  # conv1_1, conv2_1, conv3_1, conv3_2
        assert torch.equal(old[block][place].weight, new[block][place].weight)
    assert torch.equal(shallow.classifier[6].weight, deep.classifier[6].weight)
    assert not torch.equal(old[3][0].weight, new[3][0].weight)  # the fifth convolution keeps its initial weights

    kept = {name for name, tensor in deep.state_dict().items() if torch.equal(tensor, before[name])}
    weights = {name for name, values in deep.named_parameters() if values.ndim > 1}
    assert len(weights - kept) == 4 + 3


def test_batch_norm_is_copied_with_its_convolution():
    shallow, deep = (VGG(configuration, 10, 3, 32, batch_norm=True) for configuration in ("A", "D"))
    with torch.no_grad():
        shallow(torch.randn(4, 3, 32, 32))
    deep.load_state_dict(warm_start_tensors(shallow, deep), strict=False)
    # conv3_2: features.11 of A and features.17 of D
    assert shallow.features[12].running_mean.any()
    assert torch.equal(shallow.features[12].running_mean, deep.features[18].running_mean)
    assert not deep.features[21].running_mean.any()


def test_tensors_that_do_not_fit_are_refused():
    small = on_meta("A", 10, 3, 32)
    with pytest.raises(
        UsageError,
        match=r"^classifier\.6\.weight \(10, 512\) of VGG A does not fit .* of VGG D; train both with the same",
    ):
        warm_start_tensors(small, on_meta("D", 20, 3, 32))
    with pytest.raises(UsageError, match=r"^classifier\.0\.weight \(512, 512\) of VGG A does not fit"):
        warm_start_tensors(small, on_meta("D", 10, 3, 64))
    with pytest.raises(UsageError, match=r"^features\.1\.weight \(64,\) of VGG A does not fit features\.1\.weight"):
        warm_start_tensors(on_meta("A", 10, 3, 32, batch_norm=True), on_meta("D", 10, 3, 32))
    with pytest.raises(UsageError, match=r"^VGG A lacks one of the first four convolutions of VGG D; start"):
        warm_start_tensors(on_meta("D", 10, 3, 32), small)


def test_unknown_configuration():
    with pytest.raises(UsageError, match=r"^configuration=F is not a VGG; use A, A-LRN, B, C, D, E$"):
        VGG("F")
