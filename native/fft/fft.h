// Interface of the FFT kernels: any kernel size, stride and dilation, float32, no groups; images and weights channels-last.
// Sizes are not checked.
#pragma once

#include <cstddef>

namespace svertka {

namespace fft {
constexpr std::ptrdiff_t max_length = 128;  // length of a transform, and so the largest span of an axis's taps
}

// One axis of a correlation: out[stride · q] = Σ_i taps[i] · laid[q + dilation · i], and laid has input k at place
// spacing · k + pad and zeros elsewhere. If `pad` is negative, the first inputs are not read.
struct Axis {
    std::ptrdiff_t size, out_size, taps, pad, dilation, spacing, stride;
};

// Images (batch, y.size, x.size, in_channels) to (batch, y.out_size, x.out_size, out_channels).
struct Correlation {
    std::ptrdiff_t batch, in_channels, out_channels;
    Axis y, x;
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool, and every
// result is the same for any number of threads.
struct Fourier {
    // Weights (out_channels, taps, taps, in_channels). With `adjoint` they are (in_channels, taps, taps, out_channels)
    // and read rotated: that is the input gradient of a convolution with the channels exchanged, stride and spacing
    // exchanged, and padded by span − 1 − pad.
    void (*forward)(const Correlation&, const float* input, const float* weights, bool adjoint, float* output,
                    int threads);

    // (out_channels, taps, taps, in_channels).
    void (*weight_gradient)(const Correlation&, const float* gradient, const float* input, float* result, int threads);
};

// One set of declarations per instruction set; defined in forward.cpp and weight_gradient.cpp.
#define SVERTKA_FOURIER(instructions)                                                                                  \
    namespace instructions::fft {                                                                                      \
    void forward(const Correlation&, const float*, const float*, bool, float*, int);                                   \
    void weight_gradient(const Correlation&, const float*, const float*, float*, int);                                 \
    }                                                                                                                  \
    namespace instructions {                                                                                           \
    constexpr Fourier fourier_functions{fft::forward, fft::weight_gradient};                                           \
    }

SVERTKA_FOURIER(avx512)
SVERTKA_FOURIER(avx2)
SVERTKA_FOURIER(baseline)

}  // namespace svertka
