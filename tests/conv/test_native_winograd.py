import os
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import native_support, native_winograd
from svertka.conv_shape import ConvShape

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))

Passes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(shape: ConvShape, seed: int = 0) -> Passes:
    """x, weights and the gradient of the result, normally distributed, channels-last."""
    generator = torch.Generator().manual_seed(seed)
    sizes = shape.input, shape.weight, shape.output
    drawn = [torch.randn(size, generator=generator) for size in sizes]
    x, weight, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in drawn)
    return x, weight, gradient


def passes(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape) -> Passes:
    return (
        native_winograd.forward(x, weight, shape),
        native_winograd.input_gradient(gradient, weight, shape),
        native_winograd.weight_gradient(gradient, x, shape),
    )


def exactly(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, shape: ConvShape) -> Passes:
    """The same three in float64 by PyTorch."""
    x, weight, gradient = x.double(), weight.double(), gradient.double()
    return (
        F.conv2d(x, weight, padding=shape.padding),
        torch.nn.grad.conv2d_input(shape.input, weight, gradient, padding=shape.padding),
        torch.nn.grad.conv2d_weight(x, shape.weight, gradient, padding=shape.padding),
    )


def sizes_of_sums(shape: ConvShape) -> list[float]:
    """Root mean square, for each pass, of results that read no padding: sums of so many products of normal numbers.

    That of all results would be smaller where most read zeros, while the largest error is found among the others.
    """
    products = 9 * shape.in_channels, 9 * shape.out_channels, shape.batch * shape.out_height * shape.out_width
    return [count**0.5 for count in products]


