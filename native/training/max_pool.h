// Max pooling in training: the forward pass stores which tap was largest, and the input gradient reads it.
// Images are channels-last, float32 or bfloat16. Sizes are not checked. Projections to pixels use the gradients, too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../direct/direct.h"

namespace svertka {

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool. The dilation is 1,
// there are at most 127 taps, and each window has a pixel of the image. `narrow`: whether images consist of bfloat16.
struct MaxPool {
    // `places`: (tap in y) · (taps in x) + (tap in x) of each result; NaN is larger than all numbers, of equal ones the
    // first is the largest.
    void (*forward)(const Window&, const void* input, void* output, std::int8_t* places, bool narrow, int threads);

    void (*input_gradient)(const Window&, const void* gradient, const std::int8_t* places, void* result, bool narrow,
                           int threads);

    // The input gradient of a convolution whose results are max-pooled, in float32. `pool` has the sizes of the max-pool,
    // `convolution` those of the convolution: without padding, dilation and groups. Gradients of its results that are 0,
    // or negative if `rectify`, are skipped. `weights`: (channel, tap in y, tap in x · input, zero-padded to a multiple of
    // `weight_columns`).
    void (*convolution_gradient)(const Window& pool, const Window& convolution, const float* gradient,
                                 const std::int8_t* places, bool rectify, const float* weights, float* result, int threads);
};

constexpr std::ptrdiff_t weight_columns = 16;  // floats in the longest vector

#define SVERTKA_MAX_POOL(instructions)                                                                                 \
    namespace instructions {                                                                                           \
    void max_pool_forward(const Window&, const void*, void*, std::int8_t*, bool, int);                                 \
    void max_pool_input_gradient(const Window&, const void*, const std::int8_t*, void*, bool, int);                    \
    void max_pool_convolution_gradient(const Window&, const Window&, const float*, const std::int8_t*, bool,           \
                                       const float*, float*, int);                                                     \
    inline MaxPool max_pool_functions() {                                                                              \
        return {max_pool_forward, max_pool_input_gradient, max_pool_convolution_gradient};                             \
    }                                                                                                                  \
    }

SVERTKA_MAX_POOL(avx512bf16)
SVERTKA_MAX_POOL(avx512)
SVERTKA_MAX_POOL(avx2)
SVERTKA_MAX_POOL(baseline)

}  // namespace svertka
