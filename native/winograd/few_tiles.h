// Convolution of a few tiles by F(4×4, 3×3): weights are transformed in registers.
//
// If few tiles use transformed weights, storing and reading them takes longer than the products. Here, a row of
// frequencies of the weights is computed from the taps for one input at a time, multiplied with all tiles and dropped.
// The taps are read again for each of the six rows, from the L1 or L2 cache.
#pragma once

#include "../gemm.h"
#include "../scratch.h"
#include "tile_blocks.h"
#include "weight_packing.h"

namespace svertka::INSTRUCTIONS {

// Tiles of a group: 24 of the 32 registers of AVX-512 hold the sums of six frequencies of four tiles.
constexpr Index tile_group = 4;
#if defined(__AVX512F__)
constexpr Index few_tiles = 2 * tile_group;  // the weights of more tiles are transformed once and stored
#else
constexpr Index few_tiles = 0;
#endif

// Weights are transformed without the divisors of G, which are applied to the sums of products.
struct RowConstants {
    static constexpr int points = winograd::Points<4>::count, infinity = points - 1;

    float point[2], square[2];     // the positive points
    float scale[points][points];  // of each frequency

    constexpr RowConstants() : point{}, square{}, scale{} {
        for (int pair = 0; pair < 2; ++pair) {
            const winograd::Fraction positive = winograd::accurate<4>.finite[1 + 2 * pair];
            point[pair] = static_cast<float>(positive);
            square[pair] = static_cast<float>(positive * positive);
        }
        for (int i = 0; i < points; ++i)
            for (int j = 0; j < points; ++j) scale[i][j] = static_cast<float>(leading(i) * leading(j));
    }

  private:
    // The first number of a row of G that is not zero.
    static constexpr winograd::Fraction leading(int row) {
        return winograd::weight_matrix<4>.at[row][row == infinity ? winograd::taps - 1 : 0];
    }
};
constexpr RowConstants row_constants;

// One row of frequencies of a group of tiles. Transformed tiles are (frequency, block of KC inputs, tile, input).
struct FrequencyRow {
    int number;
    const float* tiles;
    Index tile_stride;  // between frequencies
    float* products;
    Index product_stride;     // between frequencies
    Index first, last_first;  // of the tiles that are multiplied at the finite points and at ∞
};

// Multiplies a row of frequencies with the weights of up to KC inputs for one vector of outputs, and stores the sums or
// adds them. `finite`: whether the row's point is neither 0 nor ∞. `count`: tiles that are multiplied at the finite
// points, `last_count`: at ∞.
template <bool finite, int count, int last_count>
[[gnu::noinline]] void multiply_row(const FrequencyRow& given, const float* weights, Index inputs, bool add) {
    constexpr int infinity = row_constants.infinity;
    const FrequencyRow row = given;  // a copy: stores of vectors could change the original
    const Index stride = row.tile_stride;
    const int pair = (row.number - 1) / 2 % 2;
    const float (&point)[2] = row_constants.point, (&square)[2] = row_constants.square;
    const float own = row.number % 2 ? point[pair] : -point[pair];
    const float constants[] = {point[0], square[0], point[1], square[1], own, square[pair]};
    const float* at = constants;
    const float *tiles = row.tiles + row.first * KC, *last_tiles = row.tiles + infinity * stride + row.last_first * KC;
    // Of the taps of the next block, each row fetches one or two.
    const float* fetched = weights + KC * taps * NR + row.number * NR;
    const Index other_tap = min(row_constants.points, taps - 1 - row.number) * NR;
    weights += row.number == infinity ? 6 * NR : 0;
    Vector sums[infinity][count] = {}, last_sums[max(last_count, 1)] = {};
    for (Index input = 0; input < inputs; ++input, weights += taps * NR, fetched += taps * NR, ++tiles, ++last_tiles) {
        asm volatile("" : "+r"(at));  // constants are read from memory, as they do not fit into the registers
        __builtin_prefetch(fetched, 0, 2);
        __builtin_prefetch(fetched + other_tap, 0, 2);
        // One line of the tiles for the next `lanes` inputs, and one for the last two frequencies.
        const float* next = tiles + lanes + (input & (tile_group - 1)) * KC;
        __builtin_prefetch(next + (input >> 2 & 3) * stride);
        __builtin_prefetch(next + (4 + (input >> 2 & 1)) * stride);
        Vector middle[winograd::taps];
#pragma GCC unroll 3
        for (int column = 0; column < winograd::taps; ++column) {
            const float* from = weights + column * NR;
            middle[column] = load(from);
            if constexpr (finite)
                middle[column] = at[5] * load(from + 6 * NR) + middle[column] + at[4] * load(from + 3 * NR);
        }
        const auto multiply = [&](int column, Vector factors) __attribute__((always_inline)) {
            const float* from = tiles + column * stride;
#pragma GCC unroll 4
            for (int tile = 0; tile < count; ++tile) sums[column][tile] += from[tile * KC] * factors;
        };
        multiply(0, middle[0]);
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair) {
            const Vector even = middle[0] + at[2 * pair + 1] * middle[2];
            Vector odd = at[2 * pair] * middle[1];
            asm("" : "+v"(odd));  // not multiplied twice: only sums have free units
            multiply(1 + 2 * pair, even + odd);
            multiply(2 + 2 * pair, even - odd);
        }
#pragma GCC unroll 4
        for (int tile = 0; tile < last_count; ++tile) last_sums[tile] += last_tiles[tile * KC] * middle[2];
    }
    const auto keep = [&](auto finish) __attribute__((always_inline)) {
        const auto keep_sum = [&](Vector sum, int column, Index tile) __attribute__((always_inline)) {
            float* to = row.products + column * row.product_stride + tile * NR;
            store(to, finish(sum * row_constants.scale[row.number][column], to));
        };
#pragma GCC unroll 5
        for (int column = 0; column < infinity; ++column)
#pragma GCC unroll 4
            for (int tile = 0; tile < count; ++tile) keep_sum(sums[column][tile], column, row.first + tile);
#pragma GCC unroll 4
        for (int tile = 0; tile < last_count; ++tile) keep_sum(last_sums[tile], infinity, row.last_first + tile);
    };
    if (add)
        keep([](Vector sum, const float* to) __attribute__((always_inline)) { return load(to) + sum; });
    else
        keep([](Vector sum, const float*) __attribute__((always_inline)) { return sum; });
}

