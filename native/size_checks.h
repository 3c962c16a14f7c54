// Checks of sizes, and the number of values that each tensor must have for them. bind.cpp calls these checks before each
// kernel, because kernels do not check their arguments.
#pragma once

#include <algorithm>
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

inline void require(bool holds, const std::string& sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}

inline void require_between(const char* name, Size value, Size low, Size high) {
    if (value < low || value > high)
        require(false, std::string(name) + "=" + std::to_string(value) + " must be from " + std::to_string(low) + " to " +
                        std::to_string(high));
}

constexpr Size max_size = INT32_MAX;  // largest single size; products of sizes are checked for overflow

constexpr int max_threads = 4096;

inline Size product(std::initializer_list<Size> sizes) {
    Size all = 1;
    for (const Size size : sizes)
        if (__builtin_mul_overflow(all, size, &all) || all > PTRDIFF_MAX / 64)
            require(false, "more numbers than there are addresses");
    return all;
}

// Number of values from the first channel of the first pixel to the last channel of the last, with pixels `step` apart.
inline Size reach(Size pixels, Size step, Size channels) {
    return pixels > 0 ? product({pixels - 1, step}) + channels : 0;
}

inline void check(const Convolution& shape) {
    require_between("batch", shape.batch, 0, max_size);
    require_between("in_channels", shape.in_channels, 1, max_size);
    require_between("out_channels", shape.out_channels, 1, max_size);
    require_between("height", shape.height, 1, max_size);
    require_between("width", shape.width, 1, max_size);
    require_between("out_height", shape.out_height, 1, max_size);
    require_between("out_width", shape.out_width, 1, max_size);
    require_between("pad_y", shape.pad_y, -max_size, max_size);
    require_between("pad_x", shape.pad_x, -max_size, max_size);
    require_between("in_step", shape.in_step, shape.in_channels, max_size);
    require_between("out_step", shape.out_step, shape.out_channels, max_size);
}

// `floats`: whether maps and products are floats.
inline void check_tile(const Convolution& shape, bool floats) {
    if (shape.tile != 4 && !(shape.tile == 6 && floats))
        require(false, "tile=" + std::to_string(shape.tile) + " must be 4, or 6 in a forward pass with maps and products of floats");
}

inline Size pixels_in(const Convolution& shape) { return product({shape.batch, shape.height, shape.width}); }
inline Size pixels_out(const Convolution& shape) { return product({shape.batch, shape.out_height, shape.out_width}); }
inline Size weights_of(const Convolution& shape) { return product({shape.in_channels, shape.out_channels, 9}); }

// Inputs whose packed weights `Winograd::forward` reads: whole pairs of bfloat16.
inline Size packed_inputs(const Convolution& shape, Precision precision) {
    return shape.in_channels + (precision == Precision::float32 ? 0 : shape.in_channels % 2);
}

inline void check(const Axis& axis) {
    require_between("size", axis.size, 1, max_size);
    require_between("out_size", axis.out_size, 1, max_size);
    require_between("taps", axis.taps, 1, fft::max_length);
    require_between("pad", axis.pad, -max_size, max_size);
    require_between("dilation", axis.dilation, 1, fft::max_length);
    require_between("spacing", axis.spacing, 1, max_size);
    require_between("stride", axis.stride, 1, max_size);
    require_between("dilation · (taps − 1) + 1", axis.dilation * (axis.taps - 1) + 1, 1, fft::max_length);
}

inline void check(const Correlation& shape) {
    require_between("batch", shape.batch, 0, max_size);
    require_between("in_channels", shape.in_channels, 1, max_size);
    require_between("out_channels", shape.out_channels, 1, max_size);
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

inline void check(const WindowAxis& axis) {
    require_between("size", axis.size, 1, max_size);
    require_between("out_size", axis.out_size, 1, max_size);
    require_between("taps", axis.taps, 1, max_size);
    require_between("stride", axis.stride, 1, max_size);
    require_between("pad", axis.pad, -max_size, max_size);
    require_between("dilation", axis.dilation, 1, max_size);
}

inline void check(const Window& shape) {
    require_between("batch", shape.batch, 0, max_size);
    require_between("in_channels", shape.in_channels, 1, max_size);
    require_between("out_channels", shape.out_channels, 1, max_size);
    check(shape.y);
    check(shape.x);
    require_between("pad in x", shape.x.pad, 0, max_size);
    require_between("in_step", shape.in_step, shape.in_channels, max_size);
    require_between("out_step", shape.out_step, shape.out_channels, max_size);
}

inline void check(const Strided& shape) {
    for (std::size_t axis = 0; axis < shape.sizes.size(); ++axis) {
        require_between("sizes", shape.sizes[axis], 0, max_size);
        for (const Size stride : {shape.input[axis], shape.other[axis], shape.output[axis]})
            require_between("strides", stride, 0, PTRDIFF_MAX / 64);
    }
}

inline Size pixels_in(const Window& shape) { return product({shape.batch, shape.y.size, shape.x.size}); }
inline Size pixels_out(const Window& shape) { return product({shape.batch, shape.y.out_size, shape.x.out_size}); }

// Number of weights that `Direct::grouped` reads.
inline Size weights_of(const Window& shape, Size groups) {
    require_between("groups", groups, 1, std::min(shape.in_channels, shape.out_channels));
    const Size in = shape.in_channels / groups, out = shape.out_channels / groups;
    require(in * groups == shape.in_channels && out * groups == shape.out_channels,
            std::to_string(groups) + " groups must divide " + std::to_string(shape.in_channels) + " input and " +
                std::to_string(shape.out_channels) + " output channels");
    return product({shape.y.taps, shape.x.taps, in, shape.out_channels});
}

// Number of weights that `Direct::forward` reads.
inline Size weights_of(const Window& shape, Precision precision, Size panel_width) {
    const bool pairs = precision == Precision::bfloat16 && has_lines_of_pairs(shape), lines = pairs && has_paired_lines(shape);
    const Size depth = product({shape.y.taps + (lines ? shape.y.taps % 2 : 0), shape.x.taps,
                                shape.in_channels + (pairs && !lines ? shape.in_channels % 2 : 0)});
    const Size panels = (shape.out_channels + panel_width - 1) / panel_width;
    return product({panels, panel_width, precision == Precision::float32 ? depth : (depth + 1) / 2 * 2});
}

}  // namespace svertka
