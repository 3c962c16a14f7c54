// Whether sizes make sense, and how many numbers each tensor needs for them: what bind.cpp checks before a kernel, which
// trusts its caller, reads or writes anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "direct/direct.h"
#include "fft/fft.h"
#include "winograd/winograd.h"

namespace svertka {

using Size = std::ptrdiff_t;

inline void need(bool holds, const std::string& sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}

inline void need_between(const char* name, Size value, Size low, Size high) {
    if (value < low || value > high)
        need(false, std::string(name) + "=" + std::to_string(value) + " must be from " + std::to_string(low) + " to " +
                        std::to_string(high));
}

constexpr Size largest = INT32_MAX;  // of any one size: counts of numbers, which are products of them, are checked

constexpr int most_threads = 4096;

inline Size product(std::initializer_list<Size> sizes) {
    Size all = 1;
    for (const Size size : sizes)
        if (__builtin_mul_overflow(all, size, &all) || all > PTRDIFF_MAX / 64)
            need(false, "more numbers than there are addresses");
    return all;
}

// Numbers from the first channel of the first pixel to the last of the last, `step` from one pixel to the next.
inline Size reach(Size pixels, Size step, Size channels) {
    return pixels > 0 ? product({pixels - 1, step}) + channels : 0;
}

inline void check(const Convolution& shape) {
    need_between("batch", shape.batch, 0, largest);
    need_between("in_channels", shape.in_channels, 1, largest);
    need_between("out_channels", shape.out_channels, 1, largest);
    need_between("height", shape.height, 1, largest);
    need_between("width", shape.width, 1, largest);
    need_between("out_height", shape.out_height, 1, largest);
    need_between("out_width", shape.out_width, 1, largest);
    need_between("pad_y", shape.pad_y, -largest, largest);
    need_between("pad_x", shape.pad_x, -largest, largest);
    need_between("in_step", shape.in_step, shape.in_channels, largest);
    need_between("out_step", shape.out_step, shape.out_channels, largest);
}

inline Size pixels_in(const Convolution& shape) { return product({shape.batch, shape.height, shape.width}); }
inline Size pixels_out(const Convolution& shape) { return product({shape.batch, shape.out_height, shape.out_width}); }
inline Size weights_of(const Convolution& shape) { return product({shape.in_channels, shape.out_channels, 9}); }

inline void check(const Axis& axis) {
    need_between("size", axis.size, 1, largest);
    need_between("out_size", axis.out_size, 1, largest);
    need_between("taps", axis.taps, 1, fft::longest);
    need_between("pad", axis.pad, -largest, largest);
    need_between("dilation", axis.dilation, 1, fft::longest);
    need_between("spacing", axis.spacing, 1, largest);
    need_between("stride", axis.stride, 1, largest);
    need_between("dilation · (taps − 1) + 1", axis.dilation * (axis.taps - 1) + 1, 1, fft::longest);
}

inline void check(const Correlation& shape) {
    need_between("batch", shape.batch, 0, largest);
    need_between("in_channels", shape.in_channels, 1, largest);
    need_between("out_channels", shape.out_channels, 1, largest);
    check(shape.y);
    check(shape.x);
}

inline Size numbers_in(const Correlation& shape) {
    return product({shape.batch, shape.y.size, shape.x.size, shape.in_channels});
}
inline Size numbers_out(const Correlation& shape) {
    return product({shape.batch, shape.y.out_size, shape.x.out_size, shape.out_channels});
}
inline Size weights_of(const Correlation& shape) {
    return product({shape.out_channels, shape.y.taps, shape.x.taps, shape.in_channels});
}

inline void check(const Sliding& axis) {
    need_between("size", axis.size, 1, largest);
    need_between("out_size", axis.out_size, 1, largest);
    need_between("taps", axis.taps, 1, largest);
    need_between("stride", axis.stride, 1, largest);
    need_between("pad", axis.pad, -largest, largest);
    need_between("dilation", axis.dilation, 1, largest);
}

inline void check(const Window& shape) {
    need_between("batch", shape.batch, 0, largest);
    need_between("in_channels", shape.in_channels, 1, largest);
    need_between("out_channels", shape.out_channels, 1, largest);
    check(shape.y);
    check(shape.x);
    need_between("pad in x", shape.x.pad, 0, largest);
    need_between("in_step", shape.in_step, shape.in_channels, largest);
    need_between("out_step", shape.out_step, shape.out_channels, largest);
}

inline Size pixels_in(const Window& shape) { return product({shape.batch, shape.y.size, shape.x.size}); }
inline Size pixels_out(const Window& shape) { return product({shape.batch, shape.y.out_size, shape.x.out_size}); }

// Numbers of the weights of `Direct::forward`.
inline Size weights_of(const Window& shape, Precision precision, Size panel) {
    const Size depth = product({shape.y.taps, shape.x.taps, shape.in_channels});
    const Size panels = (shape.out_channels + panel - 1) / panel;
    return product({panels, panel, precision == Precision::float32 ? depth : (depth + 1) / 2 * 2});
}

}  // namespace svertka
