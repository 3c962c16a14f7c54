import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svertka.errors import UsageError
from svertka.geometry import output_size


@given(
    size=st.integers(1, 60),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 5),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 4),
)
def test_output_size_is_that_of_pytorch(size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    signal, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        with pytest.raises(UsageError, match="use a larger input"):
            output_size(size, kernel, stride, padding, dilation)
    else:
        expected = torch.conv1d(signal, weight, stride=stride, padding=padding, dilation=dilation).shape[2]
        assert output_size(size, kernel, stride, padding, dilation) == expected
