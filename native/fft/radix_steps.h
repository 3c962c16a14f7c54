// The two mixed-radix steps of a Fourier transform, one channel per lane.
//
// With n = a · b numbers (Cooley & Tukey 1965), input place b · i + j and output place k + a · l,
//     X(k + a · l) = Σ_j e^(−2πi jl/b) · [ e^(−2πi jk/n) · Σ_i e^(−2πi ik/a) · x(b · i + j) ],
// a transforms of b numbers follow b transforms of a numbers. These short transforms are unrolled and stay in registers.
// Lanes are independent, so nothing is shuffled.
#pragma once

#include "dft.h"
#include "roots.h"

namespace svertka::INSTRUCTIONS::fft {

// body(0), body(1), … body(count − 1), each index a compile-time constant.
template <int count, class Body>
ALWAYS_INLINE void unrolled(Body body) {
    [&]<int... index>(std::integer_sequence<int, index...>) __attribute__((always_inline)) {
        (body(std::integral_constant<int, index>{}), ...);
    }
    (std::make_integer_sequence<int, count>{});
}

// exp(−2πi · k / n) · z
template <int k, int n>
ALWAYS_INLINE Complex rotate(Complex z) {
    if constexpr (k % n == 0) return z;
    if constexpr (4 * k % n == 0) {
        constexpr int quarter = 4 * k / n % 4;
        if constexpr (quarter == 1) return {z.im, -z.re};
        if constexpr (quarter == 2) return {-z.re, -z.im};
        if constexpr (quarter == 3) return {-z.im, z.re};
    }
    constexpr Root here = root(k, n);
    constexpr float re = here.re, im = here.im;
    return {re * z.re - im * z.im, re * z.im + im * z.re};
}

// Replaces x(0), x(1), … x(n − 1) with their transform.
template <int n>
ALWAYS_INLINE void transform(Complex* x) {
    if constexpr (n == 2) {
        const Complex a = x[0], b = x[1];
        x[0] = {a.re + b.re, a.im + b.im};
        x[1] = {a.re - b.re, a.im - b.im};
    } else if constexpr (n % 2 == 1) {  // 3 or 5; sums shared by opposite roots are computed once
        Complex sums[n / 2], differences[n / 2], total = x[0];
        unrolled<n / 2>([&](auto j) __attribute__((always_inline)) {
            const Complex a = x[j + 1], b = x[n - 1 - j];
            sums[j] = {a.re + b.re, a.im + b.im};
            differences[j] = {a.re - b.re, a.im - b.im};
            total = {total.re + sums[j].re, total.im + sums[j].im};
        });
        unrolled<n / 2>([&](auto k) __attribute__((always_inline)) {
            Complex even = x[0], odd{};
            unrolled<n / 2>([&](auto j) __attribute__((always_inline)) {
                constexpr Root here = root((k + 1) * (j + 1), n);
                constexpr float re = here.re, im = here.im;
                even = {even.re + re * sums[j].re, even.im + re * sums[j].im};
                odd = {odd.re - im * differences[j].im, odd.im + im * differences[j].re};
            });
            x[k + 1] = {even.re + odd.re, even.im + odd.im};
            x[n - 1 - k] = {even.re - odd.re, even.im - odd.im};
        });
        x[0] = total;
    } else {
        constexpr int a = n == 4 || n % 4 ? 2 : 4, b = n / a;
        Complex middle[n];
        unrolled<b>([&](auto j) __attribute__((always_inline)) {
            Complex column[a];
            unrolled<a>([&](auto i) __attribute__((always_inline)) { column[i] = x[b * i + j]; });
            transform<a>(column);
            unrolled<a>([&](auto k) __attribute__((always_inline)) { middle[b * k + j] = rotate<j * k, n>(column[k]); });
        });
        unrolled<a>([&](auto k) __attribute__((always_inline)) {
            transform<b>(middle + b * k);
            unrolled<b>([&](auto l) __attribute__((always_inline)) { x[k + a * l] = middle[b * k + l]; });
        });
    }
}

// The first step: `count` = n / radix transforms of `radix` numbers, stored at (k, j) of `room`. `roots`: one row per j.
template <int radix>
void first_step(Index count, const Source& from, const float* roots, float* room) {
    for (Index j = 0; j < count; ++j, roots += 2 * radix) {
        Complex x[radix];
        unrolled<radix>([&](auto i) __attribute__((always_inline)) {
            const Index place = from.place[count * i + j];
            x[i] = place < 0 ? Complex{} : Complex{load(from.re + place), load(from.im + place)};
        });
        transform<radix>(x);
        unrolled<radix>([&](auto k) __attribute__((always_inline)) {
            const float re = roots[2 * k], im = roots[2 * k + 1];
            float* to = room + (count * k + j) * pair;
            store(to, k ? re * x[k].re - im * x[k].im : x[k].re);
            store(to + lanes, k ? re * x[k].im + im * x[k].re : x[k].im);
        });
    }
}

// The second step: `count` = n / radix transforms of `radix` numbers.
template <int radix>
void second_step(Index count, const float* room, const Target& to) {
    for (Index k = 0; k < count; ++k, room += radix * pair) {
        Complex x[radix];
        unrolled<radix>([&](auto j) __attribute__((always_inline)) {
            x[j] = {load(room + j * pair), load(room + j * pair + lanes)};
        });
        transform<radix>(x);
        unrolled<radix>([&](auto l) __attribute__((always_inline)) {
            const Index place = to.place[k + count * l];
            if (place < 0) return;
            store(to.re + place, x[l].re);
            store(to.im + place, x[l].im);
        });
    }
}

}  // namespace svertka::INSTRUCTIONS::fft
