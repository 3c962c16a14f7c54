// SIMD vectors of floats, as wide as those of the instruction set that this file is compiled for. Every .cpp file that includes it
// is compiled once per set (CMakeLists.txt), with INSTRUCTIONS as the set's name. All definitions are in a namespace of
// that name, so that the linker cannot mix code of different sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE [[gnu::always_inline]] inline

namespace svertka::INSTRUCTIONS {

using Index = std::ptrdiff_t;

// `lanes`: floats in a vector. MR: rows of a product's register tile, which is two vectors wide. 14 · 2 sums leave four of
// AVX-512's 32 registers for operands; 6 · 2 sums leave four of the 16 registers of other sets.
#if defined(__AVX512F__)
constexpr Index lanes = 16, MR = 14;
#elif defined(__AVX__)
constexpr Index lanes = 8, MR = 6;
#else
constexpr Index lanes = 4, MR = 6;
#endif
constexpr Index NR = 2 * lanes;  // columns of the register tile

using Vector = float __attribute__((vector_size(lanes * sizeof(float))));

using Bits = std::uint32_t __attribute__((vector_size(lanes * sizeof(std::uint32_t))));

ALWAYS_INLINE Vector load(const float* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

ALWAYS_INLINE void store(float* to, Vector vector) { __builtin_memcpy(to, &vector, sizeof vector); }

// AddressSanitizer does not track masked loads and stores.
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
ALWAYS_INLINE __mmask16 mask_of(Index count) { return static_cast<__mmask16>((1u << count) - 1); }
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
ALWAYS_INLINE __m256i mask_of(Index count) {
    constexpr Bits places = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)(places < static_cast<std::uint32_t>(count));
}
#endif

// The first `count` < lanes values, then zeros.
ALWAYS_INLINE Vector load_partial(const float* from, Index count) {
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    return (Vector)_mm512_maskz_loadu_ps(mask_of(count), from);
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
    return (Vector)_mm256_maskload_ps(from, mask_of(count));
#else
    Vector vector{};
    __builtin_memcpy(&vector, from, count * sizeof(float));
    return vector;
#endif
}

ALWAYS_INLINE void store_partial(float* to, Vector vector, Index count) {
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    _mm512_mask_storeu_ps(to, mask_of(count), (__m512)vector);
#elif defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
    _mm256_maskstore_ps(to, mask_of(count), (__m256)vector);
#else
    __builtin_memcpy(to, &vector, count * sizeof(float));
#endif
}

// Values limited to [low, high]; NaN stays NaN, as min and max return their second operand then.
ALWAYS_INLINE Vector clamp(Vector vector, float low, float high) {
#if defined(__AVX512F__)
    return (Vector)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)vector));
#elif defined(__AVX__)
    return (Vector)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)vector));
#else
    vector = vector < low ? low - Vector{} : vector;
    return vector > high ? high - Vector{} : vector;
#endif
}

// Non-temporal store, where supported; `to` is aligned to a vector. Call store_fence before other threads read it.
ALWAYS_INLINE void stream_store(float* to, Vector vector) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, vector);
#elif defined(__AVX__)
    _mm256_stream_ps(to, vector);
#elif defined(__SSE__)
    _mm_stream_ps(to, vector);
#else
    store(to, vector);
#endif
}

ALWAYS_INLINE void store_fence() {
#if defined(__SSE__)
    _mm_sfence();
#endif
}

ALWAYS_INLINE bool is_aligned(const void* place) {
    return reinterpret_cast<std::uintptr_t>(place) % sizeof(Vector) == 0;
}

// From every 2 · step numbers of `low` and `high`, the first `step` of both, or the last `step` if `upper`.
template <Index step, bool upper, Index... place>
ALWAYS_INLINE Vector interleave(Vector low, Vector high, std::integer_sequence<Index, place...>) {
    constexpr Index own = upper ? step : 0;  // distance from a lane to the number that fills it, if that is in the same vector
    return __builtin_shufflevector(low, high, (place & step ? lanes + own - step : own) + place...);
}

// Lane i of the result is vector[places[i]].
ALWAYS_INLINE Vector permute(Vector vector, Bits places) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)places, (__m512)vector);
#elif defined(__AVX2__)
    return (Vector)_mm256_permutevar8x32_ps((__m256)vector, (__m256i)places);
#else
    Vector found;
    for (Index i = 0; i < lanes; ++i) found[i] = vector[places[i]];
    return found;
#endif
}

// Transpose in place: lane j of vector i is swapped with lane i of vector j.
template <Index step = 1>
ALWAYS_INLINE void transpose(Vector (&square)[lanes]) {
    if constexpr (step < lanes) {
        constexpr std::make_integer_sequence<Index, lanes> places;
#pragma GCC unroll 16
        for (Index i = 0; i < lanes; ++i)
            if (!(i & step)) {
                const Vector low = square[i], high = square[i + step];
                square[i] = interleave<step, false>(low, high, places);
                square[i + step] = interleave<step, true>(low, high, places);
            }
        transpose<2 * step>(square);
    }
}

constexpr Index min(Index a, Index b) { return a < b ? a : b; }
constexpr Index max(Index a, Index b) { return a < b ? b : a; }
constexpr Index ceil_div(Index size, Index part) { return (size + part - 1) / part; }  // parts that cover `size`

}  // namespace svertka::INSTRUCTIONS
