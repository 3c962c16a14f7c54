// Elementwise operations on one or two strided tensors, with the activation function that follows.
#pragma once

#include <array>
#include <cstddef>

#include "../epilogue.h"

namespace svertka {

// Up to five axes, innermost last, each with the distance between elements, in values.
struct Strided {
    using Axes = std::array<std::ptrdiff_t, 5>;
    Axes sizes, input, other, output;
};

enum class Combination {
    first,  // these four have one operand
    square_root,
    reciprocal_square_root,
    exponential,
    add,
    subtract,
    multiply,
    divide,
    maximum,
    minimum,
    prelu,  // the first, where negative times the second
};

inline bool has_one_operand(Combination combination) { return combination <= Combination::exponential; }

// Values with a common mean and variance: one of `groups` of the channels of `pixels` consecutive pixels.
struct Normalization {
    std::ptrdiff_t batch, pixels, channels, groups, in_step, out_step;
    float epsilon;
};

#define SVERTKA_ELEMENTWISE(instructions)                                                                              \
    namespace instructions {                                                                                           \
    void elementwise(const Strided&, Combination, const float*, const float*, const Epilogue&, float*, int);           \
    void normalize(const Normalization&, const float*, const float*, const float*, const Epilogue&, float*, int);      \
    }

SVERTKA_ELEMENTWISE(avx512bf16)
SVERTKA_ELEMENTWISE(avx512)
SVERTKA_ELEMENTWISE(avx2)
SVERTKA_ELEMENTWISE(baseline)

}  // namespace svertka
