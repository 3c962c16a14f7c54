// Pairs of bfloat16 values, whose products are accumulated in float32 (VDPBF16PS or emulated).
#pragma once

#include <type_traits>

#include "bfloat16.h"

namespace svertka::INSTRUCTIONS {

// Two consecutive values, the first in the lower half.
struct Pair {
    std::uint32_t bits;
};

// Number of values in a factor: 1 for a float, 2 for a pair.
template <class Factor>
constexpr Index values_per = std::is_same_v<Factor, Pair> ? 2 : 1;

ALWAYS_INLINE Bits load(const Pair* from) {
    Bits pairs;
    __builtin_memcpy(&pairs, from, sizeof pairs);
    return pairs;
}

ALWAYS_INLINE Bits load_partial(const Pair* from, Index count) {
    return (Bits)load_partial(reinterpret_cast<const float*>(from), count);
}

ALWAYS_INLINE void store(Pair* to, Bits pairs) { __builtin_memcpy(to, &pairs, sizeof pairs); }

// bf16_bits, with denormals as zero if products treat them so, too.
ALWAYS_INLINE Bits factor_bits(Vector vector) {
#if defined(__AVX512BF16__)
    return (Bits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)to_bf16(vector));
#else
    return bf16_bits(vector);
#endif
}

ALWAYS_INLINE Vector first_of(Bits pairs) { return (Vector)(pairs << 16); }
ALWAYS_INLINE Vector second_of(Bits pairs) { return (Vector)(pairs & 0xffff0000); }

ALWAYS_INLINE void add_product(Vector& sum, float factor, Vector factors) { sum += factor * factors; }

// The instruction treats denormals as zero and rounds in its own order.
ALWAYS_INLINE void add_product(Vector& sum, Pair factor, Bits factors) {
    const Bits pair = factor.bits + Bits{};
#if defined(__AVX512BF16__)
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)factors);
#else
    sum += second_of(pair) * second_of(factors);
    sum += first_of(pair) * first_of(factors);
#endif
}

}  // namespace svertka::INSTRUCTIONS
