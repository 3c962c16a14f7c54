// The register-blocked product that all algorithms share: a few rows of A times two vectors' width of B.
#pragma once

#include "pairs.h"

namespace svertka::INSTRUCTIONS {

constexpr Index panel = 2 * lanes;  // columns of the register block

// Where the numbers from `number` · lanes on of a row of A are stored that begins at `row`, if chunks of `rows` rows lie
// side by side.
template <class Factor>
ALWAYS_INLINE auto* place_in(Factor* row, Index number) {
    if constexpr (numbers_in<Factor> == 2)
        return reinterpret_cast<BFloat16*>(row + number / 2 * rows * lanes) + number % 2 * lanes;
    else
        return row + number * rows * lanes;
}

// Σ_k A[row][k] · B[k][column], for `count` ≤ `rows` rows and `panel` columns: keep(row, half, vector) takes each sum,
// one vector's width of columns at a time.
// A lies in chunks of `lanes` steps of k, `chunk` factors apart, in a chunk at row · row_stride + k · step_stride;
// B at k · b_stride, its second vector `second` factors behind its first. Factors are floats, or pairs of bfloat16
// numbers, which belong to two neighbours of k: steps, strides and `depth` then count pairs.
// The strides inside a chunk are compile-time numbers: each of A's elements is then an operand in memory at a fixed
// distance from one pointer, spread over the lanes as it is read. With one of two `vectors` only the first half of the
// columns is computed. There may be several `pieces` of k, `depth` long, those of A `piece` floats apart.
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

// The same product, put to C at row · panel, `add`: to what is there.
template <int count, Index row_stride, Index step_stride, class Factor>
void block_product(const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second, float* c, Index depth,
                   bool add) {
    block_sums<count, row_stride, step_stride, 2>(a, chunk, b, b_stride, second, depth, 1, 0,
                                                  [=](int row, int half, Vector sum) __attribute__((always_inline)) {
                                                      float* to = c + row * panel + half * lanes;
                                                      store(to, add ? load(to) + sum : sum);
                                                  });
}

// The same for a number of rows known only at run time.
template <Index row_stride, Index step_stride, int most_rows = rows, class Factor>
ALWAYS_INLINE void product(Index count, const Factor* a, Index chunk, const Factor* b, Index b_stride, Index second,
                           float* c, Index depth, bool add) {
    if constexpr (most_rows > 1) {
        if (count < most_rows)
            return product<row_stride, step_stride, most_rows - 1>(count, a, chunk, b, b_stride, second, c, depth, add);
    }
    block_product<most_rows, row_stride, step_stride>(a, chunk, b, b_stride, second, c, depth, add);
}

}  // namespace svertka::INSTRUCTIONS
