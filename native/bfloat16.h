// Loads and stores of bfloat16, which is converted to float in registers, and partial loads and stores of both dtypes.
#pragma once

#include "precision.h"
#include "simd.h"

namespace svertka::INSTRUCTIONS {

using Halves = std::uint16_t __attribute__((vector_size(lanes * sizeof(std::uint16_t))));

// The code generated for `__builtin_convertvector` is several times as long.
ALWAYS_INLINE Vector upcast(Halves halves) {
#if defined(__AVX512F__)
    return (Vector)((Bits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)halves) << 16);
#elif defined(__AVX2__)
    return (Vector)((Bits)_mm256_cvtepu16_epi32((__m128i)halves) << 16);
#else
    return (Vector)(__builtin_convertvector(halves, Bits) << 16);
#endif
}

// Round to nearest, ties to even, into the lower half of each lane; NaN stays NaN.
ALWAYS_INLINE Bits bf16_bits(Vector vector) {
    const Bits bits = (Bits)vector, number = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
    return (vector == vector ? number : quiet) >> 16;
}

// The same for bfloat16; AVX512-BF16 treats denormals as zero.
ALWAYS_INLINE Halves to_bf16(Vector vector) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)vector);
#elif defined(__AVX512F__)
    return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bf16_bits(vector));
#elif defined(__AVX2__)
    const __m256i upper = (__m256i)bf16_bits(vector);
    return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
#else
    return __builtin_convertvector(bf16_bits(vector), Halves);
#endif
}

ALWAYS_INLINE Vector load(const BFloat16* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return upcast(halves);
}

ALWAYS_INLINE void store(BFloat16* to, Vector vector) {
    const Halves halves = to_bf16(vector);
    __builtin_memcpy(to, &halves, sizeof halves);
}

// Two vectors, one after the other.
ALWAYS_INLINE void store_two(BFloat16* to, Vector first, Vector second) {
#if defined(__AVX512BF16__)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    __builtin_memcpy(to, &both, sizeof both);
#else
    store(to, first);
    store(to + lanes, second);
#endif
}

// Two halves of a vector, one after the other; `to` is aligned to a vector. Halves of a cache line that are stored past the
// caches one by one take twice as long.
ALWAYS_INLINE void stream_store_two(BFloat16* to, Halves first, Halves second) {
#if defined(__AVX512F__)
    const __m512i both = _mm512_inserti64x4(_mm512_zextsi256_si512((__m256i)first), (__m256i)second, 1);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), both);
#else
    __builtin_memcpy(to, &first, sizeof first);
    __builtin_memcpy(to + lanes, &second, sizeof second);
#endif
}

// The first `count` < lanes values, then zeros.
ALWAYS_INLINE Vector load_partial(const BFloat16* from, Index count) {
#if defined(__AVX512BW__) && !defined(__SANITIZE_ADDRESS__)
    return upcast((Halves)_mm256_maskz_loadu_epi16(mask_of(count), from));
#else
    Halves halves{};
    __builtin_memcpy(&halves, from, count * sizeof(BFloat16));
    return upcast(halves);
#endif
}

ALWAYS_INLINE void store_partial(BFloat16* to, Vector vector, Index count) {
    const Halves halves = to_bf16(vector);
#if defined(__AVX512BW__) && !defined(__SANITIZE_ADDRESS__)
    _mm256_mask_storeu_epi16(to, mask_of(count), (__m256i)halves);
#else
    __builtin_memcpy(to, &halves, count * sizeof(BFloat16));
#endif
}

// The first `count` values of a vector: none if count <= 0, all if count >= lanes.
template <class Number>
ALWAYS_INLINE Vector load_up_to(const Number* from, Index count) {
    return count >= lanes ? load(from) : load_partial(from, max(count, 0));
}

template <class Number>
ALWAYS_INLINE void store_up_to(Number* to, Vector vector, Index count) {
    count >= lanes ? store(to, vector) : store_partial(to, vector, max(count, 0));
}

}  // namespace svertka::INSTRUCTIONS
