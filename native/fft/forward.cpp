// FFT convolution; with adjoint weights, its input gradient.
//
// First, the tiles of the images are transformed. Then, for a few panels of output channels at a time, the rows of their
// kernels are transformed. The columns are transformed only when their frequency along x is multiplied, into memory that
// stays in a cache, because whole transformed kernels are many times as large as the weights. Finally, the tiles of the
// results are transformed back.
#include <omp.h>

#include "../scratch.h"
#include "weight_layout.h"
#include "complex_gemm.h"
#include "tile_transforms.h"

namespace svertka::INSTRUCTIONS::fft {
namespace {

// Number of inputs whose kernel columns are transformed and multiplied together.
constexpr Index KC = 32;

struct Pass {
    const Correlation& shape;
    Grid grid;
    Weights weights;
    TileSpectra inputs, products;
    TransformedRows rows;
    Places taps_y = grid.y.taps(), taps_x = grid.x.taps();
    float scale = 0.25f / static_cast<float>(grid.columns.size() * grid.rows.size());
    Index column_stride = KC * pair + pair;

    // Transforms the kernel rows from one group of inputs to panel `number` into panel `local` of `rows`.
    void transform_rows(Index number, Index local, Index group, float* strips, const Workspace& room) const {
        const Index first = group * lanes, last = min(first + lanes, weights.depth), size = weights.taps_x * lanes;
        Index place[max_length];
        taps_x.by_order(grid.rows.size(), lanes, place);
        for (Index row = 0; row < weights.taps_y; row += 2) {
            const Index next = min(row + 1, weights.taps_y - 1);
            float *const upper = strips, *const lower = strips + lanes * size;
            weights.read(number, first, last, row, scale, upper);
            weights.read(number, first, last, next, scale, lower);
            for (Index input = first; input < last; ++input)
                grid.rows.transform_two({upper + (input - first) * size, lower + (input - first) * size, place},
                                        rows.at(local, 0, input, row), rows.at(local, 0, input, next), rows.stride,
                                        room.lines);
        }
    }

    // Computes all products with one panel's kernels at the frequencies v along x.
    void multiply(Index number, Index local, Index v, Index tiles, float* columns, const Workspace& room) const {
        Index down[max_length], frequency[max_length];
        taps_y.by_order(grid.columns.size(), pair, down);
        for (Index u = 0; u < grid.columns.size(); ++u) frequency[u] = u * column_stride;
        for (Index first = 0; first < weights.depth; first += KC) {
            const Index depth = min(KC, weights.depth - first);
            for (Index input = 0; input < depth; ++input) {
                const float* from = rows.at(local, v, first + input, 0);
                for (Index line = 0; line < weights.taps_y * pair; line += 16)  // of the one after the next
                    __builtin_prefetch(from + 2 * weights.taps_y * pair + line);
                float* const to = columns + input * pair;
                grid.columns.transform({from, from + lanes, down}, {to, to + lanes, frequency}, room.lines);
            }
            for (Index u = 0; u < grid.columns.size(); ++u)
                for (Index tile = 0; tile < tiles; tile += inputs.height)
                    complex_product<pair, 1>(min(inputs.height, tiles - tile),
                                             inputs.at(v, u, tile, first / lanes), inputs.height * pair,
                                             columns + frequency[u], pair, products.at(v, u, tile, number), depth,
                                             first > 0);
        }
    }
};

}  // namespace

void forward(const Correlation& shape, const float* input, const float* weights, bool adjoint, float* output,
             int threads) {
    const Grid grid(shape);
    if (grid.count() == 0) return;
    const Index groups = ceil_div(shape.in_channels, lanes), panels = ceil_div(shape.out_channels, lanes);
    const Index block = grid.block, height = ceil_div(block, ceil_div(block, MR));
    // Number of panels at a time: as many as have kernel rows of 16 MiB, at least one.
    Pass pass{.shape = shape,
              .grid = grid,
              .weights = {weights, adjoint, shape.in_channels, shape.out_channels, shape.y.taps, shape.x.taps},
              .inputs = {nullptr, groups, height, grid.columns.size(), TileSpectra::size(block, groups, height)},
              .products = {nullptr, panels, height, grid.columns.size(), TileSpectra::size(block, panels, height)},
              .rows = {nullptr, shape.in_channels, shape.y.taps, grid.rows.frequencies()}};
    const Index of_rows = grid.rows.frequencies() * pass.rows.stride;
    const Index some = min(max((Index{1} << 22) / of_rows, 1), panels);

    const Index of_inputs = grid.frequencies() * pass.inputs.stride;
    const Index of_products = grid.frequencies() * pass.products.stride;
    const Index of_columns = grid.columns.size() * pass.column_stride, of_strips = 2 * lanes * lanes * shape.x.taps;
    const Index common = of_inputs + of_products + some * of_rows, own = max(of_columns, of_strips) + Workspace::size(grid);
    float* const memory = scratch(common + threads * own);
    pass.inputs.numbers = memory;
    pass.products.numbers = memory + of_inputs;
    pass.rows.numbers = memory + of_inputs + of_products;
    const Images<const float> from{input, shape.y.size, shape.x.size, shape.in_channels};
    const Images<float> to{output, shape.y.out_size, shape.x.out_size, shape.out_channels};

#pragma omp parallel num_threads(threads)
    {
        float* const mine = memory + common + omp_get_thread_num() * own;
        const Workspace room(mine + max(of_columns, of_strips), grid);
        for (Index start = 0; start < grid.count(); start += block) {
            const Index tiles = min(block, grid.count() - start);
#pragma omp for collapse(2) schedule(dynamic)
            for (Index index = 0; index < tiles; ++index)
                for (Index group = 0; group < groups; ++group) {
                    const Tile tile = grid[start + index];
                    transform_tile(grid, from, tile.image, grid.y.inputs(tile.y), grid.x.inputs(tile.x), group, room,
                           pass.inputs, index);
                }
            for (Index first = 0; first < panels; first += some) {
                const Index here = min(some, panels - first);
                if (start == 0 || some < panels) {
#pragma omp for collapse(2) schedule(dynamic)
                    for (Index local = 0; local < here; ++local)
                        for (Index group = 0; group < groups; ++group)
                            pass.transform_rows(first + local, local, group, mine, room);
                }
#pragma omp for collapse(2) schedule(dynamic)
                for (Index v = 0; v < grid.rows.frequencies(); ++v)
                    for (Index local = 0; local < here; ++local)
                        pass.multiply(first + local, local, v, tiles, mine, room);
            }
#pragma omp for collapse(2) schedule(dynamic)
            for (Index index = 0; index < tiles; ++index)
                for (Index panel = 0; panel < panels; ++panel)
                    inverse_transform_tile(grid, pass.products, index, grid[start + index], panel, room, to);
        }
    }
}

}  // namespace svertka::INSTRUCTIONS::fft
