"""The convolution engine: one readable algorithm a file, on any device; the fastest is chosen by measuring."""

from svertka.conv.api import conv2d as conv2d
from svertka.conv.api import conv_transpose2d as conv_transpose2d
