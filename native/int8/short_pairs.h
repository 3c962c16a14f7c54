// Pairs of 16-bit integers, whose products are summed in 32 bits (VPDPWSSD or VPMADDWD).
#pragma once

#include "../gemm.h"
#include "bytes.h"

namespace svertka::INSTRUCTIONS {

using Shorts = std::int16_t __attribute__((vector_size(4 * lanes)));

// Two consecutive numbers, the first in the lower half.
struct ShortPair {
    std::int32_t bits;
};

template <>
constexpr Index values_per<ShortPair> = 2;

template <>
struct SumsOf<ShortPair> {
    using Type = Ints;
};

ALWAYS_INLINE Ints load(const ShortPair* from) { return load_as<Ints>(from); }

ALWAYS_INLINE void add_product(Ints& sums, ShortPair factor, Ints factors) {
    const Ints pair = factor.bits - Ints{};
#if defined(__AVX512VNNI__)
    sums = (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)pair, (__m512i)factors);
#elif defined(__AVXVNNI__)
    sums = (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)pair, (__m256i)factors);
#else
    sums = add_products_of_shorts(sums, pair, factors);
#endif
}

// The first `count` numbers, at most a vector of shorts, then zeros.
ALWAYS_INLINE Shorts load_shorts(const Byte* from, Index count) {
    using Half = Byte __attribute__((vector_size(2 * lanes)));
    Half bytes{};
    if (count >= 2 * lanes)
        bytes = load_as<Half>(from);
    else
#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(__SANITIZE_ADDRESS__)
        bytes = (Half)_mm256_maskz_loadu_epi8(static_cast<__mmask32>((1u << count) - 1), from);
#else
        std::memcpy(&bytes, from, count);
#endif
    return __builtin_convertvector(bytes, Shorts);
}

}  // namespace svertka::INSTRUCTIONS
