// Products of blocks of transformed tiles with panels of transformed weights, and the division of the work among threads.
#pragma once

#include <omp.h>

#include "../gemm.h"
#include "../scratch.h"
#include "tiles.h"

namespace svertka::INSTRUCTIONS {

// KC: factors accumulated in registers before the sum is added to memory. This reduces the error at 256 channels of 28×28
// pixels from 1.44e-6 of the results' root mean square to 8.1e-7 and takes 2 % of the time. Sums of integers have 32 bits
// for this many.
constexpr Index KC = 64;

// Whether weights are transformed panel by panel, and the sizes of blocks.
// If `shared`, blocks of tiles are processed one after another; each thread takes panels of a block and transforms their
// weights when it needs them, `depth` inputs at a time, so that they stay in its cache. Transformed weights have four times
// as many numbers, and reading them from memory takes longer than transforming them again. Otherwise all weights are
// transformed first, which is faster if many tiles use them, and each thread takes blocks.
struct Plan {
    bool shared;
    Index block, depth;

    // `several`: number of inputs in a factor. `frequencies`: products of a tile.
    Plan(Index in_channels, Index out_channels, Index several, Index tiles, Index frequencies, int threads) {
        const Index panels = ceil_div(out_channels, NR), weights = frequencies * in_channels * panels * NR;
        // Tiles of six outputs have 64 products: fewer of them, and the weights of fewer inputs, fit in the second cache.
        const bool large = frequencies > 36;
        const bool fits = weights <= several << 24;  // 64 MiB
        shared = !fits || (tiles <= (large ? 72 : 128) && panels >= threads);
        const Index most = large && weights <= several << 23 ? 14 : 28;
        const Index wanted = shared ? 128 : max(min(most, ceil_div(tiles, 8 * threads)), 1);
        block = ceil_div(ceil_div(tiles, max(ceil_div(tiles, wanted), 1)), MR) * MR;
        depth = shared ? min(in_channels, several * KC) : in_channels;
    }
};

// `Factor`s are multiplied: floats or pairs of inputs.
template <class Factor, int outputs>
struct TileBlocks {
    static constexpr Index several = values_per<Factor>, frequencies = Tiles<outputs>::frequencies;

    Index in_channels, out_channels;
    Tiles<outputs> tiles;
    Plan plan;
    Index block = plan.block, depth = plan.depth;  // tiles, and input channels whose weights are transformed at a time
    Index groups = ceil_div(in_channels, several * lanes), panels = ceil_div(out_channels, NR);
    // Distance between frequencies: in factors for the tiles and a panel's weights, in floats for a panel's products.
    Index tile_stride = ceil_div(block, MR) * MR * groups * lanes + lanes;
    Index weight_stride = ceil_div(depth, several) * NR + lanes;
    Index product_stride = block * NR + lanes;

    // Where tile `index` of its block begins: (frequency, register block, group of channels, row of the block, lane).
    Factor* row_of(Index index, Factor* to) const { return to + (index / MR * groups * MR + index % MR) * lanes; }

    // Computes the products of a block and the weights of panel `number` for inputs `first` to `last`. The second vector
    // of a panel without so many outputs is left out.
    void multiply(Range here, const Factor* transformed_tiles, const Factor* transformed_weights, Index number, Index first,
                  Index last, float* products) const {
        if (out_channels - number * NR > lanes)
            multiply_vectors<2>(here, transformed_tiles, transformed_weights, first, last, products);
        else
            multiply_vectors<1>(here, transformed_tiles, transformed_weights, first, last, products);
    }

