// The activation functions that kernels apply to their results.
#pragma once

namespace svertka {

enum class Activation {
    none,
    sigmoid,
    silu,          // x · sigmoid(x)
    hard_sigmoid,  // clamp(x / 6 + 1/2, 0, 1)
    hard_swish,    // x · hard_sigmoid(x)
    gelu,          // x · Φ(x) with Φ the normal distribution function
    gelu_tanh,     // gelu approximated with tanh
    tanh,
    mish,        // x · tanh(log(1 + e^x))
    elu,         // x, or slope · (e^x - 1) below 0
    leaky_relu,  // x, or slope · x below 0
};

}  // namespace svertka
