// What the windows of pictures read, gathered to rows of a matrix.
#pragma once

#include "../gemm.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {

// Rows are made of `Factor`s; there is one for each output pixel.
template <class Factor>
struct Windows {
    const Window& shape;
    const float* input;
    const float* zeros = nullptr;  // in_channels of them
    const float* end = input + shape.batch * shape.y.size * shape.x.size * shape.in_step;
    Index taps = shape.y.taps * shape.x.taps, depth = taps * shape.in_channels;
    Index steps = parts(depth, numbers_in<Factor>), chunks = parts(steps, lanes);
    // Whether the pixels that the taps of one row read are one piece of memory.
    bool dense = shape.in_step == shape.in_channels && shape.x.dilation == 1;

    // Rows first to last, to (register block, group of factors, row of the register block, lane), the first at `to`.
    void gather(Index first, Index last, Factor* to, float* line) const {
        Index x = first % shape.x.out_size, y = first / shape.x.out_size % shape.y.out_size;
        const Index picture = first / shape.x.out_size / shape.y.out_size;
        const Index of_picture = shape.y.size * shape.x.size * shape.in_step;
        const float* from = input + picture * of_picture;
        for (Index index = 0; index < last - first; ++index) {
            Factor* row = to + (index / rows * chunks * rows + index % rows) * lanes;
            const Index in_y = y * shape.y.stride - shape.y.pad, in_x = x * shape.x.stride - shape.x.pad;
            if (shape.in_channels % lanes == 0 || taps == 1)
                gather_channels(from, in_y, in_x, row);
            else
                gather_line(from, in_y, in_x, row, line);
            if (++x < shape.x.out_size) continue;
            x = 0;
            if (++y < shape.y.out_size) continue;
            y = 0;
            from += of_picture;
        }
    }

  private:
    void gather_channels(const float* from, Index in_y, Index in_x, Factor* row) const {
        const Index whole = shape.in_channels / lanes, rest = shape.in_channels % lanes;
        Index number = 0;
        for (Index i = 0; i < shape.y.taps; ++i)
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index y = in_y + i * shape.y.dilation, x = in_x + j * shape.x.dilation;
                const bool inside = y >= 0 && y < shape.y.size && x >= 0 && x < shape.x.size;
                const float* pixel = inside ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index group = 0; group < whole; ++group) store(place_in(row, number++), load(pixel + group * lanes));
                if (rest) store(place_in(row, number), load_some(pixel + whole * lanes, rest));
            }
    }

    // Where a pixel's channels do not fill vectors: first side by side, then cut. `line` has room for a vector more.
    void gather_line(const float* from, Index in_y, Index in_x, Factor* row, float* line) const {
        const Index channels = shape.in_channels, width = shape.x.taps * channels;
        float* to = line;
        for (Index i = 0; i < shape.y.taps; ++i, to += width) {
            const Index y = in_y + i * shape.y.dilation;
            const bool inside = y >= 0 && y < shape.y.size;
            const float* pixels = from + (y * shape.x.size + in_x) * shape.in_step;
            if (inside && dense && in_x >= 0 && in_x + shape.x.taps <= shape.x.size &&
                pixels + parts(width, lanes) * lanes <= end) {
                for (Index k = 0; k < width; k += lanes) store(to + k, load(pixels + k));
                continue;
            }
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index x = in_x + j * shape.x.dilation;
                const bool there = inside && x >= 0 && x < shape.x.size;
                const float* pixel = there ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index channel = 0; channel < channels; ++channel) to[j * channels + channel] = pixel[channel];
            }
        }
        line[depth] = 0;  // the other one of the last pair
        for (Index number = 0; number * lanes < depth; ++number) store(place_in(row, number), load(line + number * lanes));
    }
};

}  // namespace svertka::INSTRUCTIONS
