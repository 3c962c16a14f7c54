// Dense layers with few inputs at once: their three products read, or write, each weight once.
//
// All arrays are contiguous floats. Sums are in an order that depends on the sizes alone. Sizes are not checked.
#pragma once

#include <cstddef>

namespace svertka {

// rows × inputs times inputs × outputs.
struct LinearShape {
    std::ptrdiff_t rows, inputs, outputs;
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Linear {
    // (rows, outputs) from `input`, (rows, inputs), `weights`, (outputs, inputs), and `bias`, (outputs), or null.
    void (*forward)(const LinearShape&, const float* input, const float* weights, const float* bias, float* result,
                    int threads);

    // (rows, inputs) from the gradient of the result, (rows, outputs).
    void (*input_gradient)(const LinearShape&, const float* gradient, const float* weights, float* result, int threads);

    // (outputs, inputs).
    void (*weight_gradient)(const LinearShape&, const float* gradient, const float* input, float* result, int threads);
};

#define SVERTKA_LINEAR(instructions)                                                                                   \
    namespace instructions {                                                                                           \
    void linear_forward(const LinearShape&, const float*, const float*, const float*, float*, int);                    \
    void linear_input_gradient(const LinearShape&, const float*, const float*, float*, int);                           \
    void linear_weight_gradient(const LinearShape&, const float*, const float*, float*, int);                          \
    inline Linear linear_functions() { return {linear_forward, linear_input_gradient, linear_weight_gradient}; }       \
    }

SVERTKA_LINEAR(avx512)
SVERTKA_LINEAR(avx2)
SVERTKA_LINEAR(baseline)

}  // namespace svertka
