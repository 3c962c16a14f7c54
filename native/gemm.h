// The register-blocked product that all algorithms share: a few rows of A times two vectors' width of B.
#pragma once

#include "simd.h"

namespace svertka::INSTRUCTIONS {

constexpr Index panel = 2 * lanes;  // columns of the register block

// C[row][column] = Σ_k A[row][k] · B[k][column], for `count` ≤ `rows` rows and `panel` columns.
// A lies in chunks of `lanes` steps of k, `chunk` floats apart, in a chunk at row · row_stride + k · step_stride;
// B at k · b_stride, its second vector `second` floats behind its first; C at row · panel, `add`: to what is there.
// The strides inside a chunk are compile-time numbers: each of A's elements is then an operand in memory at a fixed
// distance from one pointer, spread over the lanes as it is read. With one of two `vectors` only the first half of the
// columns is computed.
template <int count, Index row_stride, Index step_stride, int vectors = 2>
void block_product(const float* a, Index chunk, const float* b, Index b_stride, Index second, float* c, Index depth,
                   bool add) {
    Vector sums[count][vectors] = {};
    const auto step = [&](const float* column) __attribute__((always_inline)) {
        Vector factors[vectors];
#pragma GCC unroll 2
        for (int half = 0; half < vectors; ++half) factors[half] = load(b + half * second);
        b += b_stride;
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half) sums[row][half] += column[row * row_stride] * factors[half];
    };
    for (; depth >= lanes; depth -= lanes, a += chunk) {
#pragma GCC unroll 4
        for (Index k = 0; k < lanes; ++k) step(a + k * step_stride);
    }
    for (Index k = 0; k < depth; ++k) step(a + k * step_stride);
#pragma GCC unroll 16
    for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
        for (int half = 0; half < vectors; ++half) {
            float* to = c + row * panel + half * lanes;
            store(to, add ? load(to) + sums[row][half] : sums[row][half]);
        }
}

// The same for a number of rows known only at run time.
template <Index row_stride, Index step_stride, int vectors = 2, int most_rows = rows>
ALWAYS_INLINE void product(Index count, const float* a, Index chunk, const float* b, Index b_stride, Index second,
                           float* c, Index depth, bool add) {
    if constexpr (most_rows > 1) {
        if (count < most_rows)
            return product<row_stride, step_stride, vectors, most_rows - 1>(count, a, chunk, b, b_stride, second, c,
                                                                            depth, add);
    }
    block_product<most_rows, row_stride, step_stride, vectors>(a, chunk, b, b_stride, second, c, depth, add);
}

}  // namespace svertka::INSTRUCTIONS
