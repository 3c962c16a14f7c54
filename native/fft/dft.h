// The discrete Fourier transform of a line of complex numbers, one channel per lane.
#pragma once

#include "../simd.h"
#include "fft.h"

namespace svertka::INSTRUCTIONS::fft {

constexpr Index pair = 2 * lanes;  // floats per vector of complex numbers: the real parts, then the imaginary parts

struct Complex {
    Vector re, im;
};

// The addresses of a line's numbers: number t is at re + place[t] and im + place[t]. If place[t] < 0, it is read as zero
// and not written. (Skipping the zeros of a kernel's line saves no time, because the steps are limited by memory.)
struct Source {
    const float *re, *im;
    const Index* place;
};
struct Target {
    float *re, *im;
    const Index* place;
};

using FirstStep = void(Index count, const Source&, const float* roots, float* room);
using SecondStep = void(Index count, const float* room, const Target&);

// Lengths that can be transformed, each a product a · b of two compiled radices.
struct Length {
    int a, b;
    constexpr Index size() const { return a * b; }
};
constexpr Length lengths[] = {{4, 4},  {4, 5},  {4, 6},  {5, 5},  {5, 6},  {4, 8},  {6, 6},   {5, 8},   {6, 8},
                              {5, 10}, {6, 10}, {8, 8},  {6, 12}, {8, 10}, {8, 12}, {10, 10}, {10, 12}, {8, 16}};

// The transform of lines of one length, at most svertka::fft::longest.
class Dft {
  public:
    explicit Dft(Length length);

    Index size() const { return size_; }
    Index frequencies() const { return size_ / 2 + 1; }  // of a line of real numbers

    // `room`, here and below, holds 2 · size complex vectors.
    void transform(const Source& from, const Target& to, float* room) const {
        first_(b_, from, roots_, room);
        second_(a_, room, to);
    }

    // The inverse, times the length.
    void back(const Source& from, const Target& to, float* room) const {
        transform({from.im, from.re, from.place}, {to.im, to.re, to.place}, room);
    }

    // Transforms two lines a and b of real numbers at once, from.re and from.im: for z = a + ib, ẑ = â + ib̂, and
    // the conjugate of ẑ(−v) is â(v) − ib̂(v). Half of each line is kept, times 2, number v at v · stride.
    void transform_two(const Source& from, float* a, float* b, Index stride, float* room) const {
        float* const line = room + size_ * pair;
        transform(from, {line, line + lanes, natural_}, room);
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
        back({line, line + lanes, natural_}, to, room);
    }

  private:
    static void put(float* to, Complex number) {
        store(to, number.re);
        store(to + lanes, number.im);
    }

    Index size_, a_, b_;
    FirstStep* first_;
    SecondStep* second_;
    float roots_[2 * svertka::fft::max_length];
    Index natural_[svertka::fft::max_length];
};

}  // namespace svertka::INSTRUCTIONS::fft
