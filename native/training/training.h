// What training needs beside the kernels of inference: weights packed in every step, gradients, and batch normalization.
// float32, batch normalization also bfloat16; channels-last. Sizes are not checked.
#pragma once

#include <cstddef>

#include "../direct/direct.h"

namespace svertka {

// Batch normalization of (pixels, channels), then an activation function (none, SiLU, hard swish or GELU), or limits.
struct BatchNorm {
    std::ptrdiff_t pixels, channels;
    float epsilon;
    Activation activation;
    float low, high;  // infinite beside an activation function
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Training {
    // Weights, (output, tap in y, tap in x, input), to the panels of `Direct::forward`; `adjoint`: to those of the input
    // gradient, whose outputs are the inputs, with the taps reversed. `taps`: of both axes.
    void (*pack)(const float* weights, std::ptrdiff_t out_channels, std::ptrdiff_t taps, std::ptrdiff_t in_channels,
                 bool adjoint, float* packed);

    // (output, tap in y, tap in x, input), each sum in an order that depends on the sizes and on `threads` alone.
    void (*weight_gradient)(const Window&, const float* gradient, const float* input, float* result, int threads);

    // The same of groups: (tap in y, tap in x, output in group, input).
    void (*grouped_weight_gradient)(const Window&, std::ptrdiff_t groups, const float* gradient, const float* input,
                                    float* result, int threads);

    // The input gradient of a convolution whose groups have one input and one output. Weights: (tap in y, tap in x,
    // channel).
    void (*depthwise_input_gradient)(const Window&, const float* gradient, const float* weights, float* result,
                                     int threads);

    // Of the batch: mean and variance, (channels), and the result. `residual`: added before the limits, without an
    // activation function, or null. `narrow`: whether images consist of bfloat16.
    void (*batch_norm)(const BatchNorm&, const void* input, const float* weight, const float* bias, const void* residual,
                       void* output, float* mean, float* variance, bool narrow, int threads);

    // From the gradient of its result. `output`: the result, if there is a `residual_gradient`, else both are null.
    void (*batch_norm_gradients)(const BatchNorm&, const void* gradient, const void* input, const void* output,
                                 const float* weight, const float* bias, const float* mean, const float* variance,
                                 void* input_gradient, void* residual_gradient, float* weight_gradient,
                                 float* bias_gradient, bool narrow, int threads);
};

// One set of declarations per instruction set; defined in the files beside this one.
#define SVERTKA_TRAINING(instructions)                                                                                 \
    namespace instructions {                                                                                           \
    void direct_pack(const float*, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, bool, float*);                      \
    void direct_weight_gradient(const Window&, const float*, const float*, float*, int);                               \
    void grouped_weight_gradient(const Window&, std::ptrdiff_t, const float*, const float*, float*, int);              \
    void depthwise_input_gradient(const Window&, const float*, const float*, float*, int);                             \
    void batch_norm(const BatchNorm&, const void*, const float*, const float*, const void*, void*, float*, float*,     \
                    bool, int);                                                                                        \
    void batch_norm_gradients(const BatchNorm&, const void*, const void*, const void*, const float*, const float*,     \
                              const float*, const float*, void*, void*, float*, float*, bool, int);                    \
    inline Training training_functions() {                                                                             \
        return {direct_pack,                                                                                           \
                direct_weight_gradient,                                                                                \
                grouped_weight_gradient,                                                                               \
                depthwise_input_gradient,                                                                              \
                batch_norm,                                                                                            \
                batch_norm_gradients};                                                                                 \
    }                                                                                                                  \
    }

SVERTKA_TRAINING(avx512bf16)
SVERTKA_TRAINING(avx512)
SVERTKA_TRAINING(avx2)
SVERTKA_TRAINING(baseline)

}  // namespace svertka
