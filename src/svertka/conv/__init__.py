"""Convolution algorithms, one per module; the fastest is selected by timing."""

from svertka.conv.api import conv2d as conv2d
from svertka.conv.api import conv_transpose2d as conv_transpose2d
