import torch

from svertka.conv import widened
from svertka.geometry import ConvShape


def test_three_passes_are_those_of_the_matrix_rounded_once(each_case, agree) -> None:
    # Half a unit of the last digit of the result, and what sums in float32 are off by.
    each_case(lambda case: agree(widened, case, (torch.bfloat16,), case.magnitudes(), ulps=0.51))


def test_why_not() -> None:
    shape = ConvShape.of((1, 3, 32, 32), (16, 3, 3, 3))
    assert widened.why_not(shape, torch.bfloat16) is None
    assert widened.why_not(shape, torch.float32) == "it is for bfloat16"
