// The epilogue of a convolution, applied to each output before it is stored.
#pragma once

#include <cstddef>
#include <limits>

#include "activation_kind.h"

namespace svertka {

// output = clamp(activation(sum + bias + residual), low, high); a null pointer adds nothing, NaN stays NaN.
struct Epilogue {
    const float* bias = nullptr;       // (out_channels)
    const void* residual = nullptr;    // of the output's shape and dtype
    std::ptrdiff_t residual_step = 0;  // values from one pixel of the residual to the next
    float low = -std::numeric_limits<float>::infinity(), high = std::numeric_limits<float>::infinity();
    Activation activation = Activation::none;
    float slope = 0;              // of the activation function
    bool multiply = false;        // whether the residual is a factor instead of a summand
    bool residual_last = false;  // whether the residual comes after the activation function

    // Whether kernels store sums first and finish them in a second pass, which keeps their registers for the product.
    bool in_two_passes() const { return activation != Activation::none || (residual && multiply); }
};

}  // namespace svertka
