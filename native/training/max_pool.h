// Max pooling in training: the forward pass stores which tap was largest, and the input gradient reads it.
// Images are channels-last, float32 or bfloat16. Sizes are not checked.
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
};

#define SVERTKA_MAX_POOL(instructions)                                                                                 \
    namespace instructions {                                                                                           \
    void max_pool_forward(const Window&, const void*, void*, std::int8_t*, bool, int);                                 \
    void max_pool_input_gradient(const Window&, const void*, const std::int8_t*, void*, bool, int);                    \
    inline MaxPool max_pool_functions() { return {max_pool_forward, max_pool_input_gradient}; }                        \
    }

SVERTKA_MAX_POOL(avx512bf16)
SVERTKA_MAX_POOL(avx512)
SVERTKA_MAX_POOL(avx2)
SVERTKA_MAX_POOL(baseline)

}  // namespace svertka
