// Steps on strided tensors of any rank: matrix products, softmax, reductions and interpolation. Sizes are not checked.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "../epilogue.h"

namespace svertka {

// Products of matrices, one for each index of three axes: (rows, depth) by (depth, columns), times `scale`. Strides are
// those of the three axes, then of the two of a matrix.
struct MatrixProduct {
    using Axes = std::array<std::ptrdiff_t, 5>;
    std::array<std::ptrdiff_t, 3> batch;
    std::ptrdiff_t rows, depth, columns;
    Axes left, right, output;
    float scale;
};

// softmax(scale · input + other) along one axis: the innermost, or, where that is not contiguous, the one before it. There
// are five axes, with the distance in values from one element to the next along each.
struct Softmax {
    using Axes = std::array<std::ptrdiff_t, 5>;
    Axes sizes, input, other, output;
    bool innermost;
    float scale;
};

enum class Statistic { sum, mean, norm, maximum, minimum, variance };

// A statistic over two axes, `reduced`, and over the innermost axis if `reduces_innermost`. Strides are those of the three
// axes that are kept, of the two that are reduced, and of the innermost.
struct Reduction {
    std::array<std::ptrdiff_t, 6> sizes, input;
    std::array<std::ptrdiff_t, 6> output;  // 0 along what is reduced
    bool reduces_innermost;
    float divisor;  // of a mean or variance
};

// One axis of an interpolation: output i is the sum of weights[i · taps + t] · input[indices[i · taps + t]].
struct InterpolationAxis {
    std::ptrdiff_t size = 0, out_size = 0, taps = 0;
    std::vector<std::ptrdiff_t> indices;
    std::vector<float> weights;
};

// A map interpolated along both axes, channels-last.
struct Interpolation {
    std::ptrdiff_t batch, channels, in_step, out_step;
    InterpolationAxis y, x;
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct TensorSteps {
    void (*matrix_product)(const MatrixProduct&, const float* left, const float* right, float* output, int threads);
    void (*softmax)(const Softmax&, const float* input, const float* other, float* output, int threads);  // other: or null
    void (*reduce)(const Reduction&, Statistic, const float* input, const Epilogue&, float* output, int threads);
    void (*interpolate)(const Interpolation&, const float* input, const Epilogue&, float* output, int threads);
};

#define SVERTKA_TENSOR_STEPS(instructions)                                                                             \
    namespace instructions {                                                                                           \
    void matrix_product(const MatrixProduct&, const float*, const float*, float*, int);                                \
    void softmax(const Softmax&, const float*, const float*, float*, int);                                             \
    void reduce(const Reduction&, Statistic, const float*, const Epilogue&, float*, int);                              \
    void interpolate(const Interpolation&, const float*, const Epilogue&, float*, int);                                \
    inline TensorSteps tensor_steps() { return {matrix_product, softmax, reduce, interpolate}; }                       \
    }

SVERTKA_TENSOR_STEPS(avx512)
SVERTKA_TENSOR_STEPS(avx2)
SVERTKA_TENSOR_STEPS(baseline)

}  // namespace svertka
