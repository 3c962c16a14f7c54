// Roots of unity, at compile time and at run time, and so in the namespace of the instruction set (simd.h).
#pragma once

namespace svertka::INSTRUCTIONS::fft {

struct Root {
    double re, im;
};

// exp(−2πi · k / n), k ≥ 0, from the series of sine and cosine within an eighth of a turn, so that it is exact where a
// component is 0 or 1.
constexpr Root root(long k, long n) {
    k %= n;
    const long quarter = 4 * k / n, rest = 4 * k - quarter * n;  // of a quarter turn, in parts of n
    const bool far = 2 * rest > n;
    const double angle = 1.57079632679489661923 * static_cast<double>(far ? n - rest : rest) / static_cast<double>(n);
    double cosine = 0, sine = 0, term = 1;
    for (int power = 0; power < 24; term *= angle / ++power) {
        const double with_sign = power & 2 ? -term : term;
        (power & 1 ? sine : cosine) += with_sign;
    }
    const double x = far ? sine : cosine, y = far ? cosine : sine;
    switch (quarter) {
        case 0: return {x, -y};
        case 1: return {-y, -x};
        case 2: return {-x, y};
        default: return {y, x};
    }
}

}  // namespace svertka::INSTRUCTIONS::fft
