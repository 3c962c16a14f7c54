// The epilogue of a convolution: bias, residual and clamp, applied to each output before it is stored.
#pragma once

#include <cstddef>
#include <limits>

namespace svertka {

// output = clamp(sum + bias + residual, low, high); a null pointer adds nothing, NaN stays NaN.
struct Epilogue {
    const float* bias = nullptr;      // (out_channels)
    const float* residual = nullptr;  // of the output's shape
    std::ptrdiff_t residual_step = 0;  // values from one pixel of the residual to the next
    float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
};

}  // namespace svertka
