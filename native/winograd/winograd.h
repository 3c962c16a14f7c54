// Interface of the Winograd kernels: 3×3, stride 1, images and weights channels-last. Sizes are not checked. Sums are
// float32 for every dtype of the images.
#pragma once

#include <cstddef>

#include "../epilogue.h"
#include "../precision.h"

namespace svertka {

// From images (batch, height, width, in_channels) with zeros around them to (batch, out_height, out_width, out_channels).
// `pad_y`, `pad_x`: rows and columns of zeros before the first; a negative number leaves some out. `in_step`, `out_step`:
// distance between pixels, in numbers; more than the channels if maps are concatenated.
struct Convolution {
    std::ptrdiff_t batch, in_channels, out_channels, height, width, out_height, out_width, pad_y, pad_x;
    std::ptrdiff_t in_step = in_channels, out_step = out_channels;
    std::ptrdiff_t tile = 4;  // outputs of a tile along an axis: 4, or 6 in a forward pass with maps and products of floats
};

enum class Order {
    plain,    // (out_channels, 3, 3, in_channels)
    adjoint,  // for the input gradient: (in_channels, 3, 3, out_channels), read rotated
    packed,   // as `pack` writes them
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Winograd {
    // Number of floats that `pack` writes.
    std::ptrdiff_t (*packed_size)(std::ptrdiff_t in_channels, std::ptrdiff_t out_channels);

    // Packs plain weights in the order in which this instruction set's `forward` reads them.
    void (*pack)(const float* weights, std::ptrdiff_t in_channels, std::ptrdiff_t out_channels, float* packed,
                 int threads);

    // With adjoint weights it is the input gradient of a convolution with the channels exchanged, padded by 2 − pad.
    // Packed weights have the dtype of the precision, others are float.
    // With products of floats, both maps have one dtype.
    void (*forward)(const Convolution&, const void* input, const void* weights, Order, Precision, const Epilogue&,
                    void* output, NarrowMaps, int threads);

    // Returns (out_channels, 3, 3, in_channels). The order of each sum depends only on the sizes and on `threads`.
    void (*weight_gradient)(const Convolution&, const float* gradient, const float* input, float* result, int threads);
    void (*weight_gradient_of_bfloat16)(const Convolution&, const BFloat16* gradient, const BFloat16* input, Precision,
                                        float* result, int threads);
};

// One set of declarations per instruction set; defined in forward.cpp and weight_gradient.cpp.
#define SVERTKA_WINOGRAD(instructions)                                                                                 \
    namespace instructions {                                                                                           \
    std::ptrdiff_t packed_size(std::ptrdiff_t, std::ptrdiff_t);                                                        \
    void pack(const float*, std::ptrdiff_t, std::ptrdiff_t, float*, int);                                              \
    void forward(const Convolution&, const void*, const void*, Order, Precision, const Epilogue&, void*, NarrowMaps, int); \
    void weight_gradient(const Convolution&, const float*, const float*, float*, int);                                 \
    void weight_gradient(const Convolution&, const BFloat16*, const BFloat16*, Precision, float*, int);                \
    inline Winograd winograd_functions() {                                                                             \
        return {packed_size, pack, forward, weight_gradient, weight_gradient};                                         \
    }                                                                                                                  \
    }

SVERTKA_WINOGRAD(avx512bf16)
SVERTKA_WINOGRAD(avx512)
SVERTKA_WINOGRAD(avx2)
SVERTKA_WINOGRAD(baseline)

}  // namespace svertka
