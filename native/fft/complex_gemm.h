// The product of complex matrices at one frequency, with four real multiplications per product.
#pragma once

#include "dft.h"

namespace svertka::INSTRUCTIONS::fft {

// C[row] = Σ_k A[row][k] · conj(B[k]), or `conjugate` that, for `count` ≤ `MR` rows and a complex vector of columns. Element k of a row of
// A is at row · row_stride + k · step_stride in a chunk of `lanes` steps, `chunk` floats apart, its imaginary part
// `lanes` floats behind; B at k · b_stride; C at row · pair, `add`: to what is there.
//
// This takes as many registers as two real vectors of columns, and uses each element of A and B twice. Three
// multiplications (Gauss) would need sums of real and imaginary parts, which increase the memory of A and B by half; B is
// read from the L2 cache.
template <int count, Index row_stride, Index step_stride, bool conjugate = false>
void complex_block(const float* a, Index chunk, const float* b, Index b_stride, float* c, Index depth, bool add) {
    Complex sums[count] = {};
    const auto step = [&](const float* column) __attribute__((always_inline)) {
        const Vector re = load(b), im = load(b + lanes);
        b += b_stride;
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row) {
            const float *real = column + row * row_stride, *imaginary = real + lanes;
            sums[row].re += *real * re;
            sums[row].im += conjugate ? *real * im : -*real * im;
            sums[row].re += *imaginary * im;
            sums[row].im += conjugate ? -*imaginary * re : *imaginary * re;
        }
    };
    for (; depth >= lanes; depth -= lanes, a += chunk) {
#pragma GCC unroll 2
        for (Index k = 0; k < lanes; ++k) step(a + k * step_stride);
    }
    for (Index k = 0; k < depth; ++k) step(a + k * step_stride);
#pragma GCC unroll 16
    for (int row = 0; row < count; ++row) {
        float* to = c + row * pair;
        store(to, add ? load(to) + sums[row].re : sums[row].re);
        store(to + lanes, add ? load(to + lanes) + sums[row].im : sums[row].im);
    }
}

// The same for a number of rows known only at run time.
template <Index row_stride, Index step_stride, int max_rows = MR>
ALWAYS_INLINE void complex_product(Index count, const float* a, Index chunk, const float* b, Index b_stride, float* c,
                                   Index depth, bool add) {
    if constexpr (max_rows > 1) {
        if (count < max_rows)
            return complex_product<row_stride, step_stride, max_rows - 1>(count, a, chunk, b, b_stride, c, depth, add);
    }
    complex_block<max_rows, row_stride, step_stride>(a, chunk, b, b_stride, c, depth, add);
}

}  // namespace svertka::INSTRUCTIONS::fft
