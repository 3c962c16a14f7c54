// The discrete Fourier transform of a line of complex numbers, of one channel in each lane of the vectors.
//
// A line of n = a · b numbers is transformed in two steps (Cooley & Tukey 1965): with input place b · i + j and output
// place k + a · l,
//     X(k + a · l) = Σ_j e^(−2πi jl/b) · [ e^(−2πi jk/n) · Σ_i e^(−2πi ik/a) · x(b · i + j) ],
// a transforms of b numbers after b transforms of a numbers; these short ones are unrolled and stay in registers. Nothing
// is shuffled, since lanes do not meet. The inverse, times n, is the same with real and imaginary parts exchanged
// before and after.
#pragma once

#include "../simd.h"
#include "fft.h"
#include "roots.h"

namespace svertka::INSTRUCTIONS::fft {

constexpr Index pair = 2 * lanes;  // floats of a vector of complex numbers: the real parts, then the imaginary ones

struct Complex {
    Vector re, im;
};

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
ALWAYS_INLINE Complex turned(Complex z) {
    if constexpr (k % n == 0) return z;
    if constexpr (4 * k % n == 0) {
        constexpr int quarter = 4 * k / n % 4;
        if constexpr (quarter == 1) return {z.im, -z.re};
        if constexpr (quarter == 2) return {-z.re, -z.im};
        if constexpr (quarter == 3) return {-z.im, z.re};
    }
    constexpr svertka::fft::Root root = svertka::fft::root(k, n);
    constexpr float re = root.re, im = root.im;
    return {re * z.re - im * z.im, re * z.im + im * z.re};
}

// x(0), x(1), … x(n − 1) become their transform; those from x(used) on are taken for zeros.
template <int n, int used = n>
ALWAYS_INLINE void transform(Complex* x) {
    if constexpr (used == 1) {
        unrolled<n - 1>([&](auto j) __attribute__((always_inline)) { x[j + 1] = x[0]; });
    } else if constexpr (n == 2) {
        const Complex a = x[0], b = x[1];
        x[0] = {a.re + b.re, a.im + b.im};
        x[1] = {a.re - b.re, a.im - b.im};
    } else if constexpr (n % 2 == 1) {  // 3 or 5: what opposite roots share is computed once
        unrolled<n - used>([&](auto j) __attribute__((always_inline)) { x[used + j] = Complex{}; });
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
                constexpr svertka::fft::Root root = svertka::fft::root((k + 1) * (j + 1), n);
                constexpr float re = root.re, im = root.im;
                even = {even.re + re * sums[j].re, even.im + re * sums[j].im};
                odd = {odd.re - im * differences[j].im, odd.im + im * differences[j].re};
            });
            x[k + 1] = {even.re + odd.re, even.im + odd.im};
            x[n - 1 - k] = {even.re - odd.re, even.im - odd.im};
        });
        x[0] = total;
    } else {
        constexpr int a = n == 4 || n % 4 ? 2 : 4, b = n / a, columns = used < b ? used : b;
        Complex middle[n];
        unrolled<columns>([&](auto j) __attribute__((always_inline)) {
            constexpr int rows = (used - j + b - 1) / b;
            Complex column[a];
            unrolled<rows>([&](auto i) __attribute__((always_inline)) { column[i] = x[b * i + j]; });
            transform<a, rows>(column);
            unrolled<a>([&](auto k) __attribute__((always_inline)) { middle[b * k + j] = turned<j * k, n>(column[k]); });
        });
        unrolled<a>([&](auto k) __attribute__((always_inline)) {
            transform<b, columns>(middle + b * k);
            unrolled<b>([&](auto l) __attribute__((always_inline)) { x[k + a * l] = middle[b * k + l]; });
        });
    }
}

// Where a line's numbers are: that at place t is at re + place[t] and im + place[t]. One with place[t] < 0 is a zero
// where it is read, and where it is written left out; so are all from place `end` on, at less cost.
struct Source {
    const float *re, *im;
    const Index* place;
    Index end;
};
struct Target {
    float *re, *im;
    const Index* place;
    Index end;
};

// The first step: `count` = n / radix transforms of `radix` numbers, of which the first `used` are not all zero, to
// (k, j) of `room`. `roots`: a row for each j.
template <int radix, int used>
void first_step(Index count, const Source& from, const float* roots, float* room) {
    for (Index j = 0; j < count; ++j, roots += 2 * radix) {
        Complex x[radix];
        unrolled<used>([&](auto i) __attribute__((always_inline)) {
            const Index place = from.place[count * i + j];
            x[i] = place < 0 ? Complex{} : Complex{load(from.re + place), load(from.im + place)};
        });
        transform<radix, used>(x);
        unrolled<radix>([&](auto k) __attribute__((always_inline)) {
            const float re = roots[2 * k], im = roots[2 * k + 1];
            float* to = room + (count * k + j) * pair;
            store(to, k ? re * x[k].re - im * x[k].im : x[k].re);
            store(to + lanes, k ? re * x[k].im + im * x[k].re : x[k].im);
        });
    }
}

