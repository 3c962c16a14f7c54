// Vectors of 8-bit numbers and of 32-bit sums, and products of both.
#pragma once

#include <cstring>

#include "../simd.h"

namespace svertka::INSTRUCTIONS {

using Byte = std::uint8_t;
using Ints = std::int32_t __attribute__((vector_size(lanes * sizeof(std::int32_t))));
using Bytes = Byte __attribute__((vector_size(lanes)));      // one for each lane
using Wide = Byte __attribute__((vector_size(4 * lanes)));  // a whole vector

// A factor of a product: consecutive unsigned 8-bit numbers, as they are or extended to 16 bits, each multiplied by the
// weight beside it. Pairs of 16 bits cannot overflow: vpmaddubsw, of bytes, would sum up pairs in 16 bits.
using Factor = std::uint32_t;
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr Index per_factor = 4;
#else
constexpr Index per_factor = 2;
#endif

template <class Number>
struct [[gnu::packed, gnu::may_alias]] Unaligned {
    Number number;
};

// Not memcpy, which the compiler does through registers of integers for short vectors.
template <class Number>
ALWAYS_INLINE Number load_as(const void* from) {
    return static_cast<const Unaligned<Number>*>(from)->number;
}
template <class Number>
ALWAYS_INLINE void store_as(void* to, Number vector) {
    static_cast<Unaligned<Number>*>(to)->number = vector;
}

// The first `count` bytes, then zeros; all, if there are more.
ALWAYS_INLINE Bytes load_bytes(const Byte* from, Index count) {
    if (count >= lanes) return load_as<Bytes>(from);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(__SANITIZE_ADDRESS__)
    return (Bytes)_mm_maskz_loadu_epi8(mask_of(count), from);
#else
    Bytes bytes{};
    std::memcpy(&bytes, from, count);
    return bytes;
#endif
}

ALWAYS_INLINE void store_bytes(Byte* to, Bytes bytes, Index count) {
    if (count >= lanes) return store_as(to, bytes);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(__SANITIZE_ADDRESS__)
    _mm_mask_storeu_epi8(to, mask_of(count), (__m128i)bytes);
#else
    std::memcpy(to, &bytes, count);
#endif
}

// The compiler takes vectors apart that are shorter than a register and converted: these functions are intrinsics.
ALWAYS_INLINE Ints to_ints(Bytes bytes) {
#if defined(__AVX512F__)
    return (Ints)_mm512_maskz_cvtepu8_epi32(0xffff, (__m128i)bytes);
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
#elif defined(__SSE2__)
    const __m128i words = _mm_unpacklo_epi8(_mm_cvtsi32_si128((int)bytes), _mm_setzero_si128());
    return (Ints)_mm_unpacklo_epi16(words, _mm_setzero_si128());
#else
    return __builtin_convertvector(bytes, Ints);
#endif
}
ALWAYS_INLINE Vector to_floats(Ints ints) { return __builtin_convertvector(ints, Vector); }
ALWAYS_INLINE Vector to_floats(Bytes bytes) { return to_floats(to_ints(bytes)); }

// Floats from 0 to 255, rounded to the nearest integer, ties to even.
ALWAYS_INLINE Bytes to_bytes(Vector numbers) {
#if defined(__AVX512F__)
    return (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, _mm512_maskz_cvtps_epi32(0xffff, (__m512)numbers));
#elif defined(__AVX2__)
    const __m256i ints = _mm256_cvtps_epi32((__m256)numbers);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
    return (Bytes)_mm_cvtsi128_si64(_mm_packus_epi16(words, words));
#elif defined(__SSE2__)
    const __m128i ints = _mm_cvtps_epi32((__m128)numbers), words = _mm_packs_epi32(ints, ints);
    return (Bytes)_mm_cvtsi128_si32(_mm_packus_epi16(words, words));
#else
    const Ints rounded = (Ints)(numbers + 0x1.8p23f) & 0xff;  // the lowest bits then hold the integer
    return __builtin_convertvector(rounded, Bytes);
#endif
}

// To each sum, the products of the two shorts in its place.
ALWAYS_INLINE Ints add_products_of_shorts(Ints sums, Ints factors, Ints weights) {
#if defined(__AVX512BW__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)factors, (__m512i)weights);
#elif defined(__AVX2__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)factors, (__m256i)weights);
#elif defined(__SSE2__)
    return sums + (Ints)_mm_madd_epi16((__m128i)factors, (__m128i)weights);
#else
    return sums + ((factors << 16) >> 16) * ((weights << 16) >> 16) + (factors >> 16) * (weights >> 16);
#endif
}

// To each sum, the products of the numbers in its place of `factors` with those of `weights`.
ALWAYS_INLINE Ints add_products(Ints sums, Ints factors, Ints weights) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)factors, (__m512i)weights);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)factors, (__m256i)weights);
#else
    return add_products_of_shorts(sums, factors, weights);
#endif
}

// Bytes of `numbers_in_chunk` numbers become `lanes` factors.
constexpr Index numbers_in_chunk = lanes * per_factor;

ALWAYS_INLINE void store_factors(Factor* to, const Byte* from) {
    if constexpr (per_factor == 4) {
        store_as(to, load_as<Wide>(from));
    } else {
        using Half = Byte __attribute__((vector_size(2 * lanes)));
        using Shorts = std::int16_t __attribute__((vector_size(4 * lanes)));
        store_as(to, __builtin_convertvector(load_as<Half>(from), Shorts));
    }
}

}  // namespace svertka::INSTRUCTIONS
