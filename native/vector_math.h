// Exponentials and the activation functions, of vectors. The polynomials are minimax fits in float64.
#pragma once

#include <type_traits>

#include "activation_kind.h"
#include "simd.h"

namespace svertka::INSTRUCTIONS {

// The sum of coefficient · x^power, with powers from 0.
ALWAYS_INLINE Vector polynomial(Vector) { return Vector{}; }
template <class... Rest>
ALWAYS_INLINE Vector polynomial(Vector x, float coefficient, Rest... rest) {
    if constexpr (sizeof...(rest) == 0)
        return coefficient - Vector{};
    else
        return polynomial(x, rest...) * x + coefficient;
}

ALWAYS_INLINE Vector absolute(Vector x) { return (Vector)((Bits)x & 0x7fffffffu); }
ALWAYS_INLINE Vector with_sign_of(Vector magnitude, Vector sign) {
    return (Vector)((Bits)magnitude | ((Bits)sign & 0x80000000u));
}

// e^x = 2^n · e^r with n the integer nearest to x / ln 2. The relative error is below 2e-7; NaN stays NaN.
ALWAYS_INLINE Vector exponential(Vector x) {
    x = clamp(x, -105.0f, 89.0f);
#if defined(__AVX512F__)
    const Vector n = (Vector)_mm512_roundscale_ps((__m512)(x * 0x1.715476p0f), _MM_FROUND_TO_NEAREST_INT);
#else
    constexpr float round = 0x1.8p23f;  // adding it rounds to an integer, held in the lowest bits
    const Vector shifted = x * 0x1.715476p0f + round, n = shifted - round;
#endif
    const Vector r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    const Vector power = polynomial(r, 1.0f, 1.0f, 0.4999999106f, 0.1666641086f, 0.04166828841f, 0.008375644684f,
                                    0.001383578521f);
#if defined(__AVX512F__)
    return (Vector)_mm512_scalef_ps((__m512)power, (__m512)n);
#else
    // 2^n in two factors, because n may exceed the exponents of floats.
    using Integers = std::int32_t __attribute__((vector_size(lanes * sizeof(std::int32_t))));
    const Integers whole = (Integers)shifted - (Integers)(round - Vector{}), half = whole >> 1;
    return power * (Vector)((half + 127) << 23) * (Vector)((whole - half + 127) << 23);
#endif
}

// Relative error below 3e-7.
ALWAYS_INLINE Vector hyperbolic_tangent(Vector x) {
    const Vector size = absolute(x), square = x * x;
    const Vector small = x * polynomial(square, 1.0f, -0.333327949f, 0.1331887692f, -0.0525893010f, 0.0163154155f);
    const Vector power = exponential(-2.0f * size);
    return size < 0.55f ? small : with_sign_of((1.0f - power) / (1.0f + power), x);
}

// Error below 1e-7; exactly ±1 where erf rounds to it.
ALWAYS_INLINE Vector error_function(Vector x) {
    const Vector near = clamp(x, -3.92f, 3.92f), square = near * near;
    const Vector ratio = near *
                         polynomial(square, 1.128379107f, 0.1903967410f, 0.05274749920f, 0.003765220987f,
                                    0.0002848770237f, 2.050198873e-6f) /
                         polynomial(square, 1.0f, 0.5020674467f, 0.1141051502f, 0.01496841572f, 0.001162445871f,
                                    3.809258851e-5f);
    return near == x ? ratio : with_sign_of(1.0f - Vector{}, x);
}

// 1 + e^-x; the absolute error of its reciprocal is below 1e-7. NaN stays NaN.
ALWAYS_INLINE Vector sigmoid_denominator(Vector x) {
#if defined(__AVX512F__)
    // The rounding of the power of 2 is a relative error that grows with -x, as the reciprocal vanishes.
    const __m512 power = (__m512)(x * -0x1.715476p0f);
    const Vector r = (Vector)_mm512_reduce_ps(power, _MM_FROUND_TO_NEAREST_INT);
    const Vector fraction = polynomial(r, 1.0f, 0.6931472f, 0.2402265f, 0.05550411f, 0.009618129f, 0.0013333558f,
                                       0.000154f);
    return 1.0f + (Vector)_mm512_scalef_ps((__m512)fraction, _mm512_sub_ps(power, (__m512)r));
#else
    return 1.0f + exponential(-x);
#endif
}

ALWAYS_INLINE Vector sigmoid(Vector x) { return 1.0f / sigmoid_denominator(x); }

template <Activation activation>
ALWAYS_INLINE Vector activate(Vector x, float slope) {
    constexpr float sixth = 1.0f / 6.0f;
    if constexpr (activation == Activation::sigmoid) return sigmoid(x);
    if constexpr (activation == Activation::silu) return x / sigmoid_denominator(x);
    if constexpr (activation == Activation::hard_sigmoid) return clamp(x * sixth + 0.5f, 0, 1);
    if constexpr (activation == Activation::hard_swish) return x * (clamp(x + 3.0f, 0, 6) * sixth);
    if constexpr (activation == Activation::gelu) return 0.5f * x * (1.0f + error_function(x * 0.7071067812f));
    if constexpr (activation == Activation::gelu_tanh)
        return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608f * (x + 0.044715f * x * x * x)));
    if constexpr (activation == Activation::tanh) return hyperbolic_tangent(x);
    if constexpr (activation == Activation::mish) {  // tanh(log(1 + p)) = (p² + 2p) / (p² + 2p + 2)
        const Vector power = exponential(clamp(x, -105.0f, 20.0f)), sum = power * (power + 2.0f);
        return x * (sum / (sum + 2.0f));
    }
    if constexpr (activation == Activation::elu) return x > 0 ? x : slope * (exponential(x) - 1.0f);
    if constexpr (activation == Activation::leaky_relu) return x > 0 ? x : slope * x;
    return x;
}

// Call function(std::integral_constant) with the activation function as a compile-time constant.
template <class Function>
ALWAYS_INLINE void with_activation(Activation activation, Function function) {
    switch (activation) {
#define SVERTKA_CASE(name)                                                                   \
    case Activation::name:                                                                   \
        return function(std::integral_constant<Activation, Activation::name>{})
        SVERTKA_CASE(none);
        SVERTKA_CASE(sigmoid);
        SVERTKA_CASE(silu);
        SVERTKA_CASE(hard_sigmoid);
        SVERTKA_CASE(hard_swish);
        SVERTKA_CASE(gelu);
        SVERTKA_CASE(gelu_tanh);
        SVERTKA_CASE(tanh);
        SVERTKA_CASE(mish);
        SVERTKA_CASE(elu);
        SVERTKA_CASE(leaky_relu);
#undef SVERTKA_CASE
    }
}

}  // namespace svertka::INSTRUCTIONS