    template <int vectors>
    void multiply_vectors(Range here, const Factor* transformed_tiles, const Factor* transformed_weights, Index first,
                          Index last, float* products) const {
        const Index begin = first / several, end = ceil_div(last, several);
        for (Index frequency = 0; frequency < frequencies; ++frequency) {
            const Factor* a = transformed_tiles + frequency * tile_stride;
            const Factor* b = transformed_weights + frequency * weight_stride;
            float* c = products + frequency * product_stride;
            const Range needed = tiles.needing(frequency, here);
            for (Index input = begin; input < end; input += KC, b += KC * NR)
                for (Index tile = needed.first, next; tile < needed.last; tile = next) {
                    next = min((tile / MR + 1) * MR, needed.last);
                    product<lanes, 1, vectors>(next - tile,
                                      a + (tile / MR * groups * MR + tile % MR) * lanes + input * MR,
                                      MR * lanes, b, NR, lanes, c + tile * NR, min(KC, end - input),
                                      input > 0);
                }
        }
    }
};

// Computes a pass, whose member `blocks` are TileBlocks, with its functions
//     set_padding(memory)                            that fills `of_padding` floats which it reads outside of images,
//     transform_input(tile, index, to)               of tile `index` of a block,
//     transform_weights(panel, first, last, room, to)  for inputs `first` to `last`, with `of_room` floats of room,
//     store_tile(tile, products, panel), and
//     fetch_residual(tile, panel)                    that fetches what store_tile adds into the cache.
template <class Pass>
void compute_blocks(Pass& pass, Index of_padding, Index of_room, int threads) {
    const auto& blocks = pass.blocks;
    using Factor = std::remove_pointer_t<decltype(blocks.row_of(0, nullptr))>;
    const auto& tiles = blocks.tiles;
    constexpr Index frequencies = tiles.frequencies;
    const bool shared = blocks.plan.shared;

    const auto store_block = [&](Range here, const float* products, Index number) {
        Tile tile = tiles[here.first];
        for (Index index = here.first; index < here.last; ++index) {
            const Tile next = index + 1 < here.last ? tiles[index + 1] : tile;
            pass.fetch_residual(next, number);
            pass.store_tile(tile, products + (index - here.first) * NR, number);
            tile = next;
        }
    };

    // Sizes of the parts of the scratch memory, in floats or factors; shared parts come before those of each thread.
    const Index of_tiles = frequencies * blocks.tile_stride, of_weights = frequencies * blocks.weight_stride;
    const Index of_products = frequencies * blocks.product_stride;
    const Index common = of_padding + (shared ? of_tiles : blocks.panels * of_weights);
    const Index own = of_room + of_products + (shared ? of_weights : of_tiles);
    float* const memory = scratch(common + threads * own);
    pass.set_padding(memory);

    const auto factors = [](float* some) { return reinterpret_cast<Factor*>(some); };

#pragma omp parallel num_threads(threads)
    {
        float* const room = memory + common + omp_get_thread_num() * own;
        float *const products = room + of_room, *const rest = products + of_products;
        if (shared) {
            const auto transformed_tiles = factors(memory + of_padding), transformed_weights = factors(rest);
            for (Index start = 0; start < tiles.count(); start += blocks.block) {
                const Range here{start, min(start + blocks.block, tiles.count())};
#pragma omp for schedule(static)
                for (Index index = here.first; index < here.last; ++index)
                    pass.transform_input(tiles[index], index - start, transformed_tiles);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < blocks.panels; ++number) {
                    for (Index first = 0, last; first < blocks.in_channels; first = last) {
                        last = min(first + blocks.depth, blocks.in_channels);
                        pass.transform_weights(number, first, last, room, transformed_weights);
                        blocks.multiply(here, transformed_tiles, transformed_weights, number, first, last, products);
                    }
                    store_block(here, products, number);
                }
            }
        } else {
            const auto transformed_weights = factors(memory + of_padding), transformed_tiles = factors(rest);
#pragma omp for schedule(static)
            for (Index number = 0; number < blocks.panels; ++number)
                pass.transform_weights(number, 0, blocks.depth, room, transformed_weights + number * of_weights);
#pragma omp for schedule(dynamic)
            for (Index start = 0; start < tiles.count(); start += blocks.block) {
                const Range here{start, min(start + blocks.block, tiles.count())};
                for (Index index = here.first; index < here.last; ++index)
                    pass.transform_input(tiles[index], index - start, transformed_tiles);
                for (Index number = 0; number < blocks.panels; ++number) {
                    blocks.multiply(here, transformed_tiles, transformed_weights + number * of_weights, number, 0,
                                    blocks.depth, products);
                    store_block(here, products, number);
                }
            }
        }
        store_fence();
    }
}

}  // namespace svertka::INSTRUCTIONS
