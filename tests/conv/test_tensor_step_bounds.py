"""What the kernels of tensor steps read and write: operands and results end, or begin, beside a page of memory that may
not be touched."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fences import Fenced
from svertka.compiler.ir import STATISTICS, MatrixProduct, Padding, Reduction, Softmax
from svertka.compiler.tensor_kernel_arguments import (
    StridedOperand,
    add_border_fill_and_copy,
    add_matrix_product,
    add_reduction,
    add_softmax,
    to_kernel_epilogue,
    to_kernel_interpolation_axis,
)
from svertka.conv import native_support
from svertka.graph.operation_and_value_types import Constant

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason=str(native_support.why_not()))


class Memories:
    """The memories of a program, each between pages that may not be touched."""

    def __init__(self, choose: random.Random) -> None:
        self.choose, self.program = choose, native_support.kernels.Program()
        self.areas: list[Fenced] = []

    def operand(self, tensor: Tensor) -> StridedOperand:
        """A dense tensor with its axes in any order, in a memory of its own."""
        self.areas.append(Fenced(in_memory(tensor), at_end=self.choose.random() < 0.7))
        return StridedOperand((len(self.areas) - 1, 0), tuple(tensor.shape), tensor.stride())

    def constant(self, tensor: Tensor) -> StridedOperand:
        """A constant, which belongs to the program."""
        area = Fenced(in_memory(tensor), at_end=self.choose.random() < 0.7)
        return StridedOperand(
            area.numbers.as_strided(tensor.shape, tensor.stride()), tuple(tensor.shape), tensor.stride()
        )

    def run(self, result: StridedOperand) -> Tensor:
        """The result of the program."""
        threads = self.choose.choice((1, 2, 3))
        self.program.run([area.numbers for area in self.areas], 0, len(self.program), threads)
        memory, offset = result.where
        return self.areas[memory].numbers.as_strided(result.shape, result.strides, offset)


def in_memory(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order in which they are in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def in_any_order(tensor: Tensor, choose: random.Random) -> Tensor:
    """The same numbers, dense, with the axes in another order in memory."""
    order = choose.sample(range(tensor.dim()), tensor.dim())
    return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.dim())])


def drawn_sizes(choose: random.Random, most: int = 20) -> list[int]:
    """The sizes of one to four axes, the last around the widths of vectors."""
    return [choose.randint(1, 5) for _ in range(choose.randint(0, 3))] + [choose.choice((1, 7, 8, 15, 16, 17, most))]


@pytest.fixture
def each_seed(instructions: str, large_count: Callable[[int, int], int]) -> list[tuple[random.Random, str]]:
    """Random choices, and what to say if the test of one fails."""
    torch.manual_seed(0)
    return [(random.Random(seed), f"seed {seed} with {instructions}") for seed in range(large_count(20, 2000))]


def test_matrix_products_stay_inside(each_seed: list[tuple[random.Random, str]]) -> None:
    for choose, name in each_seed:
        batch = [choose.randint(1, 4) for _ in range(choose.randint(0, 3))]
        rows, depth, columns = (choose.choice((1, 3, 8, 14, 15, 16, 17, 33)) for _ in range(3))
        x = in_any_order(torch.randn(*batch, rows, depth), choose)
        y = in_any_order(torch.randn(*(size if choose.random() < 0.8 else 1 for size in batch), depth, columns), choose)
        step, memories = MatrixProduct(0, 1, 2, scale=0.5), Memories(choose)
        exact = step.run(x.double(), y.double())
        operands = memories.operand(x), memories.operand(y), memories.operand(torch.zeros(exact.shape))
        add_matrix_product(memories.program, step, *operands)
        torch.testing.assert_close(memories.run(operands[2]).double(), exact, rtol=0, atol=1e-4, msg=name)


def test_softmaxes_stay_inside(each_seed: list[tuple[random.Random, str]]) -> None:
    for choose, name in each_seed:
        x = torch.randn(drawn_sizes(choose)) * 5
        if choose.random() < 0.5:
            x = in_any_order(x, choose)
        axis = choose.choice([axis for axis in range(x.dim()) if x.stride(axis) == 1 or x.stride(-1) == 1])
        y = torch.randn([size if choose.random() < 0.5 else 1 for size in x.shape]) if choose.random() < 0.5 else None
        memories, step = Memories(choose), Softmax(0, 1, axis, None if y is None else Constant("y"), scale=0.7)
        exact = step.run(x.double(), None if y is None else y.double())
        source, result = memories.operand(x), memories.operand(torch.zeros_like(x))
        add_softmax(memories.program, step, source, None if y is None else memories.constant(y), result)
        torch.testing.assert_close(memories.run(result).double(), exact, rtol=0, atol=1e-5, msg=name)


def test_reductions_stay_inside(each_seed: list[tuple[random.Random, str]]) -> None:
    for choose, name in each_seed:
        x = in_any_order(torch.randn(drawn_sizes(choose, 70)), choose)
        axes = tuple(sorted(choose.sample(range(x.dim()), choose.randint(1, min(x.dim(), 2)))))
        step = Reduction(0, 1, choose.choice(list(STATISTICS)), axes, keep=choose.random() < 0.5, bounds=(-2.0, 2.0))
        exact, memories = step.run(x.double()).clamp(-2, 2), Memories(choose)
        source, result = memories.operand(x), memories.operand(torch.zeros(exact.shape))
        add_reduction(memories.program, step, source, result)
        torch.testing.assert_close(memories.run(result).double(), exact, rtol=0, atol=1e-4, msg=name)


def test_padding_stays_inside(each_seed: list[tuple[random.Random, str]]) -> None:
    for choose, name in each_seed:
        x = in_any_order(torch.randn(drawn_sizes(choose)), choose)
        before, after = (tuple(choose.randint(0, 3) for _ in x.shape) for _ in range(2))
        step, memories = Padding(0, 1, before, after, value=1.5), Memories(choose)
        exact = step.run(x)
        source, result = memories.operand(x), memories.operand(in_any_order(torch.zeros(exact.shape), choose))
        add_border_fill_and_copy(memories.program, step, source, result)
        torch.testing.assert_close(memories.run(result), exact, rtol=0, atol=0, msg=name)


def test_interpolations_stay_inside(each_seed: list[tuple[random.Random, str]]) -> None:
    kernels = native_support.kernels
    for choose, name in each_seed:
        batch, channels, height, width = (choose.randint(1, most) for most in (3, 40, 9, 9))
        x = torch.randn(batch, height, width, channels)
        axes, exact = [], x.double()
        for axis, size in ((1, height), (2, width)):
            out_size, taps = choose.randint(1, 20), choose.randint(1, 4)
            indices, weights = torch.randint(size, (out_size, taps)), torch.randn(out_size, taps)
            axes.append(to_kernel_interpolation_axis(size, indices, weights))
            matrix = torch.zeros(out_size, size, dtype=torch.float64)
            matrix.scatter_add_(1, indices, weights.double())
            exact = torch.tensordot(matrix, exact, dims=([1], [axis])).movedim(0, axis)
        memories = Memories(choose)
        memories.operand(x)
        result = memories.operand(torch.zeros(exact.shape))
        ending = to_kernel_epilogue(Reduction(0, 1, "SUM", (0,), keep=False, bounds=(-1.0, 1.0)))
        memories.program.add_interpolation(
            batch, channels, *axes, kernels.Place(0, 0), channels, ending, kernels.Place(1, 0), channels
        )
        torch.testing.assert_close(memories.run(result).double(), exact.clamp(-1, 1), rtol=0, atol=1e-4, msg=name)
