// The GEMM micro-kernel of all algorithms: an MR × NR register tile of A · B.
#pragma once

#include "half_vectors.h"

namespace svertka::INSTRUCTIONS {

// Vectors of the sums of products of factors.
template <class Factor>
struct SumsOf {
    using Type = Vector;
};
template <class Factor>
using SumOf = typename SumsOf<Factor>::Type;

// Address of element `number` · lanes of a row of packed A that begins at `row`. Chunks of MR rows are interleaved.
template <class Factor>
ALWAYS_INLINE auto* element_address(Factor* row, Index number) {
    if constexpr (values_per<Factor> == 2)
        return reinterpret_cast<BFloat16*>(row + number / 2 * MR * lanes) + number % 2 * lanes;
    else
        return row + number * MR * lanes;
}

// Bytes that a product fetches into the cache, `step` in each of its steps of k.
struct Prefetch {
    const char* from;
    Index step;

    ALWAYS_INLINE void next() {
        __builtin_prefetch(from);
        from += step;
    }
};

// For products whose operands are in the cache.
struct NoPrefetch {
    ALWAYS_INLINE void next() {}
};

// Add Σ_k A[row][k] · B[k][column] to `sums`, for `count` ≤ MR rows and `vectors` ≤ 2 vectors of columns. Sums are floats, or
// integers of 32 bits for pairs of shorts.
// A is stored in chunks of `lanes` steps of k, `chunk` factors apart; within a chunk, element k of a row is at
// row · row_stride + k · step_stride. B is at k · b_stride, its second vector `second` factors after the first. Factors
// are floats, or pairs of bfloat16 for two consecutive k; steps, strides and `depth` then count pairs.
// The strides inside a chunk are compile-time constants, so that each element of A is a broadcast memory operand at a
// fixed offset from one pointer. k may be split into `pieces` of `depth` steps each, which are
// `piece` floats apart in A. `half_last`: only the first half of the last vector is computed.
template <Index row_stride, Index step_stride, bool half_last = false, class Sum, int count, int vectors, class Factor,
          class Ahead = NoPrefetch>
ALWAYS_INLINE void add_products(Sum (&sums)[count][vectors], const Factor* a, Index chunk, const Factor* b,
                                Index b_stride, Index second, Index depth, Index pieces = 1, Index piece = 0,
                                Ahead ahead = {}) {
    constexpr int whole = half_last ? vectors - 1 : vectors;
    [[maybe_unused]] HalfVector tails[count] = {};
    const auto step = [&](const Factor* column) __attribute__((always_inline)) {
        ahead.next();
        decltype(load(b)) factors[vectors];
#pragma GCC unroll 2
        for (int half = 0; half < whole; ++half) factors[half] = load(b + half * second);
        [[maybe_unused]] HalfBits tail{};
        if constexpr (half_last) __builtin_memcpy(&tail, b + whole * second, sizeof tail);
        b += b_stride;
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row) {
#pragma GCC unroll 2
            for (int half = 0; half < whole; ++half) add_product(sums[row][half], column[row * row_stride], factors[half]);
            if constexpr (half_last) add_product(tails[row], column[row * row_stride], tail);
        }
    };
    for (; pieces > 0; --pieces, a += piece) {
        const Factor* from = a;
        Index left = depth;
        for (; left >= lanes; left -= lanes, from += chunk) {
#pragma GCC unroll 4
            for (Index k = 0; k < lanes; ++k) step(from + k * step_stride);
        }
        for (Index k = 0; k < left; ++k) step(from + k * step_stride);
    }
    if constexpr (half_last)
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row) sums[row][whole] += widen(tails[row]);
}

// Call function(row, half) for each sum of a register tile.
template <int count, int vectors, class Function>
ALWAYS_INLINE void each_sum(Function function) {
#pragma GCC unroll 16
    for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
        for (int half = 0; half < vectors; ++half) function(row, half);
}

// Σ_k A[row][k] · B[k][column] for `count` ≤ MR rows and `vectors` of NR columns, stored to C at row · NR as
// floats, or added to it if `add`.
template <int count, Index row_stride, Index step_stride, int vectors = 2, class Factor, class Ahead = NoPrefetch>
void block_product(const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second, float* c, Index depth,
                   bool add, Ahead ahead = {}) {
    SumOf<Factor> sums[count][vectors] = {};
    add_products<row_stride, step_stride>(sums, a, chunk, b, b_stride, second, depth, 1, 0, ahead);
    each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
        float* to = c + row * NR + half * lanes;
        const Vector sum = __builtin_convertvector(sums[row][half], Vector);
        store(to, add ? load(to) + sum : sum);
    });
}

// The same for a row count known only at run time.
template <Index row_stride, Index step_stride, int vectors = 2, int max_rows = MR, class Factor>
ALWAYS_INLINE void product(Index count, const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second,
                           float* c, Index depth, bool add) {
    if constexpr (max_rows > 1) {
        if (count < max_rows)
            return product<row_stride, step_stride, vectors, max_rows - 1>(count, a, chunk, b, b_stride, second, c, depth, add);
    }
    block_product<max_rows, row_stride, step_stride, vectors>(a, chunk, b, b_stride, second, c, depth, add);
}

}  // namespace svertka::INSTRUCTIONS
