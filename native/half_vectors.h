// Half vectors of AVX-512, for which CPUs that compute a vector in two halves take half the time. Other sets do not use them.
#pragma once

#include "bf16_pairs.h"

namespace svertka::INSTRUCTIONS {

// Lanes of a half vector; 0 if half vectors are not used.
#if defined(__AVX512F__)
constexpr Index half_lanes = lanes / 2;
#else
constexpr Index half_lanes = 0;
#endif
using HalfVector = float __attribute__((vector_size(lanes / 2 * sizeof(float))));
using HalfBits = std::uint32_t __attribute__((vector_size(lanes / 2 * sizeof(float))));

ALWAYS_INLINE void add_product(HalfVector& sum, float factor, HalfBits factors) { sum += factor * (HalfVector)factors; }

ALWAYS_INLINE void add_product(HalfVector& sum, Pair factor, HalfBits factors) {
#if defined(__AVX512BF16__)
    const HalfBits pair = (HalfBits)_mm512_castsi512_si256((__m512i)(factor.bits + Bits{}));  // also of whole vectors
    sum = (HalfVector)_mm256_dpbf16_ps((__m256)sum, (__m256bh)pair, (__m256bh)factors);
#else
    const auto second = [](HalfBits pairs) { return (HalfVector)(pairs & 0xffff0000); };
    const HalfBits pair = factor.bits + HalfBits{};
    sum += second(pair) * second(factors);
    sum += (HalfVector)(pair << 16) * (HalfVector)(factors << 16);
#endif
}

// The half vector, then zeros.
ALWAYS_INLINE Vector widen(HalfVector half) {
#if defined(__AVX512F__)
    return (Vector)_mm512_zextps256_ps512((__m256)half);
#else
    Vector vector{};
    __builtin_memcpy(&vector, &half, sizeof half);
    return vector;
#endif
}

}  // namespace svertka::INSTRUCTIONS
