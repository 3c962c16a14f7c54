// Convolutions as they are defined, and pooling, for any window: pictures of float32, channels-last. Sizes are trusted.
#pragma once

#include <cstddef>

#include "../finish.h"
#include "../numbers.h"

namespace svertka {

// One axis of a window that moves over pictures. `pad`: zeros before the first pixel.
struct Sliding {
    std::ptrdiff_t size, out_size, taps, stride, pad, dilation;
};

// `in_step`, `out_step`: numbers from one pixel to the next, more than the channels where others lie beside these.
struct Window {
    std::ptrdiff_t batch, in_channels, out_channels;
    Sliding y, x;
    std::ptrdiff_t in_step, out_step;
};

enum class Pooling {
    maximum,
    mean,         // of the pixels inside
    padded_mean,  // of these and of the zeros around them
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Direct {
    std::ptrdiff_t panel;  // outputs whose weights lie side by side

    // Weights: (panel, tap in y, tap in x, input, output in its panel), outputs that are not there zero. Of bfloat16 two
    // numbers that follow each other in (tap in y, tap in x, input) lie side by side: (panel, pair of these, output in
    // its panel, which of the pair), the last one zero if there is none.
    void (*forward)(const Window&, const float* input, const void* weights, Precision, const Finish&, float* output,
                    int threads);

    // In groups of so many input and output channels; each channel by itself always.
    bool (*computes_groups)(std::ptrdiff_t in, std::ptrdiff_t out);

    // `groups` groups of channels, each by itself. Weights: (tap in y, tap in x, input in its group, output).
    void (*grouped)(const Window&, std::ptrdiff_t groups, const float* input, const float* weights, const Finish&,
                    float* output, int threads);

    void (*pool)(const Window&, Pooling, const float* input, float* output, int threads);

    // The sum of two maps of `pixels` pixels, the second of which is the residual.
    void (*add)(std::ptrdiff_t pixels, std::ptrdiff_t channels, const float* input, std::ptrdiff_t in_step,
                const Finish&, float* output, std::ptrdiff_t out_step, int threads);
};

// Of each instruction set that is built; they are defined in forward.cpp, grouped.cpp and pool.cpp.
#define SVERTKA_DIRECT(instructions)                                                                                   \
    namespace instructions {                                                                                           \
    std::ptrdiff_t direct_panel();                                                                                     \
    void direct_forward(const Window&, const float*, const void*, Precision, const Finish&, float*, int);              \
    bool computes_groups(std::ptrdiff_t, std::ptrdiff_t);                                                              \
    void grouped(const Window&, std::ptrdiff_t, const float*, const float*, const Finish&, float*, int);               \
    void pool(const Window&, Pooling, const float*, float*, int);                                                      \
    void add(std::ptrdiff_t, std::ptrdiff_t, const float*, std::ptrdiff_t, const Finish&, float*, std::ptrdiff_t,      \
             int);                                                                                                     \
    inline Direct direct_functions() {                                                                                 \
        return {direct_panel(), direct_forward, computes_groups, grouped, pool, add};                                  \
    }                                                                                                                  \
    }

SVERTKA_DIRECT(avx512bf16)
SVERTKA_DIRECT(avx512)
SVERTKA_DIRECT(avx2)
SVERTKA_DIRECT(baseline)

}  // namespace svertka
