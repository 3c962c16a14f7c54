// The windows of output pixels in channels-last images.
#pragma once

#include "direct/direct.h"
#include "simd.h"

namespace svertka::INSTRUCTIONS {

// The taps `first` to `last` of an axis that lie in the image, for the window that begins at pixel `start`.
struct TapsInside {
    Index start, first, last;

    TapsInside(const WindowAxis& axis, Index output)
        : start(output * axis.stride - axis.pad),
          first(start < 0 ? ceil_div(-start, axis.dilation) : 0),
          last(min(axis.taps, ceil_div(axis.size - start, axis.dilation))) {}

    Index count() const { return last - first; }

    // The taps in the image and in its padding.
    Index count_padded(const WindowAxis& axis) const {
        return min(ceil_div(axis.size + axis.pad - start, axis.dilation), axis.taps);
    }
};

// Calls body(index, image, y, x) for windows `first` to `last` of a batch, with index from 0: the image at which the
// window lies, and the pixel at which it begins, which may lie in the padding.
template <class Number, class Body>
ALWAYS_INLINE void for_each_window(const Window& shape, const Number* input, Index first, Index last, Body body) {
    Index x = first % shape.x.out_size, y = first / shape.x.out_size % shape.y.out_size;
    const Index of_image = shape.y.size * shape.x.size * shape.in_step;
    const Number* image = input + first / shape.x.out_size / shape.y.out_size * of_image;
    for (Index index = 0; index < last - first; ++index) {
        body(index, image, y * shape.y.stride - shape.y.pad, x * shape.x.stride - shape.x.pad);
        if (++x < shape.x.out_size) continue;
        x = 0;
        if (++y < shape.y.out_size) continue;
        y = 0;
        image += of_image;
    }
}

}  // namespace svertka::INSTRUCTIONS
