// The GEMM micro-kernel of all algorithms: an MR × NR register tile of A · B.
#pragma once

#include "bf16_pairs.h"

namespace svertka::INSTRUCTIONS {

constexpr Index NR = 2 * lanes;  // columns of the register tile

// Address of element `number` · lanes of a row of packed A that begins at `row`. Chunks of MR rows are interleaved.
template <class Factor>
ALWAYS_INLINE auto* element_address(Factor* row, Index number) {
    if constexpr (values_per<Factor> == 2)
        return reinterpret_cast<BFloat16*>(row + number / 2 * MR * lanes) + number % 2 * lanes;
    else
        return row + number * MR * lanes;
}

// Σ_k A[row][k] · B[k][column], for `count` ≤ MR rows and NR columns; keep(row, half, vector) receives each sum, one
// vector of columns at a time.
// A is stored in chunks of `lanes` steps of k, `chunk` factors apart; within a chunk, element k of a row is at
// row · row_stride + k · step_stride. B is at k · b_stride, its second vector `second` factors after the first. Factors
// are floats, or pairs of bfloat16 for two consecutive k; steps, strides and `depth` then count pairs.
// The strides inside a chunk are compile-time constants, so that each element of A is a broadcast memory operand at a
// fixed offset from one pointer. With `vectors` = 1 only the first half of the columns is computed. k may be split into
// `pieces` of `depth` steps each, which are `piece` floats apart in A.
template <int count, Index row_stride, Index step_stride, int vectors, class Factor, class Keep>
ALWAYS_INLINE void block_sums(const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second, Index depth,
                              Index pieces, Index piece, Keep keep) {
    Vector sums[count][vectors] = {};
    const auto step = [&](const Factor* column) __attribute__((always_inline)) {
        decltype(load(b)) factors[vectors];
#pragma GCC unroll 2
        for (int half = 0; half < vectors; ++half) factors[half] = load(b + half * second);
        b += b_stride;
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half)
                add_product(sums[row][half], column[row * row_stride], factors[half]);
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
#pragma GCC unroll 16
    for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
        for (int half = 0; half < vectors; ++half) keep(row, half, sums[row][half]);
}

// The same product, stored in C at row · NR, or added to it if `add`.
template <int count, Index row_stride, Index step_stride, class Factor>
void block_product(const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second, float* c, Index depth,
                   bool add) {
    block_sums<count, row_stride, step_stride, 2>(a, chunk, b, b_stride, second, depth, 1, 0,
                                                  [=](int row, int half, Vector sum) __attribute__((always_inline)) {
                                                      float* to = c + row * NR + half * lanes;
                                                      store(to, add ? load(to) + sum : sum);
                                                  });
}

// The same for a row count known only at run time.
template <Index row_stride, Index step_stride, int max_rows = MR, class Factor>
ALWAYS_INLINE void product(Index count, const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second,
                           float* c, Index depth, bool add) {
    if constexpr (max_rows > 1) {
        if (count < max_rows)
            return product<row_stride, step_stride, max_rows - 1>(count, a, chunk, b, b_stride, second, c, depth, add);
    }
    block_product<max_rows, row_stride, step_stride>(a, chunk, b, b_stride, second, c, depth, add);
}

}  // namespace svertka::INSTRUCTIONS