def largest_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative to the root mean square of the exact result, and to no less than that of a sum of one product."""
    assert result.shape == exact.shape
    return float((result - exact).abs().max() / exact.square().mean().sqrt().clamp(min=1))


def test_random_convolutions_agree_with_float64(
    instructions: str, large_count: Callable[[int, int], int], three_by_three: st.SearchStrategy[ConvShape]
) -> None:
    @settings(max_examples=large_count(10, 2000), deadline=None)
    @given(shape=three_by_three, seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(shape: ConvShape, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        operands = tensors(shape, seed)
        expected = zip(exactly(*operands, shape), sizes_of_sums(shape), strict=True)
        for result, (exact, size) in zip(passes(*operands, shape), expected, strict=True):
            assert result.shape == exact.shape
            assert (result - exact).abs().max() < 2e-5 * size  # the largest of 1,500 such shapes: 1.2e-5
            assert result.is_contiguous(memory_format=torch.channels_last)

    checked()


def test_random_convolutions_in_larger_tiles_agree_with_float64(
    instructions: str, large_count: Callable[[int, int], int], three_by_three: st.SearchStrategy[ConvShape]
) -> None:
    @settings(max_examples=large_count(10, 2000), deadline=None)
    @given(
        shape=three_by_three,
        seed=st.integers(0, 2**32),
        threads=st.sampled_from((1, 2, 3)),
        epilogue=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def checked(shape: ConvShape, seed: int, threads: int, epilogue: tuple[bool, bool, bool]) -> None:
        torch.set_num_threads(threads)
        x, weight, residual = tensors(shape, seed)
        has_bias, has_residual, relu = epilogue
        bias = torch.linspace(-3, 3, shape.out_channels) if has_bias else None
        exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=shape.padding)
        exact = exact + residual if has_residual else exact
        packed = native_winograd.pack_weight(weight)
        result = native_winograd.forward_with_epilogue(
            x, packed, shape, bias=bias, residual=residual if has_residual else None, relu=relu, tile=6
        )
        difference = (result - (exact.relu() if relu else exact)).abs().max()
        assert difference < 8e-5 * sizes_of_sums(shape)[0]

    checked()


def test_bfloat16_is_rounded_once(
    instructions: str, large_count: Callable[[int, int], int], three_by_three: st.SearchStrategy[ConvShape]
) -> None:
    @settings(max_examples=large_count(8, 1000), deadline=None)
    @given(shape=three_by_three, seed=st.integers(0, 2**32), threads=st.sampled_from((1, 2, 3)))
    def checked(shape: ConvShape, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        x, weight, gradient = tensors(shape, seed)
        x, gradient = x.bfloat16(), gradient.bfloat16()  # weights are what they are under autocast, float32
        expected = zip(exactly(x, weight, gradient, shape), sizes_of_sums(shape), strict=True)
        results = passes(x, weight, gradient, shape)
        assert [result.dtype for result in results] == [torch.bfloat16, torch.bfloat16, torch.float32]
        for result, (exact, size) in zip(results, expected, strict=True):
            assert result.is_contiguous(memory_format=torch.channels_last)
            # Eight digits: to the nearest is 1/256 at most; and before that what float32 is off by, as above.
            digits = 0 if result.dtype == torch.float32 else 1 / 256
            assert ((result - exact).abs() <= digits * exact.abs() + 2.1e-5 * size).all()

    checked()


# Each of these takes another way through the plans: many tiles or few, weights in several portions, tiles of all four
# kinds, a result for each thread.
@pytest.mark.parametrize(
    "sizes", [(2, 48, 64, 50, 30), (1, 300, 192, 9, 7), (16, 16, 16, 14, 13), (3, 20, 300, 11, 40)]
)
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.sample(16)
def test_every_plan_agrees_with_float64(instructions: str, sizes: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    shape = ConvShape(*sizes, (3, 3), padding=(1, 1))
    operands = tensors(shape)
    for result, exact in zip(passes(*operands, shape), exactly(*operands, shape), strict=True):
        assert largest_error(result, exact) < 1e-5
    x, weight, _ = operands
    result = native_winograd.forward_with_epilogue(x, native_winograd.pack_weight(weight), shape, tile=6)
    assert largest_error(result, exactly(*operands, shape)[0]) < 7e-5


# One to nine tiles of all four kinds, of more inputs than one block. With up to eight, weights are transformed in
# registers.
def test_few_tiles_agree_with_float64(instructions: str) -> None:
    maps = [(1, 2, 1), (1, 3, 4), (1, 4, 7), (1, 11, 3), (1, 7, 7), (1, 8, 7), (1, 8, 8), (2, 3, 6), (5, 4, 3)]
    maps += [(2, 3, 9), (7, 4, 4), (2, 7, 6), (1, 6, 13), (1, 9, 11)]
    for number, (batch, height, width) in enumerate(maps):
        torch.set_num_threads(1 + number % 3)
        shape = ConvShape(batch, 60 + 7 * number, 33 + 5 * number, height, width, (3, 3), padding=(1, 1))
        x, weight, residual = tensors(shape)
        exact = F.conv2d(x.double(), weight.double(), padding=(1, 1))
        limit = 2e-5 * sizes_of_sums(shape)[0]
        assert (native_winograd.forward(x, weight, shape) - exact).abs().max() < limit
        packed = native_winograd.pack_weight(weight)
        result = native_winograd.forward_with_epilogue(x, packed, shape, residual=residual, relu=True)
        assert (result - (exact + residual).relu()).abs().max() < limit


# 81 tiles, whose transformed weights are kept, or transformed for each block.
@pytest.mark.parametrize("channels", [(512, 264), (1300, 200)])
def test_larger_tiles_of_many_weights_agree_with_float64(instructions: str, channels: tuple[int, int]) -> None:
    shape = ConvShape(1, *channels, 54, 54, (3, 3), padding=(1, 1))
    x, weight, _ = tensors(shape)
    result = native_winograd.forward_with_epilogue(x, native_winograd.pack_weight(weight), shape, tile=6)
    exact = F.conv2d(x[:, :, 46:].double(), weight.double(), padding=1)[:, :, 1:]
    assert largest_error(result[:, :, 47:], exact) < 1e-4


@pytest.mark.parametrize("sizes", [(240, 16, 20, 4, 3), (480, 128, 130, 4, 1)])
def test_weight_gradients_add_blocks_of_tiles(instructions: str, sizes: tuple[int, ...]) -> None:
    shape = ConvShape(*sizes, (3, 3), padding=(1, 1))  # a tile for each image, and at most 448 tiles in a block
    x, _, gradient = (one.bfloat16() for one in tensors(shape))
    exact = torch.nn.grad.conv2d_weight(x.double(), shape.weight, gradient.double(), padding=shape.padding)
    for pairs, limit in ((False, 1e-5), (True, 0.015)):
        result = native_winograd.weight_gradient(gradient, x, shape, pairs=pairs).double()
        assert (result - exact).square().mean() < limit**2 * exact.square().mean()


def test_weights_too_large_to_keep_transformed_are_transformed_for_each_block(instructions: str) -> None:
    shape = ConvShape(1, 2400, 200, 46, 46, (3, 3), padding=(1, 1))  # 144 tiles
    x, weight, _ = tensors(shape)
    result, rows = native_winograd.forward(x, weight, shape), slice(20, 26)
    assert largest_error(result[:, :, 21:25], F.conv2d(x[:, :, rows].double(), weight.double(), padding=(0, 1))) < 3e-5


def test_the_error_at_256_channels_is_as_stated(instructions: str, error: Callable[..., tuple[float, float]]) -> None:
    shape = ConvShape(2, 256, 256, 28, 28, (3, 3), padding=(1, 1))
    operands = tensors(shape)
    for result, exact in zip(passes(*operands, shape), exactly(*operands, shape), strict=True):
        root_mean_square, largest = error(result, exact)
        assert root_mean_square < 1.1e-6
        assert largest < 1e-5
    x, weight, _ = operands
    result = native_winograd.forward_with_epilogue(x, native_winograd.pack_weight(weight), shape, tile=6)
    root_mean_square, largest = error(result, exactly(*operands, shape)[0])
    assert 2e-6 < root_mean_square < 4.6e-6  # less would be that of the smaller tiles
    assert largest < 4e-5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_order_is_taken(layout: torch.memory_format) -> None:
    shape = ConvShape(2, 5, 6, 9, 8, (3, 3), padding=(1, 0))
    operands = tensors(shape)
    expected = passes(*operands, shape)
    others = [tensor.repeat_interleave(2, 3)[..., ::2] for tensor in operands]
    in_layout = [tensor.contiguous(memory_format=layout) for tensor in operands]
    for results in (passes(*others, shape), passes(*in_layout, shape)):
        assert all(torch.equal(result, one) for result, one in zip(results, expected, strict=True))


@pytest.mark.parametrize(("batch", "out_channels"), [(1, 40), (1, 64), (20, 130), (4, 33)])
def test_bias_residual_and_relu_are_applied_in_this_order(instructions: str, batch: int, out_channels: int) -> None:
    shape = ConvShape(batch, 24, out_channels, 13, 18, (3, 3), padding=(1, 1))
    x, weight, residual = tensors(shape)
    bias = torch.linspace(-3, 3, out_channels)
    packed = native_winograd.pack_weight(weight)
    plain = native_winograd.forward_with_epilogue(x, packed, shape)
    assert torch.equal(plain, native_winograd.forward(x, weight, shape))
    biased = native_winograd.forward_with_epilogue(x, packed, shape, bias=bias)
    assert torch.equal(biased, plain + bias[:, None, None])
    both = native_winograd.forward_with_epilogue(x, packed, shape, bias=bias, residual=residual.contiguous(), relu=True)
    assert torch.equal(both, (biased + residual).relu())


def test_a_value_that_is_not_finite_reaches_its_results_and_no_other_tile(instructions: str) -> None:
    shape = ConvShape(2, 20, 40, 24, 24, (3, 3), padding=(1, 1))  # whole tiles only: 6×6 of 4×4
    x, weight, gradient = tensors(shape)
    clean = native_winograd.forward(x, weight, shape)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = x.clone()
        spoiled[1, 3, 9, 14] = value
        result = native_winograd.forward(spoiled, weight, shape)
        assert not result[1, :, 8:11, 13:16].isfinite().any()  # what reads the pixel
        unharmed = torch.ones(24, 24, dtype=torch.bool)
        unharmed[8:12, 12:16] = False  # the tile they lie in
        assert torch.equal(result[0], clean[0])
        assert torch.equal(result[1][:, unharmed], clean[1][:, unharmed])
        assert (
            not native_winograd.input_gradient(spoiled_like(gradient, value), weight, shape)[0, :, 3:6, 4:7]
            .isfinite()
            .any()
        )
        assert not native_winograd.weight_gradient(gradient, spoiled, shape)[:, 3].isfinite().any()
    relu = native_winograd.forward_with_epilogue(
        spoiled_like(x, torch.nan), native_winograd.pack_weight(weight), shape, relu=True
    )
    assert relu[0, :, 3:6, 4:7].isnan().all()


def spoiled_like(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[0, 2, 4, 5] = value
    return tensor


def test_tiny_numbers_are_computed_with(instructions: str) -> None:
    shape = ConvShape(1, 16, 16, 8, 8, (3, 3), padding=(1, 1))
    x, weight, gradient = tensors(shape)
    x, gradient = x * 1e-39, gradient * 1e-39  # denormal
    results = passes(x, weight, gradient, shape)[:2]
    for result, exact in zip(results, exactly(x, weight, gradient, shape)[:2], strict=True):
        assert (result - exact).abs().max() < 1e-42  # some units of the smallest denormal, 1.4e-45


def test_an_empty_batch_gives_an_empty_result_and_no_gradient(instructions: str) -> None:
    shape = ConvShape(0, 20, 24, 8, 8, (3, 3), padding=(1, 1))
    result, input_gradient, weight_gradient = passes(*tensors(shape), shape)
    assert result.shape == shape.output
    assert input_gradient.shape == shape.input
    assert torch.equal(weight_gradient, torch.zeros(shape.weight))


def test_the_number_of_threads_changes_no_forward_result_and_repeats_the_weight_gradient() -> None:
    for channels in (32, 300):  # the weight gradient in either plan
        shape = ConvShape(6, channels, channels, 20, 20, (3, 3), padding=(1, 1))
        operands = tensors(shape)
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results[threads] = passes(*operands, shape)
            assert torch.equal(results[threads][2], native_winograd.weight_gradient(operands[2], operands[0], shape))
        for one, other in ((1, 2), (1, 3)):
            assert torch.equal(results[one][0], results[other][0])
            assert torch.equal(results[one][1], results[other][1])
            assert largest_error(results[one][2], results[other][2].double()) < 1e-5


def test_several_python_threads_may_compute_at_once() -> None:
    shapes_here = [ConvShape(2, 17 * i, 24, 20, 14 + i, (3, 3), padding=(1, 1)) for i in range(1, 5)]
    operands = [tensors(shape) for shape in shapes_here]
    expected = [passes(*three, shape) for three, shape in zip(operands, shapes_here, strict=True)]
    wrong = []

    def work(i: int) -> None:
        torch.set_num_threads(1 + i % 2)
        for _ in range(20):
            results = passes(*operands[i], shapes_here[i])
            wrong.extend(
                (i, largest_error(result, one.double()))
                for result, one in zip(results, expected[i], strict=True)
                if largest_error(result, one.double()) > 1e-5
            )

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_process_computes_with_one_thread() -> None:
    shape = ConvShape(2, 32, 32, 20, 20, (3, 3), padding=(1, 1))
    operands = tensors(shape)
    torch.set_num_threads(2)
    expected = passes(*operands, shape)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # as in the workers of a DataLoader
        same = torch.equal(passes(*operands, shape)[0], expected[0])
        os.write(write, b"same" if same else b"different")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"same"
    os.waitpid(child, 0)


def test_what_the_kernels_cannot_do_has_a_reason() -> None:
    shape = ConvShape(1, 4, 4, 8, 8, (3, 3), padding=(1, 1))
    assert native_winograd.why_not(shape, torch.float32) is None
    assert native_winograd.why_not(shape, torch.bfloat16) is None
    assert native_winograd.why_not(shape, torch.float64) == "the kernels compute float32 and bfloat16, not float64"
    for other in (
        ConvShape(1, 4, 4, 8, 8, (5, 5)),
        ConvShape(1, 4, 4, 8, 8, (3, 3), stride=(1, 2)),
        ConvShape(1, 4, 4, 8, 8, (3, 3), dilation=(2, 2)),
    ):
        assert (
            native_winograd.why_not(other, torch.float32) == "the kernels are for 3×3 taps side by side, with stride 1"
        )
    assert (
        native_winograd.why_not(ConvShape(1, 4, 4, 8, 8, (3, 3), groups=2), torch.float32)
        == "the kernels have no groups"
    )
