// im2col of 8-bit maps: the windows, gathered as rows of factors.
#pragma once

#include "../windows.h"
#include "bytes.h"
#include "int8.h"

namespace svertka::INSTRUCTIONS {

struct ByteIm2col {
    const Window& shape;
    const Byte* input;
    const Byte* padding;  // at least a pixel and a vector of the number in the padding
    const Byte* end =
        input + (shape.batch * shape.y.size * shape.x.size - 1) * shape.in_step + shape.in_channels;  // of the input
    Index channels = shape.in_channels, taps = shape.y.taps * shape.x.taps;
    Index of_row = ceil_div(shape.x.taps * channels, per_factor) * per_factor;  // numbers of a row of taps, in whole factors
    Index depth = shape.y.taps * of_row;
    Index steps = ceil_div(depth, per_factor), chunks = ceil_div(steps, lanes);
    // Whether the pixels of one row of taps are contiguous.
    bool dense = shape.in_step == channels && shape.x.dilation == 1;

    static constexpr Index slack = sizeof(Wide);  // bytes after `depth` in a line

    Index of_line = ceil_div(depth + slack, slack) * slack;  // bytes of a line with its slack

    // Gather rows `first` to `last` to (register tile, chunk of k, row of the tile, lane). Factors after `depth` are
    // arbitrary; their weights are zero. `lines`: room for MR lines.
    void gather(Index first, Index last, Factor* to, Byte* lines) const {
        const bool by_lines = channels % numbers_in_chunk != 0 && taps > 1;
        for (; first < last; first += MR, to += chunks * MR * lanes) {
            const Index count = min(MR, last - first);
            for_each_window(shape, input, first, first + count,
                            [&](Index row, const Byte* image, Index y, Index x) __attribute__((always_inline)) {
                if (by_lines)
                    gather_line(image, y, x, lines + row * of_line);
                else
                    gather_channels(image, y, x, to + row * lanes, lines);
            });
            // A line that was just written, vector over vector, cannot be read before all its writes have reached the cache.
            if (by_lines)
                for (Index row = 0; row < count; ++row)
                    for (Index chunk = 0; chunk < chunks; ++chunk)
                        store_factors(to + (chunk * MR + row) * lanes, lines + row * of_line + chunk * numbers_in_chunk);
        }
    }

  private:
    // Copy `count` bytes in whole vectors if they can be read, which writes up to `slack` bytes more.
    ALWAYS_INLINE void copy(Byte* to, const Byte* from, Index count) const {
        if (from + ceil_div(count, slack) * slack <= end)
            for (Index k = 0; k < count; k += slack) store_as(to + k, load_as<Wide>(from + k));
        else
            std::memcpy(to, from, count);
    }

    ALWAYS_INLINE void fill(Byte* to, Index count) const {
        const Wide numbers = load_as<Wide>(padding);
        for (Index k = 0; k < count; k += slack) store_as(to + k, numbers);
    }

    // Whether the window that begins at pixel (y, x) lies in the image.
    bool contains(Index y, Index x) const {
        return y >= 0 && y + (shape.y.taps - 1) * shape.y.dilation < shape.y.size && x >= 0 &&
               x + (shape.x.taps - 1) * shape.x.dilation < shape.x.size;
    }

    void gather_channels(const Byte* from, Index in_y, Index in_x, Factor* row, Byte* line) const {
        if (dense && channels % numbers_in_chunk == 0 && contains(in_y, in_x)) return gather_rows(from, in_y, in_x, row);
        const Index whole = channels / numbers_in_chunk, rest = channels % numbers_in_chunk;
        for (Index i = 0; i < shape.y.taps; ++i)
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index y = in_y + i * shape.y.dilation, x = in_x + j * shape.x.dilation;
                const bool inside = y >= 0 && y < shape.y.size && x >= 0 && x < shape.x.size;
                const Byte* pixel = inside ? from + (y * shape.x.size + x) * shape.in_step : padding;
                for (Index number = 0; number < whole; ++number, row += MR * lanes, pixel += numbers_in_chunk)
                    store_factors(row, pixel);
                if (rest == 0) continue;
                if (inside && pixel + slack > end) {
                    std::memcpy(line, pixel, rest);
                    pixel = line;
                }
                store_factors(row, pixel);
            }
    }

    // For whole chunks of channels in the image: each row of taps is contiguous.
    ALWAYS_INLINE void gather_rows(const Byte* from, Index in_y, Index in_x, Factor* row) const {
        const Index width = shape.x.taps * channels, down = shape.y.dilation * shape.x.size * shape.in_step;
        from += (in_y * shape.x.size + in_x) * shape.in_step;
        for (Index i = 0; i < shape.y.taps; ++i, from += down)
            for (Index k = 0; k < width; k += numbers_in_chunk, row += MR * lanes) store_factors(row, from + k);
    }

    // Copies a window to `line`, one row of taps after another.
    void gather_line(const Byte* from, Index in_y, Index in_x, Byte* line) const {
        const Index width = shape.x.taps * channels, down = shape.y.dilation * shape.x.size * shape.in_step;
        const Byte* const corner = from + (in_y * shape.x.size + in_x) * shape.in_step;
        if (dense && contains(in_y, in_x) && corner + (shape.y.taps - 1) * down + ceil_div(width, slack) * slack <= end)
            for (Index i = 0; i < shape.y.taps; ++i)
                for (Index k = 0; k < width; k += slack)
                    store_as(line + i * of_row + k, load_as<Wide>(corner + i * down + k));
        else
            gather_padded_line(from, in_y, in_x, line);
    }

    void gather_padded_line(const Byte* from, Index in_y, Index in_x, Byte* to) const {
        for (Index i = 0; i < shape.y.taps; ++i, to += of_row) {
            const Index y = in_y + i * shape.y.dilation;
            if (y < 0 || y >= shape.y.size)
                fill(to, shape.x.taps * channels);
            else
                gather_taps(from + y * shape.x.size * shape.in_step, in_x, to);
        }
    }

    // One row of taps, from the image line at `from`.
    void gather_taps(const Byte* from, Index in_x, Byte* to) const {
        const Index taps_in_x = shape.x.taps;
        if (!dense) {
            for (Index j = 0; j < taps_in_x; ++j, to += channels) {
                const Index x = in_x + j * shape.x.dilation;
                const bool inside = x >= 0 && x < shape.x.size;
                inside ? copy(to, from + x * shape.in_step, channels) : fill(to, channels);
            }
            return;
        }
        const Index before = min(max(-in_x, 0), taps_in_x), until = max(min(shape.x.size - in_x, taps_in_x), before);
        if (before > 0) fill(to, before * channels);
        if (until > before) copy(to + before * channels, from + (in_x + before) * channels, (until - before) * channels);
        if (taps_in_x > until) fill(to + until * channels, (taps_in_x - until) * channels);
    }
};

}  // namespace svertka::INSTRUCTIONS
