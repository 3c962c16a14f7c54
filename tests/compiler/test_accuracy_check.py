"""An optimized network held against the original."""

import pytest
import torch
from torch import Tensor, nn

from svertka.compiler.accuracy_check import measured
from svertka.errors import UsageError


def test_the_error_that_is_named_is_the_one_that_is_judged() -> None:
    example = torch.ones(1, 2, 4, 4)
    example[:, 0] = 0.05

    def first_channel_off(x: Tensor) -> Tensor:  # by 1e-4 of all, which would do, and by 2e-3 of the channel
        return x * torch.tensor([1.002, 1.0])[:, None, None]

    with pytest.raises(UsageError, match=r"difference is 2\.0e-03 of the largest value of its channel for 1 pictures"):
        measured(first_channel_off, nn.Identity(), example, {1}, bf16=False)
