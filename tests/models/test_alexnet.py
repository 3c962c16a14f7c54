import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from svertka.graph.summary import measure_network_size, trace
from svertka.layers import LocalResponseNorm
from svertka.models.alexnet import AlexNet, AlexNetOWT


def on_meta(network, *arguments):
    with torch.device("meta"):
        return network(*arguments)


@pytest.mark.parametrize(
    ("network", "size", "parameters", "convolutions"),
    [
        # conv1 … conv5: positions · output channels · inputs per output
        (AlexNet, 227, 60_965_224, 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 640 * 1728)),
        (AlexNetOWT, 224, 61_100_840, 55**2 * 64 * 363 + 27**2 * 192 * 1600 + 13**2 * (384 * 1728 + 256 * 5760)),
    ],
)
def test_size_as_published(network, size, parameters, convolutions):
    found = measure_network_size(on_meta(network), (1, 3, size, size))
    assert found.parameters == parameters
    assert found.multiply_adds == convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 1000


@pytest.mark.parametrize(("network", "parameters"), [(AlexNet, 7_561_610), (AlexNetOWT, 5_871_434)])
def test_small_form(network, parameters):
    small = on_meta(network, 10, 3, 63)
    assert sum(values.numel() for values in small.parameters()) == parameters
    large = on_meta(network, 10, 3, 64)
    kernels = [
        [layer.kernel_size for layer in form.modules() if isinstance(layer, nn.Conv2d)] for form in (small, large)
    ]
    assert kernels[0][0] == (5, 5)
    assert kernels[1][0] == (11, 11)
    assert kernels[0][1:] == kernels[1][1:]


@pytest.mark.parametrize("network", [AlexNet, AlexNetOWT])
@pytest.mark.parametrize("size", [64, 65, 66, 97, 224, 227, 256])
def test_any_size_and_what_does_not_fit_the_defaults(network, size):
    for classes, channels in ((1000, 3), (7, 1)):
        pictures = torch.empty(2, channels, size, size + 3, device="meta")
        assert on_meta(network, classes, channels, size)(pictures).shape == (2, classes)


@pytest.mark.parametrize(("network", "smallest"), [(AlexNet, 8), (AlexNetOWT, 15)])
def test_small_pictures(network, smallest):
    for size in (smallest, 28, 32, 63):
        assert on_meta(network, 10, 1, size)(torch.empty(2, 1, size, size, device="meta")).shape == (2, 10)


def test_maps_are_those_of_the_papers_figure():
    shapes = {layer.name: layer.shape for layer in trace(on_meta(AlexNet), (1, 3, 227, 227)).layers}
    # Figure 2 counts neurons: 186,624 – 64,896 – 64,896 – 43,264 – 4096 – 4096 – 1000 after the first layer, for which
    # its 253,440 do not fit the 96 kernels of the text.
    names = ("relu2", "relu3", "relu4", "relu5", "relu6", "relu7", "fc8")
    neurons = [torch.Size(shapes[name]).numel() for name in names]
    assert neurons == [186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert shapes["relu1"] == (1, 96, 55, 55)
    assert [shapes[name][2] for name in ("pool1", "pool2", "pool5")] == [27, 13, 6]


def test_maps_of_224_pixels_are_the_papers_from_the_first_pool_on():
    shapes = {layer.name: layer.shape for layer in trace(on_meta(AlexNet), (1, 3, 224, 224)).layers}
    assert [shapes[name][2] for name in ("conv1", "pool1", "pool2", "pool5")] == [54, 27, 13, 6]


def test_order_of_the_layers():
    names = [name for name, _ in AlexNet(10, 3, 32).named_children()]
    assert names[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    network = on_meta(AlexNet)
    norms = [layer for layer in network.children() if isinstance(layer, LocalResponseNorm)]
    assert [(norm.size, norm.alpha, norm.beta, norm.k) for norm in norms] == [(5, 1e-4, 0.75, 2.0)] * 2
    pools = [layer for layer in network.children() if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(3, 2)] * 3


def test_groups_are_connected_in_the_third_layer_only():
    torch.manual_seed(0)
    network = AlexNet(10, 3, 32).eval()

    def seen(name, inputs):
        """Input channels that the first half of the output channels depends on."""
        maps = torch.randn(1, inputs, 6, 6, requires_grad=True)
        outputs = network.get_submodule(name)(maps)
        outputs[:, : outputs.shape[1] // 2].sum().backward()
        return maps.grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist()

    assert seen("conv2", 96) == list(range(48))
    assert seen("conv3", 256) == list(range(256))
    assert seen("conv4", 384) == list(range(192))
    assert seen("conv5", 384) == list(range(192))


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    for name, values in AlexNet().named_parameters():
        layer, kind = name.split(".")
        if kind == "bias":
            expected = 1.0 if layer in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert values.unique().tolist() == [expected], name
        else:
            # six standard errors of the standard deviation and of the mean
            assert abs(values.std() / 0.01 - 1) < 6 / (2 * values.numel()) ** 0.5, name
            assert abs(values.mean()) < 6 * 0.01 / values.numel() ** 0.5, name


@pytest.mark.large
def test_small_form_learns_from_its_initial_weights(quiet):
    torch.manual_seed(0)
    network = AlexNet(10, 1, 16)
    assert all(not values.any() for name, values in network.named_parameters() if name.endswith("bias"))
    digits = load_digits()
    pictures = torch.tensor(digits.images[:320], dtype=torch.float32)[:, None]
    pictures = nn.functional.interpolate((pictures - pictures.mean()) / pictures.std(), 16)
    labels = torch.tensor(digits.target[:320])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step in range(40):
        some = slice(step * 16 % 320, step * 16 % 320 + 16)
        loss = nn.functional.cross_entropy(network(pictures[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        right = (network(pictures[:100]).argmax(1) == labels[:100]).float().mean()
    assert right > 0.3, right  # of ten classes; with ones in the biases: 0.1


def test_initial_weights_of_the_2014_form_are_pytorchs():
    torch.manual_seed(0)
    for name, values in AlexNetOWT(10, 3, 32).named_parameters():
        if name.endswith("weight"):
            bound = values[0].numel() ** -0.5
            assert 0.99 * bound < values.abs().max() <= bound, name


def test_2014_form_has_the_published_names():
    names = [f"features.{layer}.{kind}" for layer in (0, 3, 6, 8, 10) for kind in ("weight", "bias")]
    names += [f"classifier.{layer}.{kind}" for layer in (1, 4, 6) for kind in ("weight", "bias")]
    assert list(on_meta(AlexNetOWT).state_dict()) == names


@pytest.mark.parametrize("network", [AlexNet, AlexNetOWT])
def test_dropout_of_half_the_hidden_units_in_training_only(network):
    torch.manual_seed(0)
    network = network(10, 3, 32)
    dropped = []
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda layer, inputs, outputs: dropped.append((inputs[0], outputs)))
    pictures = torch.randn(4, 3, 32, 32)
    network(pictures)
    assert len(dropped) == 2
    for inputs, outputs in dropped:
        alive = inputs != 0
        assert abs((outputs[alive] == 0).float().mean() - 0.5) < 0.1
    network.eval()
    assert torch.equal(network(pictures), network(pictures))


@pytest.mark.parametrize("network", [AlexNet, AlexNetOWT])
def test_the_gradient_reaches_every_parameter(network):
    torch.manual_seed(0)
    network = network(10, 3, 32)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(values.grad.abs().sum() > 0 for values in network.parameters())
