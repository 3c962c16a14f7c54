"""Convolution by Fourier transforms: one product per frequency, for any kernel size.

On a circle of L pixels the discrete Fourier transform ^ turns a shift by q into a factor for each frequency, hence
correlation into a product (the convolution theorem, with the conjugate since the kernel is not mirrored):

    yₒ(q) = Σ_c Σᵢ w_oc(i) x_c(q + i)     ⟺     ŷₒ = Σ_c conj(ŵ_oc) · x̂_c.

At each frequency this is a product of complex matrices over the channels. It takes 3 or 4 real multiplications for each
of L² / 2 frequencies (images are real, so half of L² suffice), where the direct convolution takes kh · kw per pixel.

**The circle.** An image of H pixels with p zeros on each side fits on a circle of L ≥ H + p, on which both sides share
their zeros. The image begins at 0, so result i, with stride s, is at q = s · i − p, mod L. The kernel, with taps
`dilation` apart, must not overlap itself, so L is at least its span. L is rounded up to the next number without prime
factors above 5, for which the fast Fourier transform is fastest. Rows and columns have separate L.

**The three passes.** The forward pass places x and w on the circle, multiplies, and reads the results at their
positions. Each of these is a linear map, and gradients go back through the transposed maps: the gradient of the results
is placed where they were read, and correlation with w becomes convolution with w, whose factor is ŵ without the
conjugate. Since the sum Σ x(q + i) w(i) y(q) is symmetric in w and y, the weight gradient is the correlation of x with
the gradient of y.

The error does not grow with the kernel. Measured in float32 against float64, 256 channels of 28×28 pixels, normal input
and weights, relative to the root mean square of the results: 3.5e-7 for 3×3, 3.2e-7 for 11×11, 3.1e-7 for 27×27, and
1.9e-6 at most (`tests/conv/test_fft.py` holds it to that). A non-finite value makes all results of its image and
group non-finite.

Source: Mathieu, Henaff & LeCun 2014, "Fast training of convolutional networks through FFTs", §2, without shared zeros.
"""

import torch

from svertka.conv_shape import ConvShape

IS_LOCAL = False  # the whole image


def why_not(shape: ConvShape, dtype: torch.dtype) -> str | None:
    """Return why this algorithm does not support `shape`, as a phrase, or None if it does."""
    if dtype not in (torch.float32, torch.float64):
        return f"Fourier transforms are made of float32 and float64, not {str(dtype).removeprefix('torch.')}"
    return None


def forward(x: torch.Tensor, weight: torch.Tensor, shape: ConvShape, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the convolution of `x`, (N, C, H, W), with `weight`, (O, C / groups, kh, kw), plus `bias`, (O), or None.

    The result has shape (N, O, H', W').
    """
    circles = _circles(shape)
    products = torch.einsum("gocuv,ngcuv->ngouv", _kernel_spectra(weight, shape).conj(), _image_spectra(x, shape))
    rows, columns = _places(shape, x.device)
    result = _invert(products, circles).flatten(1, 2).index_select(2, rows).index_select(3, columns)
    return result if bias is None else result + bias[:, None, None]


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the gradient with respect to the input, (N, C, H, W); `gradient`: of the result, (N, O, H', W')."""
    products = torch.einsum("gocuv,ngouv->ngcuv", _kernel_spectra(weight, shape), _result_spectra(gradient, shape))
    return _invert(products, _circles(shape)).flatten(1, 2)[:, :, : shape.height, : shape.width]


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the weight gradient, (O, C / groups, kh, kw); `gradient`: of the result; `x`: the input."""
    products = torch.einsum("ngouv,ngcuv->gocuv", _result_spectra(gradient, shape).conj(), _image_spectra(x, shape))
    (span_height, span_width), (dh, dw) = shape.span, shape.dilation
    return _invert(products, _circles(shape)).flatten(0, 1)[:, :, :span_height:dh, :span_width:dw]


def find_fft_size(least: int) -> int:
    """Return the smallest number that is at least `least` ≥ 1 and has no prime factor above 5.

    >>> [find_fft_size(least) for least in (1, 7, 61, 121)]
    [1, 8, 64, 125]
    """
    size = least
    while (
        60 ** size.bit_length() % size
    ):  # this power of 60 = 2² · 3 · 5 is divisible by every such size of as many bits
        size += 1
    return size


def _circles(shape: ConvShape) -> tuple[int, int]:
    """Return the transform lengths of rows and columns."""
    height = max(shape.height + shape.padding[0], shape.span[0])
    width = max(shape.width + shape.padding[1], shape.span[1])
    return find_fft_size(height), find_fft_size(width)


def _places(shape: ConvShape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the results' rows and columns on the circles.

    Far out in wide padding, two results may share a position; both are then zero.
    """
    (height, width), (sh, sw), (ph, pw) = _circles(shape), shape.stride, shape.padding
    rows = torch.arange(shape.out_height, device=device) * sh - ph
    columns = torch.arange(shape.out_width, device=device) * sw - pw
    return rows % height, columns % width


def _image_spectra(x: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the spectra of the images, (N, groups, C / groups, …)."""
    return _spectra(torch.unflatten(x, 1, (shape.groups, -1)), _circles(shape))


def _kernel_spectra(weight: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the spectra of the kernels, (groups, O / groups, C / groups, …)."""
    spaced = weight.new_zeros(*weight.shape[:2], *shape.span)
    spaced[:, :, :: shape.dilation[0], :: shape.dilation[1]] = weight
    return _spectra(torch.unflatten(spaced, 0, (shape.groups, -1)), _circles(shape))


def _result_spectra(gradient: torch.Tensor, shape: ConvShape) -> torch.Tensor:
    """Return the spectra of the results' gradients, (N, groups, O / groups, …)."""
    rows, columns = _places(shape, gradient.device)
    height, width = _circles(shape)
    wide = gradient.new_zeros(*gradient.shape[:3], width).index_add(3, columns, gradient)
    laid = gradient.new_zeros(*gradient.shape[:2], height, width).index_add(2, rows, wide)
    return _spectra(torch.unflatten(laid, 1, (shape.groups, -1)), (height, width))


def _spectra(signals: torch.Tensor, circles: tuple[int, int]) -> torch.Tensor:
    """Return the transforms of the last two axes, zero-padded to the size of `circles`."""
    if signals.numel() == 0:  # MKL raises an error for empty tensors
        return signals.new_zeros(*signals.shape[:-2], circles[0], circles[1] // 2 + 1, dtype=signals.dtype.to_complex())
    spectra: torch.Tensor = torch.fft.rfft2(signals, circles)
    return spectra


def _invert(spectra: torch.Tensor, circles: tuple[int, int]) -> torch.Tensor:
    """Return the real signals with these spectra."""
    if spectra.numel() == 0:
        return spectra.new_zeros(*spectra.shape[:-2], *circles, dtype=spectra.dtype.to_real())
    signals: torch.Tensor = torch.fft.irfft2(spectra, circles)
    return signals
