// Direct convolution (implicit GEMM) and pooling, for any window: images of float32 or bfloat16, channels-last. Sizes are not
// checked.
#pragma once

#include <cstddef>

#include "../epilogue.h"
#include "../precision.h"
#include "elementwise.h"

namespace svertka {

// One axis of a sliding window. `pad`: zeros before the first pixel.
struct WindowAxis {
    std::ptrdiff_t size, out_size, taps, stride, pad, dilation;
};

// `in_step`, `out_step`: distance between pixels, in values; more than the channels if maps are concatenated.
struct Window {
    std::ptrdiff_t batch, in_channels, out_channels;
    WindowAxis y, x;
    std::ptrdiff_t in_step, out_step;
};

// Whether products of bfloat16 copy lines of the image with whole pairs, which is faster for few channels than gathering
// windows. A pair has two channels of a pixel, or one channel of the pixels of two lines; see `has_paired_lines`.
inline bool has_lines_of_pairs(const Window& shape) {
    return shape.in_channels <= 4 && shape.y.taps * shape.x.taps > 1 && shape.x.dilation == 1;
}

// Whether the weights of two consecutive taps in y are a pair. An odd number of taps is filled up with zeros, which takes
// fewer products than an even number of channels: 4 · 7 · 3 instead of 7 · 7 · 2 for 7×7 taps of three channels.
inline bool has_paired_lines(const Window& shape) {
    return has_lines_of_pairs(shape) && shape.in_channels % 2 && shape.y.taps > 1;
}

// Factors of the channels of each image, `step` values from one image to the next. Null: none.
struct Gate {
    const float* factors = nullptr;
    std::ptrdiff_t step = 0;
};

enum class Pooling {
    maximum,
    mean,         // over the pixels inside
    padded_mean,  // over these and the padding
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Direct {
    std::ptrdiff_t panel_width;  // output channels whose weights are interleaved: NR

    // Weights are packed in panels: (panel, tap in y, tap in x, input, output in panel), zero-padded. bfloat16 weights
    // are stored in pairs of consecutive (tap in y, tap in x, input): (panel, pair, output in panel, element of pair). With
    // `has_lines_of_pairs`, an odd number of channels is filled up; with `has_paired_lines`, pairs are (pair of taps in y, tap
    // in x, input).
    // The gate multiplies an input of floats, for 1×1 kernels without padding. Maps of bfloat16 need products of bfloat16, and as
    // an input an even number of channels and an even step.
    void (*forward)(const Window&, const void* input, Gate, const void* weights, Precision, const Epilogue&, void* output,
                    NarrowMaps, int threads);

    // Grouped convolution. Weights: (tap in y, tap in x, input in group, output). `narrow`: whether maps consist of bfloat16.
    void (*grouped)(const Window&, std::ptrdiff_t groups, const void* input, const float* weights, const Epilogue&,
                    void* output, bool narrow, int threads);

    void (*pool)(const Window&, Pooling, const void* input, void* output, bool narrow, int threads);

    // `combination` of two tensors, then the epilogue's activation function and clamp; `other` may be null.
    void (*elementwise)(const Strided&, Combination, const float* input, const float* other, const Epilogue&,
                        float* output, int threads);

    // (x - mean) / sqrt(variance + epsilon) · weight + bias; weight and bias, (channels), may be null.
    void (*normalize)(const Normalization&, const float* input, const float* weight, const float* bias, const Epilogue&,
                      float* output, int threads);
};

// One set of declarations per instruction set; defined in forward.cpp, grouped.cpp and pool.cpp.
#define SVERTKA_DIRECT(instructions)                                                                                   \
    namespace instructions {                                                                                           \
    std::ptrdiff_t direct_panel_width();                                                                                     \
    void direct_forward(const Window&, const void*, Gate, const void*, Precision, const Epilogue&, void*, NarrowMaps, int); \
    void grouped(const Window&, std::ptrdiff_t, const void*, const float*, const Epilogue&, void*, bool, int);         \
    void pool(const Window&, Pooling, const void*, void*, bool, int);                                                  \
    inline Direct direct_functions() {                                                                                 \
        return {direct_panel_width(), direct_forward, grouped, pool, elementwise, normalize};                                  \
    }                                                                                                                  \
    }

SVERTKA_DIRECT(avx512bf16)
SVERTKA_DIRECT(avx512)
SVERTKA_DIRECT(avx2)
SVERTKA_DIRECT(baseline)

}  // namespace svertka
