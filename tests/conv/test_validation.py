"""Most of what is refused stands in tests/conv/test_functions.py, said by the functions that refuse it."""

import pytest
import torch

from svertka.conv import validation
from svertka.conv.validation import check_bias, check_integer, check_memory, check_tensors
from svertka.conv_shape import ConvShape
from svertka.errors import UsageError


def test_tensors_that_belong_together_pass():
    for dtype in validation.DTYPES:
        x = torch.zeros(1, 1, 1, 1, dtype=dtype)
        check_tensors(x, x, None)
        check_tensors(x, x, x[0, 0, 0])
    check_bias(None, 3)
    check_bias(torch.zeros(3), 3)
    assert check_integer("groups", 2) == 2


def test_under_autocast_the_dtype_is_that_in_which_it_computes():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(UsageError, match="weight torch.bfloat16; convert both to one dtype"):
        check_tensors(x, x.bfloat16(), None)
    with torch.autocast("cpu", torch.bfloat16):
        check_tensors(x, x.bfloat16(), None)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(monkeypatch):
    shape = ConvShape(2, 3, 4, 16, 16, (3, 3))  # 2 · 3 · 16 · 16 numbers in, 2 · 4 · 14 · 14 out
    x = torch.zeros(shape.input)
    check_memory(x, shape)
    monkeypatch.setattr(validation, "_MEMORY", 4 * 2 * 4 * 14 * 14 - 1)
    with pytest.raises(UsageError, match="the result, 2×4×14×14, takes"):
        check_memory(x, shape)
    monkeypatch.setattr(validation, "_MEMORY", 4 * 2 * 3 * 16 * 16 - 1)
    with pytest.raises(UsageError, match="the input, 2×3×16×16, takes"):
        check_memory(x, shape)
    check_memory(x.to("meta"), shape)
