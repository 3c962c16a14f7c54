// What is done to each output of a convolution before it is stored.
#pragma once

#include <cstddef>
#include <limits>

namespace svertka {

// A null pointer is left out. Bias and residual are added, then comes what lies outside of `low` to `high`; NaN stays.
struct Finish {
    const float* bias = nullptr;      // (out_channels)
    const float* residual = nullptr;  // of the output's shape,
    std::ptrdiff_t residual_step = 0;  // with so many numbers from one pixel to the next
    float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
};

}  // namespace svertka