// The second: `count` = n / radix transforms of `radix` numbers, of which the first `used` are kept.
template <int radix, int used>
void second_step(Index count, const float* room, const Target& to) {
    for (Index k = 0; k < count; ++k, room += radix * pair) {
        Complex x[radix];
        unrolled<radix>([&](auto j) __attribute__((always_inline)) {
            x[j] = {load(room + j * pair), load(room + j * pair + lanes)};
        });
        transform<radix>(x);
        unrolled<used>([&](auto l) __attribute__((always_inline)) {
            const Index place = to.place[k + count * l];
            if (place < 0) return;
            store(to.re + place, x[l].re);
            store(to.im + place, x[l].im);
        });
    }
}

// Both for one radix, by how many numbers are used.
template <int radix>
struct Steps {
    void (*first[radix + 1])(Index, const Source&, const float*, float*);
    void (*second[radix + 1])(Index, const float*, const Target&);

    template <int... used>
    static constexpr Steps all(std::integer_sequence<int, used...>) {
        return {{first_step<radix, used ? used : 1>...}, {second_step<radix, used ? used : 1>...}};
    }
};
template <int radix>
constexpr Steps<radix> steps = Steps<radix>::all(std::make_integer_sequence<int, radix + 1>{});

// Numbers of lines that can be transformed, each a · b, two radices that are compiled.
struct Length {
    int a, b;
    constexpr Index size() const { return a * b; }
};
constexpr Length lengths[] = {{4, 4},  {4, 5},  {4, 6},  {5, 5},  {5, 6},  {4, 8},  {6, 6},   {5, 8},   {6, 8},
                              {5, 10}, {6, 10}, {8, 8},  {6, 12}, {8, 10}, {8, 12}, {10, 10}, {10, 12}, {8, 16}};

// The transform of lines of one length, at most svertka::fft::longest.
class Line {
  public:
    explicit Line(Length length) : size_(length.size()), a_(length.a), b_(length.b) {
        for (Index j = 0; j < b_; ++j)
            for (Index k = 0; k < a_; ++k) {
                const svertka::fft::Root root = svertka::fft::root(j * k, size_);
                roots_[2 * (j * a_ + k)] = static_cast<float>(root.re);
                roots_[2 * (j * a_ + k) + 1] = static_cast<float>(root.im);
            }
        choose<4, 5, 6, 8, 10, 12, 16>();
        for (Index t = 0; t < size_; ++t) natural_[t] = t * pair;
    }

    Index size() const { return size_; }
    Index frequencies() const { return size_ / 2 + 1; }  // that a line of real numbers has

    // `room`, here and below: for 2 · size complex vectors.
    void transform(const Source& from, const Target& to, float* room) const {
        first_[parts(from.end, b_)](b_, from, roots_, room);
        second_[parts(to.end, a_)](a_, room, to);
    }

    // The inverse, times the length.
    void back(const Source& from, const Target& to, float* room) const {
        transform({from.im, from.re, from.place, from.end}, {to.im, to.re, to.place, to.end}, room);
    }

    // Two lines a and b of real numbers at once, from.re and from.im: of z = a + ib the transform is ẑ = â + ib̂, and
    // the conjugate of ẑ(−v) is â(v) − ib̂(v). Half of each line is kept, times 2, number v at v · stride.
    void transform_two(const Source& from, float* a, float* b, Index stride, float* room) const {
        float* const line = room + size_ * pair;
        transform(from, {line, line + lanes, natural_, size_}, room);
        for (Index v = 0; v < frequencies(); ++v) {
            const float *z = line + v * pair, *y = line + (v ? size_ - v : 0) * pair;
            const Complex plus{load(z), load(z + lanes)}, minus{load(y), load(y + lanes)};
            put(a + v * stride, {plus.re + minus.re, plus.im - minus.im});
            put(b + v * stride, {plus.im + minus.im, minus.re - plus.re});
        }
    }

    // Two lines of real numbers from the halves of their transforms, times the length, to to.re and to.im.
    void back_two(const float* a, const float* b, Index stride, const Target& to, float* room) const {
        float* const line = room + size_ * pair;
        for (Index v = 0; v < frequencies(); ++v) {
            const float *first = a + v * stride, *second = b + v * stride;
            const Complex x{load(first), load(first + lanes)}, y{load(second), load(second + lanes)};
            if (v) put(line + (size_ - v) * pair, {x.re + y.im, y.re - x.im});
            put(line + v * pair, {x.re - y.im, x.im + y.re});
        }
        back({line, line + lanes, natural_, size_}, to, room);
    }

  private:
    static void put(float* to, Complex number) {
        store(to, number.re);
        store(to + lanes, number.im);
    }

    template <int... radices>
    void choose() {
        ((a_ == radices ? void(first_ = steps<radices>.first) : void()), ...);
        ((b_ == radices ? void(second_ = steps<radices>.second) : void()), ...);
    }

    Index size_, a_, b_;
    void (*const* first_)(Index, const Source&, const float*, float*) = nullptr;
    void (*const* second_)(Index, const float*, const Target&) = nullptr;
    float roots_[2 * svertka::fft::longest];
    Index natural_[svertka::fft::longest];
};

}  // namespace svertka::INSTRUCTIONS::fft
