// The transforms of tiles of channels-last images to and from the frequency domain.
#pragma once

#include "grid.h"

namespace svertka::INSTRUCTIONS::fft {

// Numbers for each frequency (v along x, u along y), tile and channel. Those of one frequency are in the order (block of
// `height` tiles, group of channels, tile, complex vector), in which a register block of a product reads them.
struct TileSpectra {
    float* numbers;
    Index groups, height, columns;  // `columns`: frequencies along y
    Index stride;                   // distance between frequencies, in floats

    static Index size(Index tiles, Index groups, Index height) {  // floats per frequency
        return ceil_div(tiles, height) * height * groups * pair + pair;  // not a multiple of a page, which would cause cache conflicts
    }
    float* at(Index v, Index u, Index tile, Index group) const {
        return numbers + (v * columns + u) * stride +
               ((tile / height * groups + group) * height + tile % height) * pair;
    }
};

// Scratch memory of each thread: a tile's transformed rows and a few lines.
struct Workspace {
    static constexpr Index of_lines = 2 * max_length * pair, of_strip = max_length * lanes;

    float *lines, *strips, *middle;
    Index stride;  // distance between frequencies along x, in floats

    Workspace(float* from, const Grid& grid)
        : lines(from), strips(lines + of_lines), middle(strips + 2 * of_strip), stride(grid.columns.size() * pair + pair) {}
    static Index size(const Grid& grid) {
        return of_lines + 2 * of_strip + grid.rows.frequencies() * (grid.columns.size() + 1) * pair;
    }
};

template <class Pixel>
struct Images {
    Pixel* pixels;  // (image, height, width, channels)
    Index height, width, channels;

    Pixel* row(Index image, Index y, Index group) const {
        return pixels + (image * height + y) * width * channels + group * lanes;
    }
};

// Transforms the pixels of `rows` and `columns`, channels from `lanes` · group on, and stores twice the transform as
// number `index` of `to`.
inline void transform_tile(const Grid& grid, const Images<const float>& from, Index image, const Places& rows,
                   const Places& columns, Index group, const Workspace& room, const TileSpectra& to, Index index) {
    const Index count = from.channels - group * lanes;  // channels left
    Index place[max_length];
    if (count < lanes)
        columns.by_order(grid.rows.size(), lanes, place);
    else
        columns.by_index(grid.rows.size(), from.channels, place);
    for (Index m = 0; m < rows.count; m += 2) {
        const Index both[] = {m, min(m + 1, rows.count - 1)};  // the last one may be its own neighbor
        const float* row[2];
        for (int i = 0; i < 2; ++i) {
            row[i] = from.row(image, rows.index[both[i]], group);
            if (count >= lanes) continue;
            float* const strip = room.strips + i * Workspace::of_strip;
            for (Index k = 0; k < columns.count; ++k)
                store(strip + k * lanes, load_partial(row[i] + columns.index[k] * from.channels, count));
            row[i] = strip;
        }
        grid.rows.transform_two({row[0], row[1], place}, room.middle + both[0] * pair, room.middle + both[1] * pair,
                                room.stride, room.lines);
    }
    Index down[max_length], frequency[max_length];
    rows.by_order(grid.columns.size(), pair, down);
    for (Index u = 0; u < grid.columns.size(); ++u) frequency[u] = u * to.stride;
    for (Index v = 0; v < grid.rows.frequencies(); ++v) {
        const float* line = room.middle + v * room.stride;
        float* const place_of = to.at(v, 0, index, group);
        grid.columns.transform({line, line + lanes, down}, {place_of, place_of + lanes, frequency}, room.lines);
    }
}

// Computes the outputs of one tile, times the circles' sizes, from number `index` of `from`.
inline void inverse_transform_tile(const Grid& grid, const TileSpectra& from, Index index, Tile tile, Index group, const Workspace& room,
                   const Images<float>& to) {
    const Places rows = grid.y.outputs(tile.y), columns = grid.x.outputs(tile.x);
    Index down[max_length], frequency[max_length];
    rows.by_order(grid.columns.size(), pair, down);
    for (Index u = 0; u < grid.columns.size(); ++u) frequency[u] = u * from.stride;
    for (Index v = 0; v < grid.rows.frequencies(); ++v) {
        const float* place_of = from.at(v, 0, index, group);
        float* const line = room.middle + v * room.stride;
        for (Index u = 0; u < grid.columns.size(); ++u)  // the next one
            for (Index part = 0; part < pair; part += 16)
                __builtin_prefetch(place_of + (grid.columns.size() + u) * from.stride + part);
        grid.columns.back({place_of, place_of + lanes, frequency}, {line, line + lanes, down}, room.lines);
    }
    const Index count = to.channels - group * lanes;
    Index place[max_length];
    if (count < lanes)
        columns.by_order(grid.rows.size(), lanes, place);
    else
        columns.by_index(grid.rows.size(), to.channels, place);
    for (Index m = 0; m < rows.count; m += 2) {
        const Index both[] = {m, min(m + 1, rows.count - 1)};
        float *row[2], *target[2];
        for (int i = 0; i < 2; ++i) {
            row[i] = to.row(tile.image, rows.index[both[i]], group);
            target[i] = count < lanes ? room.strips + i * Workspace::of_strip : row[i];
        }
        grid.rows.back_two(room.middle + both[0] * pair, room.middle + both[1] * pair, room.stride,
                           {target[0], target[1], place}, room.lines);
        if (count >= lanes) continue;
        for (int i = 0; i < 2; ++i)
            for (Index k = 0; k < columns.count; ++k)
                store_partial(row[i] + columns.index[k] * to.channels, load(target[i] + k * lanes), count);
    }
}

}  // namespace svertka::INSTRUCTIONS::fft
