"""Operations in terms of simpler ones: compared with float64, by the kernels and by PyTorch's operations."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.compiler.compiled_functions import Function, compile_exactly, count_steps
from torch import Tensor, nn

from svertka.compiler.ir import Elementwise, FusedConvolution, MatrixProduct, Softmax

SHAPE = 4, 8, 6
TOKENS = 24, 4, 3


def heads(x: Tensor) -> Any:
    """Return queries, keys and values of two heads, (N, 2, 12, 4), of maps with 24 channels."""
    return x.flatten(2).transpose(1, 2).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)


def test_attention_is_two_products_and_a_softmax(tmp_path: Path) -> None:
    def written_out(_: Any, x: Tensor) -> Tensor:
        q, k, v = heads(x)
        return (((q * 0.3) @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    bias = nn.Parameter(torch.randn(2, 12, 12))
    for network in (
        Function(written_out),
        Function(lambda _, x: F.scaled_dot_product_attention(*heads(x)).transpose(1, 2).flatten(2)),
        Function(lambda _, x: F.scaled_dot_product_attention(*heads(x), is_causal=True)),
        Function(lambda net, x: F.scaled_dot_product_attention(*heads(x), attn_mask=net.bias, scale=0.7), bias=bias),
    ):
        optimized = compile_exactly(network, TOKENS, tmp_path)
        assert (count_steps(optimized, MatrixProduct), count_steps(optimized, Softmax)) == (2, 1)
        assert count_steps(optimized, Elementwise) == 0


def test_attention_layers_of_pytorch(tmp_path: Path) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    network = Function(
        lambda net, x: net.layer(*[x.flatten(2).transpose(1, 2)] * 3, need_weights=False)[0], layer=layer
    )
    assert count_steps(compile_exactly(network, (8, 4, 3), tmp_path), FusedConvolution) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: torch.einsum("B H I D, B H J D -> B H I J", x, x * 2),
        lambda _, x: torch.einsum("nchw,nkhw->nck", x, x.relu()),
        lambda _, x: torch.einsum("nchw,nchk->wcnk", x, x.relu()),
        lambda _, x: x.roll((1, -2), (2, 3)),
        lambda _, x: x.roll(-9, 2),
        lambda _, x: F.pixel_shuffle(x, 2),
        lambda _, x: F.pixel_unshuffle(x, 2),
        lambda _, x: F.channel_shuffle(x, 2),
        lambda _, x: F.glu(x, 1),
        lambda net, x: torch.addcmul(net.bias, net.scale, x.relu()),
        lambda net, x: x.relu() @ net.matrix,
        lambda net, x: net.norm(x),
    ],
)
def test_operations_in_terms_of_simpler_ones(function: Any, tmp_path: Path) -> None:
    network = Function(
        function,
        bias=nn.Parameter(torch.randn(4, 1, 1)),
        scale=nn.Parameter(torch.randn(4, 1, 1)),
        matrix=nn.Parameter(torch.randn(6, 9)),
        norm=nn.InstanceNorm2d(4, affine=True),
    )
    compile_exactly(network, SHAPE, tmp_path)


def test_global_response_normalization_is_the_gate_of_the_next_convolution(tmp_path: Path) -> None:
    def block(net: Any, x: Tensor) -> Tensor:
        x = F.gelu(net.wide(x))
        norm = x.norm(dim=(2, 3), keepdim=True)
        normalized = x * (norm / (norm.mean(1, keepdim=True) + 1e-6))
        return net.narrow(x + torch.addcmul(net.bias.view(1, -1, 1, 1), net.weight.view(1, -1, 1, 1), normalized))

    parts = {name: nn.Parameter(torch.randn(16)) for name in ("weight", "bias")}
    network = Function(block, wide=nn.Conv2d(4, 16, 1), narrow=nn.Conv2d(16, 4, 1), **parts)
    optimized = compile_exactly(network, SHAPE, tmp_path)
    convolutions = [step for step in optimized.compiled[0].fused.steps if isinstance(step, FusedConvolution)]
    assert [step.gate is None for step in convolutions] == [True, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 3, "groups": 4},
        {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1, "bias": False},
        {"kernel_size": (1, 3), "stride": 2},
    ],
)
def test_transposed_convolutions_are_convolutions(settings: dict[str, Any], tmp_path: Path) -> None:
    network = Function(lambda net, x: net.layer(x).relu(), layer=nn.ConvTranspose2d(4, 8, **settings))
    assert count_steps(compile_exactly(network, SHAPE, tmp_path), FusedConvolution) == 1


def test_convolutions_along_one_axis(tmp_path: Path) -> None:
    """Efficient channel attention convolves the means of channels (Wang et al. 2020, equation 9)."""
    compile_exactly(Function(lambda net, x: net.layer(x.flatten(2)), layer=nn.Conv1d(4, 6, 3, 2, 1)), SHAPE, tmp_path)

    def gate(net: Any, x: Tensor) -> Tensor:
        means = net.layer(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return x * means.sigmoid().expand_as(x)

    compile_exactly(Function(gate, layer=nn.Conv1d(1, 1, 3, padding=1)), SHAPE, tmp_path)


def test_batch_norm_of_tokens_is_folded(tmp_path: Path) -> None:
    def tokens(net: Any, x: Tensor) -> Tensor:
        rows = net.dense(x.flatten(2).transpose(1, 2))
        return net.norm(rows.flatten(0, 1)).reshape_as(rows)

    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    optimized = compile_exactly(Function(tokens, dense=nn.Linear(4, 6), norm=norm), SHAPE, tmp_path)
    assert count_steps(optimized, Elementwise) == 0
