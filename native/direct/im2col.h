// im2col: gathering the windows of images as rows of a packed matrix.
#pragma once

#include "../gemm.h"
#include "../windows.h"

namespace svertka::INSTRUCTIONS {

constexpr Index fetched_windows = 6;  // from a window to the one whose pixels are fetched into the cache meanwhile

// One row of `Factor`s for each output pixel. Images consist of `Number`s: floats, which are rounded to pairs if these are
// the factors, or pairs of bfloat16, which are copied; channels and `shape.in_step` then count pairs.
template <class Factor, class Number = float>
struct Im2col {
    const Window& shape;
    const Number* input;
    Gate gate{};
    const Number* zeros = nullptr;  // in_channels of them
    const Number* end = input + shape.batch * shape.y.size * shape.x.size * shape.in_step;
    Index taps = shape.y.taps * shape.x.taps, depth = taps * shape.in_channels;
    static constexpr Index per = values_per<Factor> / values_per<Number>;  // numbers of a factor
    Index steps = ceil_div(depth, per), chunks = ceil_div(steps, lanes);
    // Whether the pixels of one row of taps are contiguous.
    bool dense = shape.in_step == shape.in_channels && shape.x.dilation == 1;

    // Gathers rows `first` to `last` in the order (register tile, chunk of k, row of the tile, lane).
    void gather(Index first, Index last, Factor* to, Number* line) const {
        if (taps == 1 && shape.y.pad == 0 && shape.x.pad == 0) return gather_pixels(first, last, to);
        for_each_window(shape, input, first, last,
                        [&](Index index, const Number* image, Index y, Index x) __attribute__((always_inline)) {
            Factor* const row = to + (index / MR * chunks * MR + index % MR) * lanes;
            if (shape.in_channels % lanes == 0 || taps == 1)
                gather_channels(image, y, x, row);
            else
                gather_line(image, y, x, row, line);
        });
    }

  private:
    // The place of vector `number` of a row that begins at `row`.
    ALWAYS_INLINE static auto* place_of(Factor* row, Index number) {
        if constexpr (per == 1)
            return row + number * MR * lanes;
        else
            return element_address(row, number);
    }

    // For 1×1 kernels without padding.
    void gather_pixels(Index first, Index last, Factor* to) const {
        const Index width = shape.x.out_size, right = shape.x.stride * shape.in_step;
        const Index whole = shape.in_channels / lanes, rest = shape.in_channels % lanes;
        for (; first < last; first += MR, to += chunks * MR * lanes) {
            const Number* pixels[MR];
            const float* factors[MR];
            const Index count = min(MR, last - first);
            Index x = first % width, line = first / width;
            const Number* pixel = pixel_of(line) + x * right;
            const float* factor = factors_of(line);
            for (Index row = 0; row < count; ++row) {
                pixels[row] = pixel;
                factors[row] = factor;
                pixel += right;
                if (++x < width) continue;
                x = 0;
                pixel = pixel_of(++line);
                factor = factors_of(line);
            }
            const auto copy = [&](Index number, auto read) __attribute__((always_inline)) {
                const auto copy_row = [&](Index row) __attribute__((always_inline)) {
                    __builtin_prefetch(pixels[row] + number * lanes + MR * right);  // for the next register tile
                    auto values = read(pixels[row] + number * lanes);
                    if constexpr (std::is_same_v<Number, float>)
                        if (gate.factors) values *= read(factors[row] + number * lanes);
                    store(place_of(to + row * lanes, number), values);
                };
                if (count == MR)
#pragma GCC unroll 16
                    for (Index row = 0; row < MR; ++row) copy_row(row);
                else
                    for (Index row = 0; row < count; ++row) copy_row(row);
            };
            for (Index number = 0; number < whole; ++number)
                copy(number, [](const auto* from) __attribute__((always_inline)) { return load(from); });
            if (rest) copy(whole, [=](const auto* from) __attribute__((always_inline)) { return load_partial(from, rest); });
        }
    }

    const float* factors_of(Index line) const { return gate.factors + line / shape.y.out_size * gate.step; }

    // The first pixel that line `line` of outputs reads, counted through all images.
    const Number* pixel_of(Index line) const {
        const Index image = line / shape.y.out_size, y = line % shape.y.out_size * shape.y.stride;
        return input + (image * shape.y.size + y) * shape.x.size * shape.in_step;
    }

    // Whether the window that begins at pixel (y, x) lies in the image.
    bool contains(Index y, Index x) const {
        return y >= 0 && y + (shape.y.taps - 1) * shape.y.dilation < shape.y.size && x >= 0 &&
               x + (shape.x.taps - 1) * shape.x.dilation < shape.x.size;
    }

    // For whole vectors of channels in the image: each row of taps is contiguous.
    ALWAYS_INLINE void gather_rows(const Number* from, Index in_y, Index in_x, Factor* row) const {
        const Index of_row = shape.x.taps * shape.in_channels, down = shape.y.dilation * shape.x.size * shape.in_step;
        const Index ahead = fetched_windows * shape.x.stride * shape.in_step;
        from += (in_y * shape.x.size + in_x) * shape.in_step;
        Index number = 0;
        for (Index i = 0; i < shape.y.taps; ++i, from += down)
            for (Index k = 0; k < of_row; k += lanes) {
                __builtin_prefetch(from + k + ahead);
                store(place_of(row, number++), load(from + k));
            }
    }

    void gather_channels(const Number* from, Index in_y, Index in_x, Factor* row) const {
        if (dense && shape.in_channels % lanes == 0 && contains(in_y, in_x)) return gather_rows(from, in_y, in_x, row);
        const Index whole = shape.in_channels / lanes, rest = shape.in_channels % lanes;
        Index number = 0;
        for (Index i = 0; i < shape.y.taps; ++i)
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index y = in_y + i * shape.y.dilation, x = in_x + j * shape.x.dilation;
                const bool inside = y >= 0 && y < shape.y.size && x >= 0 && x < shape.x.size;
                const Number* pixel = inside ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index group = 0; group < whole; ++group) store(place_of(row, number++), load(pixel + group * lanes));
                if (rest) store(place_of(row, number), load_partial(pixel + whole * lanes, rest));
            }
    }

    // For channels that do not fill vectors: copied to `line` contiguously, then split. `line` has space for one more vector.
    void gather_line(const Number* from, Index in_y, Index in_x, Factor* row, Number* line) const {
        const Index channels = shape.in_channels, width = shape.x.taps * channels;
        Number* to = line;
        for (Index i = 0; i < shape.y.taps; ++i, to += width) {
            const Index y = in_y + i * shape.y.dilation;
            const bool inside = y >= 0 && y < shape.y.size;
            const Number* pixels = from + (y * shape.x.size + in_x) * shape.in_step;
            if (inside && dense && in_x >= 0 && in_x + shape.x.taps <= shape.x.size &&
                pixels + ceil_div(width, lanes) * lanes <= end) {
                for (Index k = 0; k < width; k += lanes) store(to + k, load(pixels + k));
                continue;
            }
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index x = in_x + j * shape.x.dilation;
                const bool there = inside && x >= 0 && x < shape.x.size;
                const Number* pixel = there ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index channel = 0; channel < channels; ++channel) to[j * channels + channel] = pixel[channel];
            }
        }
        line[depth] = {};  // the second number of the last pair
        for (Index number = 0; number * lanes < depth; ++number) store(place_of(row, number), load(line + number * lanes));
    }
};

}  // namespace svertka::INSTRUCTIONS
