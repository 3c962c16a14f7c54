import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svertka.compiler.bfloat16_maps import store_maps_in_bfloat16
from svertka.compiler.capture_at_several_batch_sizes import capture_graph
from svertka.compiler.fusion import fuse
from svertka.compiler.ir import FusedConvolution
from svertka.compiler.optimize import Optimized, optimize
from svertka.compiler.packing import PackedWeights, choose_precisions, convert_weight_precision, select_kernel_kind
from svertka.compiler.serialize import OptimizationRecord
from svertka.conv import native_support, native_winograd
from svertka.conv_shape import ConvShape

# The root mean square error of a layer whose products are bfloat16, over that of its results, for normally distributed
# inputs and weights. F(4,3) rounds transformed tiles and weights. Errors of layers add up like the square root of their
# number: through 16 layers to 4 × LIMIT = 6 %. F(4,3) with the usual points 0, ±1, ±2, ∞ has 2.1 % and is over it.
ERRORS = {"direct": 0.0024, "winograd": 0.0115}
LIMIT = 0.015

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

ROUNDED = 2.0**-8  # by how much, of itself, a number changes at most that is rounded to bfloat16
SETS = "avx512bf16", "avx512", "avx2", "baseline"


@pytest.fixture(autouse=True)
def _best_instructions() -> Iterator[None]:
    yield
    native_support.select_instruction_set(native_support.instruction_sets()[0])


