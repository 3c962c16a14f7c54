"""Random convolutions, and what every algorithm is held to: the explicit matrix, in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svertka.conv import native_support, sparse_matrix
from svertka.conv_shape import ConvShape


@dataclass(frozen=True)
class Case:
    """One convolution and its three tensors; `gradient` is that of the result."""

    shape: ConvShape
    x: torch.Tensor
    weight: torch.Tensor
    gradient: torch.Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return replace(self, x=self.x.to(dtype), weight=self.weight.to(dtype), gradient=self.gradient.to(dtype))

    @cached_property
    def exact(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three passes of the explicit matrix in float64, computed once for all that are compared with them."""
        return self.to(torch.float64).passes(sparse_matrix)

    @cached_property
    def magnitudes(self) -> list[float]:
        """For each pass the largest sum of magnitudes that a number is made of: what rounding is relative to."""
        absolute = replace(self, x=self.x.abs(), weight=self.weight.abs(), gradient=self.gradient.abs())
        return [float(each.max()) if each.numel() else 0 for each in absolute.to(torch.float64).passes(sparse_matrix)]

    def norms(self) -> list[float]:
        """For each pass the product of its operands' norms: the same where each number is made of all of them."""
        x, weight, gradient = (float(each.double().norm()) for each in (self.x, self.weight, self.gradient))
        return [x * weight, gradient * weight, gradient * x]

    def passes(self, algorithm: ModuleType) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The result, and the gradients with respect to the input and the weights."""
        return (
            algorithm.forward(self.x, self.weight, self.shape),
            algorithm.input_gradient(self.gradient, self.weight, self.shape),
            algorithm.weight_gradient(self.gradient, self.x, self.shape),
        )


LAYOUTS = {
    "channels first": torch.Tensor.contiguous,
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "columns first": lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda tensor: tensor.repeat_interleave(2, 3)[..., ::2],
    "one for all": lambda tensor: tensor[:, :1].expand(tensor.shape),
}
KERNELS = ((1, 1), (1, 3), (2, 3), (3, 3), (5, 5), (4, 1), (7, 7), (11, 2))
STEPS = st.sampled_from((1, 1, 1, 2, 3))


@st.composite
def cases(draw: st.DrawFn, kernels: tuple[tuple[int, int], ...] = KERNELS, steps: bool = True) -> Case:
    """`kernels`: to choose from; `steps`: whether strides and dilations may be above 1."""
    kernel = draw(st.sampled_from(kernels))
    padding = draw(st.tuples(st.integers(0, 8), st.integers(0, 8)))
    stride, dilation = draw(st.tuples(st.tuples(STEPS, STEPS), st.tuples(STEPS, STEPS))) if steps else ((1, 1), (1, 1))
    # Sizes from the smallest that the kernel fits into, so that no draw is in vain.
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (size + draw(st.integers(0, 14)) for size in least)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    in_channels, out_channels = (groups * draw(st.integers(1, 5)) for _ in range(2))
    batch = draw(st.integers(0, 3))
    weight_shape = out_channels, in_channels // groups, *kernel
    shape = ConvShape.of((batch, in_channels, height, width), weight_shape, stride, padding, dilation, groups)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x, weight, gradient = (
        LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](torch.randn(size, generator=generator, dtype=torch.float64))
        for size in (shape.input, shape.weight, shape.output)
    )
    return Case(shape, x, weight, gradient)


@pytest.fixture(scope="session")
def normal() -> Callable[..., Case]:
    """`normal(shape, seed=0)`: a convolution of float32 numbers, normally distributed, channels-last."""

    @lru_cache(maxsize=32)  # every instruction set and number of threads is compared with the same matrix
    def draw(shape: ConvShape, seed: int = 0) -> Case:
        generator = torch.Generator().manual_seed(seed)
        drawn = (torch.randn(size, generator=generator) for size in (shape.input, shape.weight, shape.output))
        return Case(shape, *(tensor.contiguous(memory_format=torch.channels_last) for tensor in drawn))

    return draw


@st.composite
def _three_by_three(draw: st.DrawFn) -> ConvShape:
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    height, width = (max(1, 3 - 2 * pad) + draw(st.integers(0, 21)) for pad in padding)
    batch, channels = st.integers(1, 5), st.one_of(st.integers(1, 40), st.sampled_from((64, 65, 130, 272)))
    if draw(st.booleans()):
        batch, channels = st.integers(6, 90), st.integers(1, 18)
    in_channels, out_channels = draw(channels), draw(channels)
    return ConvShape(draw(batch), in_channels, out_channels, height, width, (3, 3), padding=padding)


@pytest.fixture(scope="session")
def three_by_three() -> st.SearchStrategy[ConvShape]:
    """Channels around the widths of vectors and register blocks, even and odd, and sizes around those of tiles.

    Half of them have many pictures, hence several blocks of tiles, even and odd.
    """
    return _three_by_three()


@pytest.fixture(scope="session")
def each_case(large_count: Callable[[int, int], int]) -> Callable[..., None]:
    """`each_case(check, **limits)` calls `check(case)` for random cases within the limits of `cases`."""

    def run(check: Callable[[Case], None], **limits: object) -> None:
        @settings(max_examples=large_count(25, 700), deadline=None)
        @given(case=cases(**limits))
        def checked(case: Case) -> None:
            check(case)

        checked()

    return run


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """`agree(algorithm, case, dtypes, scales, ulps)`: in each dtype, the three passes are those of the matrix.

    The largest error of each is at most `ulps` times the dtype's epsilon times its scale.
    """

    def check(
        algorithm: ModuleType, case: Case, dtypes: tuple[torch.dtype, ...], scales: list[float], ulps: float
    ) -> None:
        for dtype in dtypes:
            rounded = case if case.x.dtype == dtype else case.to(dtype)
            for result, expected, scale in zip(rounded.passes(algorithm), rounded.exact, scales, strict=True):
                assert result.shape == expected.shape
                assert result.dtype == dtype
                if result.numel():
                    assert (result - expected).abs().max() <= ulps * torch.finfo(dtype).eps * scale

    return check


@pytest.fixture(scope="session")
def adjoint() -> Callable[[ModuleType, Case], None]:
    """`adjoint(algorithm, case)`: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ = ⟨w, the gradient of w⟩, in float64."""

    def check(algorithm: ModuleType, case: Case) -> None:
        result, input_gradient, weight_gradient = case.passes(algorithm)
        paired = (result * case.gradient).sum()
        bound = 1e-13 * case.x.norm() * case.weight.norm() * case.gradient.norm()
        assert abs(paired - (case.x * input_gradient).sum()) <= bound
        assert abs(paired - (case.weight * weight_gradient).sum()) <= bound

    return check


@pytest.fixture(scope="session")
def spoil() -> Callable[[Case], Case]:
    """The case with NaN, ∞ and −∞ at one place each of the input and of the gradient."""

    def spoiled(case: Case) -> Case:
        generator = torch.Generator().manual_seed(case.shape.height)
        tensors = {}
        for name in ("x", "gradient"):
            tensor = getattr(case, name).contiguous().clone()
            places = torch.randint(max(tensor.numel(), 1), (3,), generator=generator)
            if tensor.numel():
                tensor.view(-1)[places] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=tensor.dtype)
            tensors[name] = tensor
        return replace(case, **tensors)

    return spoiled


@pytest.fixture(scope="session")
def error() -> Callable[[torch.Tensor, torch.Tensor], tuple[float, float]]:
    """`error(result, exact)`: the root mean square and the largest error, relative to the root mean square."""

    def measure(result: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
        difference, scale = result.double() - exact, exact.square().mean().sqrt()
        return float(difference.square().mean().sqrt() / scale), float(difference.abs().max() / scale)

    return measure


@pytest.fixture(params=["avx512bf16", "avx512", "avx2", "baseline"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that the kernels are built for and that the processor has, in use meanwhile."""
    if request.param not in native_support.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    native_support.select_instruction_set(request.param)
    yield request.param
    native_support.select_instruction_set(native_support.instruction_sets()[0])


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What a test sets PyTorch's threads to holds for that test alone."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """What nobody has written yet is NaN: the kernels' scratch memory and new tensors, as PyTorch can fill them.

    A kernel that reads it, or that leaves a part of its result out, fails every comparison.
    """
    native_support.poison_scratch(True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    native_support.poison_scratch(False)
