// The weight gradient: at each frequency, the product of the spectra of images and gradient, summed over tiles.
#include <omp.h>

#include "../scratch.h"
#include "weight_layout.h"
#include "complex_gemm.h"
#include "tile_transforms.h"

namespace svertka::INSTRUCTIONS::fft {
namespace {

constexpr int height = lanes < 16 ? 4 : 8;  // height of the register block, a divisor of `lanes`

struct Pass {
    const Correlation& shape;
    Grid grid;
    TileSpectra inputs, gradients;
    TransformedRows rows;  // from the inputs in a panel to all outputs
    float* result;
    Places taps_y = grid.y.taps(), taps_x = grid.x.taps();
    float scale = 0.25f / static_cast<float>(grid.columns.size() * grid.rows.size());
    Index column_stride = lanes * pair + pair;

    // Computes the columns at the frequencies v along x, for one group of outputs and the inputs of panel `number`.
    void multiply(Index number, Index local, Index group, Index v, Index tiles, float* columns,
                  const Workspace& room) const {
        Index down[max_length], frequency[max_length];
        taps_y.by_order(grid.columns.size(), pair, down);
        for (Index u = 0; u < grid.columns.size(); ++u) {
            frequency[u] = u * column_stride;
            for (Index output = 0; output < lanes; output += height)
                complex_block<height, 1, pair, true>(gradients.at(v, u, 0, group) + output, lanes * pair,
                                               inputs.at(v, u, 0, number), pair,
                                               columns + frequency[u] + output * pair, tiles, false);
        }
        const Index first = group * lanes, last = min(first + lanes, shape.out_channels);
        for (Index output = first; output < last; ++output) {
            const float* from = columns + (output - first) * pair;
            float* const to = rows.at(local, v, output, 0);
            grid.columns.back({from, from + lanes, frequency}, {to, to + lanes, down}, room.lines);
        }
    }

    // Computes the weights from the inputs of panel `number` to one output; with `onto`, adds to them.
    void inverse_transform(Index number, Index local, Index output, bool onto, const Workspace& room) const {
        const Index count = min(lanes, shape.in_channels - number * lanes);
        Index place[max_length];
        taps_x.by_order(grid.rows.size(), lanes, place);
        for (Index row = 0; row < shape.y.taps; row += 2) {
            const Index both[] = {row, min(row + 1, shape.y.taps - 1)};
            float* const strips[] = {room.strips, room.strips + Workspace::of_strip};
            grid.rows.back_two(rows.at(local, 0, output, both[0]), rows.at(local, 0, output, both[1]), rows.stride,
                               {strips[0], strips[1], place}, room.lines);
            for (Index i = 0; i < 1 + (both[1] > row); ++i)
                for (Index tap = 0; tap < shape.x.taps; ++tap) {
                    const Vector sum = scale * load(strips[i] + tap * lanes);
                    float* const to = result +
                                      ((output * shape.y.taps + both[i]) * shape.x.taps + tap) * shape.in_channels +
                                      number * lanes;
                    if (count == lanes)
                        store(to, onto ? load(to) + sum : sum);
                    else
                        store_partial(to, onto ? load_partial(to, count) + sum : sum, count);
                }
        }
    }
};

}  // namespace

void weight_gradient(const Correlation& shape, const float* gradient, const float* input, float* result, int threads) {
    const Grid grid(shape);
    const Index panels = ceil_div(shape.in_channels, lanes), groups = ceil_div(shape.out_channels, lanes);
    if (grid.count() == 0) {
        __builtin_memset(result, 0,
                         shape.out_channels * shape.y.taps * shape.x.taps * shape.in_channels * sizeof(float));
        return;
    }
    const Index block = grid.block;
    Pass pass{.shape = shape,
              .grid = grid,
              .inputs = {nullptr, panels, block, grid.columns.size(), TileSpectra::size(block, panels, block)},
              .gradients = {nullptr, groups, block, grid.columns.size(), TileSpectra::size(block, groups, block)},
              .rows = {nullptr, shape.out_channels, shape.y.taps, grid.rows.frequencies()},
              .result = result};
    const Index of_rows = grid.rows.frequencies() * pass.rows.stride;
    const Index some = min(max((Index{1} << 22) / of_rows, 1), panels);

    const Index of_inputs = grid.frequencies() * pass.inputs.stride;
    const Index of_gradients = grid.frequencies() * pass.gradients.stride;
    const Index of_columns = grid.columns.size() * pass.column_stride;
    const Index common = of_inputs + of_gradients + some * of_rows, own = of_columns + Workspace::size(grid);
    float* const memory = scratch(common + threads * own);
    pass.inputs.numbers = memory;
    pass.gradients.numbers = memory + of_inputs;
    pass.rows.numbers = memory + of_inputs + of_gradients;
    const Images<const float> inputs{input, shape.y.size, shape.x.size, shape.in_channels};
    const Images<const float> gradients{gradient, shape.y.out_size, shape.x.out_size, shape.out_channels};

#pragma omp parallel num_threads(threads)
    {
        float* const mine = memory + common + omp_get_thread_num() * own;
        const Workspace room(mine + of_columns, grid);
        for (Index start = 0; start < grid.count(); start += block) {
            const Index tiles = min(block, grid.count() - start);
#pragma omp for collapse(2) schedule(dynamic)
            for (Index index = 0; index < tiles; ++index)
                for (Index group = 0; group < panels + groups; ++group) {
                    const Tile tile = grid[start + index];
                    if (group < panels)
                        transform_tile(grid, inputs, tile.image, grid.y.inputs(tile.y), grid.x.inputs(tile.x), group, room,
                               pass.inputs, index);
                    else
                        transform_tile(grid, gradients, tile.image, grid.y.outputs(tile.y), grid.x.outputs(tile.x),
                               group - panels, room, pass.gradients, index);
                }
            for (Index first = 0; first < panels; first += some) {
                const Index here = min(some, panels - first);
#pragma omp for collapse(3) schedule(dynamic)
                for (Index v = 0; v < grid.rows.frequencies(); ++v)
                    for (Index local = 0; local < here; ++local)
                        for (Index group = 0; group < groups; ++group)
                            pass.multiply(first + local, local, group, v, tiles, mine, room);
#pragma omp for collapse(2) schedule(dynamic, 8)
                for (Index local = 0; local < here; ++local)
                    for (Index output = 0; output < shape.out_channels; ++output)
                        pass.inverse_transform(first + local, local, output, start > 0, room);
            }
        }
    }
}

}  // namespace svertka::INSTRUCTIONS::fft
