// The input transform of tiles of channels-last images.
#pragma once

#include "../bf16_pairs.h"
#include "tiles.h"
#include "transforms.h"

namespace svertka::INSTRUCTIONS {

template <class Number>
struct Images {
    const Number* pixels;  // (image, height, width, channels)
    Index height, width, channels;
    const Number* zeros;  // `channels` zeros, used as pixels outside the image
    Index step;           // distance between pixels, in numbers
};

// One element of a pair; storing the first sets the second to zero.
struct First {
    Pair pair;
};
struct Second {
    Pair pair;
};

ALWAYS_INLINE void store(First* to, Vector vector) { store(&to->pair, factor_bits(vector)); }
ALWAYS_INLINE void store(Second* to, Vector vector) { store(&to->pair, load(&to->pair) | factor_bits(vector) << 16); }

// The addresses of the pixels of the tile that begins at pixel (y, x); `zeros` for those outside the image, and behind
// `height` rows or `width` columns of the tile.
template <int size, class Number>
void locate_pixels(const Images<Number>& from, Index image, Index y, Index x, Index height, Index width,
                   const Number* (&pixel)[size][size]) {
    for (Index i = 0; i < size; ++i)
        for (Index j = 0; j < size; ++j) {
            const bool inside = i < height && j < width && y + i >= 0 && y + i < from.height && x + j >= 0 &&
                                x + j < from.width;
            pixel[i][j] = inside ? from.pixels + ((image * from.height + y + i) * from.width + x + j) * from.step
                                 : from.zeros;
        }
}

// Transforms the tile that begins at pixel (y, x), with as many rows and columns as the matrix has columns. For the
// channels from `lanes` · group on, number `frequency` is stored at place(group) + frequency · stride. Pixels outside the
// image, and those behind `height` rows or `width` columns of the tile, count as zero. `ahead`: distance to the tile whose
// pixels are prefetched, in pixels; in large maps, the tile after the next is in the same rows.
template <const auto& matrix, class Number, class Place>
void transform_tile(const Images<Number>& from, Index image, Index y, Index x, Index height, Index width, Index stride,
                 Place place, Index ahead = 2 * (matrix.rows - winograd::taps + 1)) {
    constexpr int size = matrix.columns, outputs = matrix.rows - winograd::taps + 1;
    const Number* pixel[size][size];
    locate_pixels(from, image, y, x, height, width, pixel);
    const Index groups = ceil_div(from.channels, lanes), rest = from.channels % lanes;
    for (Index group = 0; group < groups; ++group) {
        // Prefetches the pixels of the tile after the next. Without it, the transform waits for memory, and passes over large
        // images take 10 % to 25 % longer.
        for (Index i = 0; i < size; ++i)
            for (Index j = 0; j < outputs; ++j)
                __builtin_prefetch(pixel[i][j] + group * lanes + ahead * from.step, 0, 2);
        auto* const to = place(group);
        const auto keep = [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
            store(to + (i * matrix.rows + j) * stride, vector);
        };
        if (rest && group == groups - 1)
            transform<matrix>([&](auto i, auto j) { return load_partial(pixel[i][j] + group * lanes, rest); }, keep);
        else
            transform<matrix>([&](auto i, auto j) __attribute__((always_inline)) {
                return load(pixel[i][j] + group * lanes); }, keep);
    }
}

}  // namespace svertka::INSTRUCTIONS
