"""Receptive fields against gradients: with positive weights nothing cancels, so what is seen has a gradient."""

import itertools
from collections.abc import Callable, Sequence
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svertka.graph.summary import trace
from svertka.models.registry import find_model

Positive = Callable[[nn.Module], nn.Module]


def seen(gradient: Tensor, axis: int) -> tuple[int, int] | None:
    """The first and the last row, or column, of an image that has a gradient."""
    rows = gradient[0].abs().sum(dim=[0, 2 - axis]).nonzero().flatten().tolist()
    return (rows[0], rows[-1]) if rows else None


def check_every_position(network: nn.Module, shape: Sequence[int]) -> None:
    """All intervals of the last layer of a positive network against the gradients of its rows and columns."""
    image = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    output = network(image)
    layer = trace(network, (1, *shape)).layers[-1]
    assert layer.shape == output.shape
    for axis, field in enumerate(layer.fields):
        other = layer.fields[1 - axis]
        if all(first > last for first, last in other.intervals):
            continue  # sees no pixel, for the sake of the other axis
        assert len(field.intervals) == output.shape[2 + axis]
        for position in range(output.shape[2 + axis]):
            line = output.select(2 + axis, position).sum()
            (gradient,) = torch.autograd.grad(line, image, retain_graph=True)
            first, last = field.of(position)
            assert seen(gradient, axis) == ((first, last) if first <= last else None), (axis, position)


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    pair = lambda least, most: (draw(st.integers(least, most)), draw(st.integers(least, most)))  # noqa: E731
    kind = draw(st.sampled_from(["convolution", "dilated", "pooling", "padding", "adaptive", "transposed"]))
    if kind == "convolution":
        return nn.Conv2d(2, 2, pair(1, 4), pair(1, 3), pair(0, 3))
    if kind == "dilated":
        return nn.Conv2d(2, 2, pair(2, 3), padding=pair(0, 4), dilation=pair(1, 3), groups=2)
    if kind == "pooling":
        return nn.AvgPool2d(draw(st.integers(2, 4)), draw(st.integers(1, 4)), 1, ceil_mode=draw(st.booleans()))
    if kind == "padding":
        return nn.ZeroPad2d((*pair(0, 3), *pair(0, 3)))
    if kind == "adaptive":
        return nn.AdaptiveAvgPool2d(pair(1, 7))
    return nn.ConvTranspose2d(2, 2, pair(1, 3), pair(1, 3))


class Branches(nn.Module):
    """Two ways from the same maps to the same size, joined."""

    def __init__(self, one: nn.Module, other: nn.Module, size: tuple[int, int], concatenates: bool) -> None:
        super().__init__()
        self.one, self.other, self.size = one, other, size
        self.mix = nn.Conv2d(4, 2, kernel_size=1) if concatenates else None

    def forward(self, inputs: Tensor) -> Tensor:
        one = F.adaptive_avg_pool2d(self.one(inputs), self.size)
        other = F.adaptive_avg_pool2d(self.other(inputs), self.size)
        return one + other if self.mix is None else self.mix(torch.cat([one, other], dim=1))


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    chain = draw(st.lists(layers(), min_size=1, max_size=4))
    if draw(st.booleans()):
        branches = Branches(
            draw(layers()), draw(layers()), draw(st.sampled_from([(3, 4), (5, 5)])), draw(st.booleans())
        )
        chain.insert(draw(st.integers(0, len(chain))), branches)
    return nn.Sequential(*chain)


def test_fields_of_random_networks_are_where_gradients_are(
    positive: Positive, large_count: Callable[[int, int], int], quiet: None
) -> None:
    @settings(max_examples=large_count(60, 3000), deadline=None)
    @given(network=networks(), size=st.tuples(st.integers(4, 17), st.integers(4, 17)))
    def check(network: nn.Module, size: tuple[int, int]) -> None:
        try:
            positive(network)(torch.zeros(1, 2, *size, dtype=torch.float64))
        except RuntimeError:
            return  # a kernel is larger than what it is given
        check_every_position(network, (2, *size))

    check()


def test_padding_around_a_mean_sees_nothing(positive: Positive) -> None:
    network = positive(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, kernel_size=1, padding=(0, 1))))
    check_every_position(network, (2, 4, 4))
    (_, columns) = trace(network, (1, 2, 4, 4)).layers[-1].fields
    assert columns.intervals == ((4, -1), (0, 3), (4, -1))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("lenet5", 32), ("alexnet", 131), ("zfnet", 129), ("vgg16", 63), ("googlenet", 97), ("googlenet_bn", 64)),
        *(("inception_v3", 113), ("inception_v4", 99), ("inception_resnet_v2", 95), ("resnet18", 71)),
        *(("resnet50", 97), ("resnet20", 33), ("squeezenet1_1", 83), ("efficientnet_lite0", 79), ("airbench", 32)),
    ],
)
def test_fields_in_real_networks_are_where_gradients_are(
    name: str, size: int, positive: Positive, large_count: Callable[[int, int], int], quiet: None
) -> None:
    model = find_model(name)
    network = positive(model.build(size=size))
    with torch.device("meta"):
        traced = trace(network, (1, model.channels, size, size))
    modules, outputs = dict(network.named_modules()), dict[str, Tensor]()
    spatial = [layer for layer in traced.layers if layer.name in modules and len(layer.shape) == 4]
    random = Random(name)
    chosen = random.sample(spatial, min(len(spatial), large_count(6, 60)))
    for layer in chosen:
        modules[layer.name].register_forward_hook(lambda _, __, output, key=layer.name: outputs.update({key: output}))
    image = torch.rand(1, model.channels, size, size, dtype=torch.float64, requires_grad=True)
    network(image)
    for layer in chosen:
        row, column = (random.randrange(length) for length in layer.shape[2:])
        (gradient,) = torch.autograd.grad(outputs[layer.name][0, :, row, column].sum(), image, retain_graph=True)
        vertical, horizontal = (
            field.of(at if len(field.intervals) > 1 else 0)
            for field, at in zip(layer.fields, (row, column), strict=True)
        )
        assert (seen(gradient, 0), seen(gradient, 1)) == (vertical, horizontal), (layer.name, row, column)


class Tokens(nn.Module):
    """Patches of an image as tokens after a class token, normalized one by one, then summed."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(2, 6, 4, stride), nn.LayerNorm(6)
        self.token, self.head = nn.Parameter(torch.ones(1, 1, 6)), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)).sum(1))


@pytest.mark.parametrize("stride", [2, 4])
def test_a_norm_of_each_token_sees_the_pixels_of_its_patch(stride: int) -> None:
    torch.manual_seed(1)
    network = Tokens(stride).double()
    shape = 1, 2, 12, 16
    fields = {layer.name: layer.fields for layer in trace(network, shape).layers}
    image = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    outputs: list[Tensor] = []
    network.norm.register_forward_hook(lambda *args: outputs.append(args[2]))
    network(image)
    rows, columns = fields["norm"]
    assert (rows.extent, columns.extent) == (4, 4)
    assert [len(field.intervals) for field in fields["norm"]] == [len(field.intervals) for field in fields["patches"]]
    for row, column in itertools.product(range(len(rows.intervals)), range(len(columns.intervals))):
        token = outputs[0][0, 1 + row * len(columns.intervals) + column]
        (gradient,) = torch.autograd.grad(token[0], image, retain_graph=True)
        assert (seen(gradient, 0), seen(gradient, 1)) == (rows.of(row), columns.of(column))
    assert all(field.intervals == ((0, size - 1),) for field, size in zip(fields["head"], shape[2:], strict=True))
