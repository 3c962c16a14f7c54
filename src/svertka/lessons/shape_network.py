"""A network whose four units each look for a shape, and images of shapes: the notebook "What units look for"."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

SHAPES = ("cross", "triangle", "square", "circle")  # of the units 0 to 3
SIDE, IMAGE_SIDE, NOISE = 11, 28, 0.15


def load_shape_network() -> tuple[nn.Module, Tensor]:
    """Return a network of one convolution, layer "0", and a ReLU; and images (64, 1, 28, 28), a shape on each."""
    kernels = torch.stack([torch.from_numpy(draw_shape(name)) for name in SHAPES])
    kernels = kernels - kernels.mean((1, 2), keepdim=True)
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None]
    convolution = nn.Conv2d(1, len(SHAPES), SIDE, bias=False)
    convolution.weight.data.copy_(kernels[:, None])
    generator = np.random.default_rng(0)
    images = generator.normal(0, NOISE, (64, 1, IMAGE_SIDE, IMAGE_SIDE)).astype(np.float32)
    for number, image in enumerate(images):
        top, left = generator.integers(0, IMAGE_SIDE - SIDE + 1, 2)
        image[0, top : top + SIDE, left : left + SIDE] += draw_shape(SHAPES[number * 7 % 4])
    return nn.Sequential(convolution, nn.ReLU()), torch.from_numpy(images)


def draw_shape(name: str) -> npt.NDArray[np.float32]:
    """Return the outline of a shape, (11, 11), 0 or 1."""
    rows, columns = np.mgrid[-5:6, -5:6]
    slanted = (abs(abs(columns) - (rows + 4) / 2) < 0.6) & (abs(rows) <= 4)
    inside: npt.NDArray[np.bool_] = {
        "square": np.maximum(abs(rows), abs(columns)) == 4,
        "cross": np.minimum(abs(rows), abs(columns)) == 0,
        "circle": abs(np.hypot(rows, columns) - 4) < 0.6,
        "triangle": slanted | ((rows == 4) & (abs(columns) <= 4)),
    }[name]
    return inside.astype(np.float32)