@pytest.fixture(params=[f"{name} {products}" for name in SETS for products in ("widened", "multiplied")])
def multiplied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether products are of bfloat16, as where processors multiply them; for each instruction set that is here."""
    instructions, products = request.param.split()
    if instructions not in native_support.instruction_sets():
        pytest.skip(f"no {instructions} here")
    threads = torch.get_num_threads()
    native_support.select_instruction_set(instructions)
    monkeypatch.setattr(native_support, "multiplies_bfloat16", lambda: products == "multiplied")
    yield products == "multiplied"
    torch.set_num_threads(threads)


def in_bfloat16(network: nn.Module, x: Tensor) -> Optimized:
    """As `optimize` makes it, without its check: the results of few sums can be small beside what is summed up."""
    fused = fuse(capture_graph(network, tuple(x.shape)))
    steps = store_maps_in_bfloat16(convert_weight_precision(fused, choose_precisions(fused, "bf16", "bf16")))
    return Optimized([(steps, OptimizationRecord(tuple(x.shape), "bf16", "bf16"), None)])


def kernel(optimized: Optimized) -> str:
    (packed,) = optimized.compiled[0].packed.values()
    return packed.kernel


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, ...]]:
    """Convolutions with channels around the widths of vectors, register blocks and pairs, and inputs they take."""
    channels = st.one_of(st.integers(1, 40), st.sampled_from((63, 64, 65, 130, 257)))
    groups, side = draw(st.sampled_from((1, 1, 1, 2))), draw(st.sampled_from((1, 2, 3, 3, 3, 5, 7)))
    ins, outs = draw(channels) * groups, draw(channels) * groups
    stride, padding = draw(st.sampled_from((1, 1, 2))), draw(st.integers(0, side))
    sides = [max(1, side - 2 * padding) + draw(st.integers(0, 17)) for _ in range(2)]
    layer = nn.Conv2d(ins, outs, side, stride, padding, groups=groups, bias=draw(st.booleans()))
    return layer, (draw(st.integers(1, 3)), ins, *sides)


def test_random_bfloat16_convolutions_differ_by_rounding_only(
    multiplied: bool, large_count: Callable[[int, int], int]
) -> None:
    @settings(max_examples=large_count(10, 1000), deadline=None)
    @given(drawn=layers(), seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(drawn: tuple[nn.Conv2d, tuple[int, ...]], seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        layer, shape = drawn
        torch.manual_seed(seed)
        nn.init.normal_(layer.weight)
        x = torch.randn(shape)
        optimized = in_bfloat16(nn.Sequential(layer, nn.ReLU6()), x)
        with torch.inference_mode():
            exact = copy.deepcopy(layer).double()(x.double()).clamp(0, 6)
            weight = layer.weight.double().abs()
            magnitudes = F.conv2d(x.double().abs(), weight, None, layer.stride, layer.padding, 1, layer.groups)
            difference = (optimized(x) - exact).abs()
        size = layer.weight[0].numel() ** 0.5  # root mean square of the sums
        if multiplied and kernel(optimized) == "winograd":
            assert difference.max() < 8 * LIMIT * size  # what was transformed is rounded: by chance, not by a bound
        else:
            # One operand is rounded or both are; then comes what float32 does.
            bound = (2.01 if multiplied else 1) * ROUNDED * magnitudes
            assert (difference <= bound + 3e-5 * max(size, 1)).all()

    checked()


def test_bfloat16_convolutions_of_few_channels_read_their_windows_only(
    multiplied: bool, large_count: Callable[[int, int], int]
) -> None:
    if not multiplied:
        pytest.skip("few channels stay float32")
    draw = random.Random(1)
    for _ in range(large_count(15, 300)):
        torch.set_num_threads(draw.choice((1, 2, 3)))
        taps, dilation = (draw.choice((1, 2, 3, 4, 5, 7)), draw.choice((2, 3, 5, 7))), (draw.choice((1, 2, 3)), 1)
        stride, padding = (draw.choice((1, 2, 3)), draw.choice((1, 2, 3, 4))), (draw.randint(0, 4), draw.randint(0, 4))
        layer = nn.Conv2d(draw.choice((1, 1, 2, 3, 3, 3, 4)), draw.choice((1, 17, 33)), taps, stride, padding, dilation)
        sides = [d * (k - 1) + 1 + draw.randint(0, 20) for d, k in zip(dilation, taps, strict=True)]
        x = torch.randn(draw.choice((1, 2)), layer.in_channels, *sides)
        x[0, -1, draw.randrange(sides[0]), draw.randrange(sides[1])] = torch.nan
        with torch.inference_mode():
            exact = copy.deepcopy(layer).double()(x.double())
            found = in_bfloat16(layer, x)(x)
        assert torch.equal(found.isnan(), exact.isnan())
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.03, equal_nan=True)


@pytest.mark.parametrize(("name", "layer"), [("direct", nn.Conv2d(256, 64, 1)), ("winograd", nn.Conv2d(128, 64, 3))])
def test_bfloat16_errors_of_kernels(multiplied: bool, name: str, layer: nn.Conv2d) -> None:
    torch.manual_seed(2)
    nn.init.normal_(layer.weight)
    x = torch.randn(1, layer.in_channels, 30, 30)
    optimized = in_bfloat16(layer, x)
    assert kernel(optimized) == name
    with torch.inference_mode():
        exact = copy.deepcopy(layer).double()(x.double())
        error = float((optimized(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    stated = ERRORS[name] if multiplied else 0.0017  # of weights alone, and of inputs as much: √2 times that is 0.0024
    assert 0.9 * stated < error <= stated < LIMIT


def test_few_inputs_stay_float32_without_bfloat16_instructions(multiplied: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    optimized = in_bfloat16(network, torch.randn(1, 3, 9, 9))
    first, second, third = (packed.numbers.dtype for packed in optimized.compiled[0].packed.values())
    assert first == (torch.bfloat16 if multiplied else torch.float32)
    assert second == torch.bfloat16
    assert third == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "size",
    [
        (70, 37, 3, 3),
        (33, 21, 5, 5),
        (40, 16, 2, 3),
        (24, 5, 3, 3),
        (9, 1, 3, 3),
        (80, 45, 3, 3),
        (150, 70, 2, 2),
        (64, 3, 7, 7),
        (33, 3, 4, 2),
        (20, 3, 1, 5),
        (17, 4, 3, 3),
    ],
)
def test_unpack_inverts_packing(size: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(size).to(dtype)
    groups = {5: 2, 1: 9, 45: 2, 70: 2}.get(size[1], 1)
    step = FusedConvolution(0, 1, "w", None, (1, 1), (0, 0), (1, 1), groups)
    packed = PackedWeights.of(step, weight, dense=False)
    assert packed.kernel == select_kernel_kind(step, size)
    assert packed.unpack().dtype == (torch.float32 if packed.kernel in ("depthwise", "grouped") else dtype)
    assert torch.equal(packed.unpack(), weight)


@pytest.mark.parametrize(
    ("ins", "outs", "groups", "stride", "kernel"),
    [
        (90, 90, 30, 1, "grouped"),
        (64, 32, 16, 1, "grouped"),
        (128, 32, 32, 1, "grouped"),
        (40, 80, 40, 1, "grouped"),
        (46, 46, 2, 1, "grouped"),
        (48, 48, 2, 1, "winograd"),
        (48, 48, 2, 2, "grouped"),
        (128, 128, 2, 2, "grouped"),
        (130, 130, 2, 2, "direct"),
        (40, 40, 40, 1, "depthwise"),
    ],
)
def test_the_kernel_of_a_group_depends_on_its_channels(
    ins: int, outs: int, groups: int, stride: int, kernel: str
) -> None:
    layer = nn.Conv2d(ins, outs, 3, stride, padding=1, groups=groups)
    step = FusedConvolution(0, 1, "w", None, (stride, stride), (1, 1), (1, 1), groups)
    assert select_kernel_kind(step, tuple(layer.weight.shape)) == kernel
    optimized, x = optimize(layer.eval(), torch.randn(2, ins, 9, 9)), torch.randn(2, ins, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(x), layer(x), rtol=0, atol=1e-5 * max(1, ins / groups) ** 0.5)


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False)])
def test_float32_maps_of_24_pixels_have_larger_winograd_tiles(groups: int, bias: bool) -> None:
    layer = nn.Conv2d(48, 48, 3, padding=1, groups=groups, bias=bias).eval()
    for side, tile in ((23, 4), (24, 6)):
        x = torch.randn(3, 48, side, 24)
        optimized = optimize(layer, x)
        parts = zip(x.chunk(groups, 1), layer.weight.detach().chunk(groups), strict=True)
        shape = ConvShape(3, 48 // groups, 48 // groups, side, 24, (3, 3), padding=(1, 1))
        expected = [
            native_winograd.forward_with_epilogue(
                part, native_winograd.pack_weight(weight), shape, bias=layer.bias if bias else None, tile=tile
            )
            for part, weight in parts
        ]
        assert torch.equal(optimized(x), torch.cat(expected, 1))
        assert torch.equal(optimized(x)[:1], optimized(x[:1]))


def test_a_file_is_read_with_other_instruction_sets(tmp_path: Path) -> None:
    """Weights of groups, float32 or bfloat16, are packed for the instruction set that reads them."""
    sets, x = native_support.instruction_sets(), torch.randn(2, 48, 9, 9)
    groups = [nn.Conv2d(48, 48, 3, padding=1, groups=groups) for groups in (2, 3, 6, 12, 16, 48)]
    network = nn.Sequential(*groups, nn.Conv2d(48, 20, 3)).eval()
    exact = copy.deepcopy(network).double()(x.double())
    for writes in sets:
        native_support.select_instruction_set(writes)
        optimize(network, x, precision="bf16").save(tmp_path / writes)
    for reads in sets:
        native_support.select_instruction_set(reads)
        for writes in sets:
            found = Optimized.load(tmp_path / writes)(x)
            assert (found - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()
