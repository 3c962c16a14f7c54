"""The kernel that normalizes bytes: the same bits as two operations of floats, and nothing outside of its tensors."""

import numpy as np
import pytest
import torch

from fences import Fenced
from svertka.conv import native_byte_normalization, native_support

pytestmark = pytest.mark.skipif(native_support.why_not() is not None, reason="no compiled kernels")

MEAN, SCALE = (torch.tensor(some) for some in ((123.675, 116.28, 103.53), (0.0171, 0.0175, 0.0174)))
FORMATS = torch.contiguous_format, torch.channels_last


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("batch", "stored", "height", "width"),
    [(1, 1, 1, 1), (3, 9, 5, 7), (2, 16, 16, 16), (2, 40, 3, 33), (1, 40, 40, 17), (9, 240, 224, 224)],
)
def test_the_values_are_those_of_two_operations(batch, stored, height, width, memory_format):
    """The last case is so large that it is written past the caches."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, stored, stored, 3), np.uint8)
    top, left = stored - height, (stored - width) // 2
    cropped = pixels[:, top:, left : left + width]
    images = torch.from_numpy(cropped).permute(0, 3, 1, 2)
    result = torch.full(images.shape, torch.nan).contiguous(memory_format=memory_format)
    assert native_byte_normalization.can_normalize(images, result)
    native_byte_normalization.normalize(images, MEAN, SCALE, result)
    expected = (cropped.astype(np.float32) - MEAN.numpy()) * SCALE.numpy()
    np.testing.assert_array_equal(result.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("width", [5, 16, 21, 32])
def test_it_stays_inside_its_tensors(width, at_end, memory_format):
    shape = (2, 3, width, 3)
    bytes_of = torch.arange(int(np.prod(shape))).to(torch.uint8)
    images = Fenced(bytes_of, at_end=at_end).numbers.view(shape).permute(0, 3, 1, 2)
    numbers = Fenced(torch.zeros(images.numel()), at_end=at_end).numbers
    result = numbers.view(images.shape) if memory_format == FORMATS[0] else numbers.view(shape).permute(0, 3, 1, 2)
    native_byte_normalization.normalize(images, MEAN, SCALE, result)
    torch.testing.assert_close(result, (images - MEAN[:, None, None]) * SCALE[:, None, None], rtol=0, atol=0)


def test_tensors_that_are_too_small_are_refused():
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    with pytest.raises(ValueError, match="output holds 383 numbers"):
        native_byte_normalization.normalize(images, MEAN, SCALE, torch.zeros(383))
    with pytest.raises(ValueError, match="mean holds 1 numbers"):
        native_byte_normalization.normalize(images, torch.zeros(1), SCALE, torch.zeros(images.shape))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 4, dtype=torch.uint8)[..., :3].permute(0, 3, 1, 2),
        torch.zeros(2, 8, 8, 3).permute(0, 3, 1, 2),
        torch.zeros(2, 8, 8, 1, dtype=torch.uint8).permute(0, 3, 1, 2),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2),
    ],
    ids=["planes", "four bytes a pixel", "floats", "gray", "none"],
)
def test_other_layouts_are_left_to_pytorch(images):
    assert not native_byte_normalization.can_normalize(images, torch.empty(images.shape))