// Calls function(number) with 0, 1, 2 or 4, the smallest that is not below `count`, as a compile-time constant.
template <class Function>
ALWAYS_INLINE void round_up(Index count, Function function) {
    if (count > 2) return function(std::integral_constant<int, 4>{});
    if (count > 1) return function(std::integral_constant<int, 2>{});
    count ? function(std::integral_constant<int, 1>{}) : function(std::integral_constant<int, 0>{});
}

// The product of a row of frequencies for the tiles of a group that need it.
struct RowProduct {
    void (*multiply)(const FrequencyRow&, const float* weights, Index inputs, bool add) = nullptr;  // null: no tiles
    Index first = 0, last_first = 0;

    RowProduct() = default;

    RowProduct(const Tiles<4>& tiles, int row, Range group) {
        const Range needed = tiles.needing(row * row_constants.points, group);
        const Range last = tiles.needing(row * row_constants.points + row_constants.infinity, group);
        round_up(needed.last - needed.first, [&](auto count) {
            round_up(last.last - last.first, [&](auto last_count) {
                if constexpr (count > 0 && last_count <= count) {
                    first = min(needed.first, tile_group - count);
                    last_first = min(last.first, tile_group - last_count);
                    const bool finite = row > 0 && row < row_constants.infinity;
                    multiply = finite ? multiply_row<true, count, last_count> : multiply_row<false, count, last_count>;
                }
            });
        });
    }
};

// Computes a pass whose member `blocks` are TileBlocks<float, 4> of at most few_tiles tiles, like compute_blocks.
template <class Pass>
void compute_few_tiles(Pass& pass, Index of_padding, int threads) {
    constexpr int points = row_constants.points, infinity = row_constants.infinity;
    const auto& blocks = pass.blocks;
    const auto& tiles = blocks.tiles;
    const Index count = tiles.count(), inputs = blocks.in_channels;
    const Index of_group = ceil_div(inputs, KC) * KC * tile_group;  // of one frequency
    const Index tile_stride = ceil_div(count, tile_group) * of_group + lanes;
    const Index of_tiles = tiles.frequencies * tile_stride, of_room = KC * taps * NR;
    const Index own = of_room + tiles.frequencies * blocks.product_stride;
    float* const memory = scratch(of_padding + of_tiles + threads * own);
    pass.set_padding(memory);
    float* const transformed = memory + of_padding;
    RowProduct row_products[few_tiles / tile_group][points];
    for (Index index = 0; index < count; index += tile_group)
        for (int row = 0; row < points; ++row)
            row_products[index / tile_group][row] = {tiles, row, {index, min(index + tile_group, count)}};

#pragma omp parallel num_threads(threads)
    {
        float* const room = transformed + of_tiles + omp_get_thread_num() * own;
        float* const products = room + of_room;
#pragma omp for schedule(static)
        for (Index index = 0; index < count; ++index) {
            float* const to = transformed + index / tile_group * of_group + index % tile_group * KC;
            pass.transform_tile_to(tiles[index], tile_stride, [=](Index group) {
                const Index input = group * lanes;
                return to + input / KC * KC * tile_group + input % KC;
            });
        }
#pragma omp for schedule(dynamic)
        for (Index number = 0; number < blocks.panels; ++number) {
            const Index outputs = min(NR, blocks.out_channels - number * NR);
            for (Index first = 0, last; first < inputs; first = last) {
                last = min(first + KC, inputs);
                const float* const weights = pass.weights.packed(number, first, last, room);
                for (Index start = 0; start < count; start += tile_group) {
                    const float* const from = transformed + start / tile_group * of_group + first * tile_group;
                    for (Index half = 0; half < outputs; half += lanes)
                        for (int row = 0; row < points; ++row) {
                            const RowProduct& product = row_products[start / tile_group][row];
                            if (!product.multiply) continue;
                            float* const sums = products + row * points * blocks.product_stride + start * NR + half;
                            product.multiply({row, from + row * points * tile_stride, tile_stride, sums,
                                              blocks.product_stride, product.first, product.last_first},
                                             weights + half, last - first, first > 0);
                        }
                }
            }
            for (Index index = 0; index < count; ++index) pass.fetch_residual(tiles[index], number);
            for (Index index = 0; index < count; ++index) pass.store_tile(tiles[index], products + index * NR, number);
        }
        store_fence();
    }
}

}  // namespace svertka::INSTRUCTIONS
