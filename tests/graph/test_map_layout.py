"""Feature maps are found in tokens and channels-last tensors, checked with a network whose values are positions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svertka.graph.map_layout import MapLayout
from svertka.graph.summary import Layer, trace

ROWS, COLUMNS = 4, 6


class Traced(nn.Module):
    """`step` followed by a layer, "mark", whose output is inspected."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step, self.mark = step, nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return self.mark(self.step(image)).flatten(1).sum(1)


def marked(step: Callable[[Tensor], Tensor], batch: int = 2) -> tuple[Traced, Layer]:
    network = Traced(step)
    layers = trace(network, (batch, 5, ROWS, COLUMNS)).layers
    (layer,) = [layer for layer in layers if layer.name == "mark"]
    return network, layer


def windows(x: Tensor) -> Tensor:
    """Two windows side by side, as in Swin."""
    images = x.permute(0, 2, 3, 1)
    return images.reshape(len(x), ROWS, 2, COLUMNS // 2, 5).transpose(1, 2).reshape(2 * len(x), -1, 5)


def unwindows(x: Tensor) -> Tensor:
    return x.reshape(-1, 2, ROWS, COLUMNS // 2, 5).transpose(1, 2).reshape(-1, ROWS, COLUMNS, 5)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def with_class_token(x: Tensor, count: int = 1) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([torch.zeros(1, count, 5).expand(len(x), -1, -1), tokens], 1)


MOVES = {
    "maps": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(2, 3),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "channels before tokens": lambda x: x.flatten(2),
    "class token": with_class_token,
    "three class tokens": lambda x: with_class_token(x, 3),
    "tokens before registers": lambda x: torch.cat([x.flatten(2).transpose(1, 2), torch.zeros(len(x), 2, 5)], 1),
    "tokens first": lambda x: x.flatten(2).permute(2, 0, 1),
    "tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (ROWS, COLUMNS)),
    "without the class token": lambda x: with_class_token(x)[:, 1:],
    "flattened with the batch": lambda x: x.permute(0, 2, 3, 1).flatten(0, 2).reshape(len(x), -1, 5),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MOVES)
def test_feature_maps_are_found_where_they_are(name: str, batch: int):
    network, layer = marked(MOVES[name], batch)
    image = torch.randn(batch, 5, ROWS, COLUMNS)
    assert torch.equal(layer.maps.to_maps(network.step(image)), image)
    assert layer.maps.is_standard == (name in ("maps", "tokens and back"))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.permute(0, 2, 3, 1) + unwindows(attend(windows(x))),
        lambda x: unwindows(attend(windows(x))) + x.permute(0, 2, 3, 1),
        lambda x: with_class_token(x) + attend(with_class_token(x)),
        lambda x: F.gelu(F.layer_norm(with_class_token(x), (5,))),
        lambda x: x.flatten(2).transpose(1, 2) + F.linear(x.flatten(2), torch.eye(24)).transpose(1, 2),
    ],
)
def test_a_residual_stream_keeps_its_positions(step: Callable[[Tensor], Tensor]):
    _, layer = marked(step)
    assert layer.maps.size == (ROWS, COLUMNS)


def test_blocks_of_pixels_are_positions():
    def merged(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), 2, 2, 3, 2, 5).transpose(2, 3).flatten(3)

    network, layer = marked(merged)
    image = torch.randn(2, 5, ROWS, COLUMNS)
    assert layer.maps == MapLayout((0, 3, 1, 2), (2, 3))
    expected = F.pixel_unshuffle(image, 2).unflatten(1, (5, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(layer.maps.to_maps(network.step(image)), expected)


def test_attention_keeps_the_positions_of_its_queries():
    def downsampled(x: Tensor) -> Tensor:
        tokens, heads = x.permute(0, 2, 3, 1), 5
        queries = tokens[:, ::2, ::2].reshape(len(x), -1, heads, 1).transpose(1, 2)
        keys = tokens.reshape(len(x), -1, heads, 1).transpose(1, 2)
        return ((queries @ keys.transpose(2, 3)).softmax(-1) @ keys).transpose(1, 2).reshape(len(x), -1, heads)

    _, layer = marked(downsampled)
    assert layer.shape == (2, 6, 5)
    assert layer.maps == MapLayout((0, 2, 1, 1), (2, 3))


@pytest.mark.parametrize(
    "step",
    [
        windows,
        lambda x: attend(x.flatten(2)[:, None])[:, 0].softmax(1) @ x.flatten(2).transpose(1, 2),
        lambda x: with_class_token(x)[:, 3:],
        lambda x: with_class_token(x)[:, 0],
        lambda x: x.flatten(2).transpose(1, 2).roll(1, 1),
        lambda x: torch.cat([x.flatten(2), x.flatten(2)], 2),
        lambda x: x.mean((2, 3), keepdim=True).flatten(1),
        lambda x: x.reshape(len(x), 5, COLUMNS, ROWS).reshape(len(x), 5, ROWS, 2, 3),
    ],
)
def test_lost_positions_are_not_invented(step: Callable[[Tensor], Tensor]):
    assert marked(step)[1].maps is None


def test_an_attention_matrix_is_not_feature_maps():
    def matrix(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return (tokens @ tokens.transpose(2, 3)).softmax(-1)

    assert marked(matrix)[1].maps is None


class ClassToken(nn.Module):
    """Attention from a class token, then a dense layer over it alone, or over the mean of the others."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling, self.before, self.after, self.head = pooling, nn.LayerNorm(5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, image: Tensor) -> Tensor:
        tokens = with_class_token(image)
        tokens = self.after(tokens + attend(self.before(tokens)))
        return self.head(tokens[:, 0] if self.pooling == "token" else tokens[:, 1:].mean(1))


@pytest.mark.parametrize(("pooling", "is_read"), [("token", False), ("mean", True)])
def test_what_a_network_reads_of_tokens(pooling: str, is_read: bool):
    layers = {layer.name: layer for layer in trace(ClassToken(pooling), (2, 5, ROWS, COLUMNS)).layers}
    assert layers["before"].maps.is_read
    assert layers["after"].maps.is_read == is_read
