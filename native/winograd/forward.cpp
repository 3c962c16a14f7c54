// The convolution, and with adjoint weights its input gradient: F(4×4, 3×3).
//
// Tiles are taken in blocks across the whole batch. A block's tiles are transformed; then, for one panel of output
// channels after another, come the 36 products with the panel's transformed weights and the inverse transform, so that
// between them everything stays in a cache.
#include <omp.h>

#include "../ending.h"
#include "../gemm.h"
#include "../scratch.h"
#include "spread.h"
#include "weights.h"
#include "winograd.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Factors that are summed up before their sum is added to that of others: the error of long sums, at 256 channels of
// 28×28 pixels 1.44e-6 of the results' root mean square, falls to 8.1e-7, for 2 % of the time.
constexpr Index portion = 64;

// One call: its tensors and sizes, and the steps of which it is made. Pictures are made of `Number`s; what is multiplied
// are `Factor`s, floats or pairs of inputs.
template <class Number, class Factor>
struct Pass {
    const Convolution& shape;
    const Finish& finish;
    Weights weights;
    Number* output;
    Tiles tiles;
    Pictures<Number> input;
    Index block;  // tiles
    Index depth;  // input channels whose weights lie transformed at a time
    bool away;    // outputs are too many to stay in a cache, and each panel's fill its lines
    static constexpr Index several = numbers_in<Factor>;
    Index groups = parts(shape.in_channels, several * lanes), panels = parts(shape.out_channels, panel);
    // Factors from one frequency to the next of the tiles and a panel's weights, floats of a panel's products.
    Index tile_stride = parts(block, rows) * rows * groups * lanes + lanes;
    Index weight_stride = parts(depth, several) * panel + lanes;
    Index product_stride = block * panel + lanes;

    // Tile `index` of its block, to (frequency, register block, group of channels, row of the register block, lane).
    void spread(const Tile& tile, Index index, Factor* to) const {
        to += (index / rows * groups * rows + index % rows) * lanes;
        spread_tile<winograd::data_matrix>(input, tile.picture, tile.y - shape.pad_y, tile.x - shape.pad_x,
                                           winograd::points, winograd::points, several * tile_stride,
                                           [=](Index group) { return place_in(to, group); });
    }

    // Inputs first to last of one panel, to (frequency, input, output in its panel); `room` is for depth · taps · panel
    // numbers.
    void spread_panel(Index number, Index first, Index last, float* room, Factor* to) const {
        if (weights.narrow)
            spread_taps(weights.narrow_packed(number, first), last - first, to);
        else
            spread_taps(weights.packed(number, first, last, room), last - first, to);
    }

    // Where tiles are few, reading the weights is most of the time: fetched ahead, half of it.
    template <class Source>
    void spread_taps(const Source* from, Index inputs, Factor* to) const {
        for (Index input = 0; input < inputs; ++input, from += taps * panel)
            for (Index half = 0; half < panel; half += lanes) {
                const Source* taps_of = from + half;
                Factor* place = to + input / several * panel + half;
                for (Index tap = 0; tap < taps; ++tap)
                    __builtin_prefetch(taps_of + (16 * taps + tap) * panel, 0, 2);
                transform<winograd::weight_matrix>(
                    [&](auto i, auto j) __attribute__((always_inline)) { return load(taps_of + (3 * i + j) * panel); },
                    [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                        Factor* factors = place + (i * winograd::points + j) * weight_stride;
                        if constexpr (several == 1)
                            store(factors, vector);
                        else
                            store(factors, input % 2 ? load(factors) | nearest(vector) << 16 : nearest(vector));
                    });
            }
    }

    // The 36 products of a block and one panel's weights of inputs first to last.
    void multiply(Range here, const Factor* spread_tiles, const Factor* spread_weights, Index first, Index last,
                  float* products) const {
        const Index begin = first / several, end = parts(last, several);
        for (Index frequency = 0; frequency < frequencies; ++frequency) {
            const Factor* a = spread_tiles + frequency * tile_stride;
            const Factor* b = spread_weights + frequency * weight_stride;
            float* c = products + frequency * product_stride;
            const Range needed = tiles.needing(frequency, here);
            for (Index input = begin; input < end; input += portion, b += portion * panel)
                for (Index tile = needed.first, next; tile < needed.last; tile = next) {
                    next = least((tile / rows + 1) * rows, needed.last);
                    product<lanes, 1>(next - tile,
                                      a + (tile / rows * groups * rows + tile % rows) * lanes + input * rows,
                                      rows * lanes, b, panel, lanes, c + tile * panel, least(portion, end - input),
                                      input > 0);
                }
        }
    }

    void finish_tile(const Tile& tile, const float* products, Index number) const {
        const Index first = number * panel, here = least(panel, shape.out_channels - first);
        const Index pixel = (tile.picture * shape.out_height + tile.y) * shape.out_width + tile.x;
        const Index height = tile.height, width = tile.width, stride = product_stride;  // copies, as those of Ending
        const bool past_caches = away;
        for (Index half = 0; half < here; half += lanes) {
            const Ending ending(finish, output, shape.out_step, pixel, first + half, here - half, shape.out_width);
            transform<winograd::output_matrix>(
                [=](auto i, auto j) __attribute__((always_inline)) {
                    return load(products + (i * winograd::points + j) * stride + half);
                },
                [=](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                    if (i >= height || j >= width) return;
                    vector += ending.bias;
                    if (past_caches)
                        store_away(ending.place(j, i), ending.of(vector, j, i));
                    else
                        ending.keep(vector, j, i);
                });
        }
    }

    void finish_block(Range here, const float* products, Index number) const {
        for (Index index = here.first; index < here.last; ++index)
            finish_tile(tiles[index], products + (index - here.first) * panel, number);
    }
};

// How the work is cut. Either `shared`: one block of tiles at a time, of which each thread takes panels and transforms
// their weights when it needs them, `depth` inputs at a time, so that these stay in its cache; transformed, weights are
// four times as many numbers, and to fetch them from memory takes longer than to transform them anew. Or all weights
// are transformed first, which pays where many tiles use them, and each thread takes blocks.
struct Plan {
    bool shared;
    Index block, depth;

    // `several`: numbers in a factor.
    Plan(const Convolution& shape, Index several, Index tiles, int threads) {
        const Index panels = parts(shape.out_channels, panel);
        const bool fits = frequencies * shape.in_channels * panels * panel <= several << 24;  // 64 MiB
        shared = !fits || (tiles <= 128 && panels >= threads);
        const Index wanted = shared ? 128 : most(least(28, parts(tiles, 8 * threads)), 1);
        block = parts(parts(tiles, most(parts(tiles, wanted), 1)), rows) * rows;
        depth = shared ? least(shape.in_channels, several * 128) : shape.in_channels;
    }
};

template <class Factor, class Number>
void compute(const Convolution& shape, const Number* input, const Weights& weights, const Finish& finish,
             Number* output, int threads) {
    const Tiles tiles(shape.batch, shape.out_height, shape.out_width);
    const Plan plan(shape, numbers_in<Factor>, tiles.count(), threads);
    const Index size = shape.batch * shape.out_height * shape.out_width * shape.out_channels;
    const bool lines = panel * sizeof(Number) % 64 == 0 && shape.out_channels % lanes == 0 &&
                       shape.out_step % lanes == 0 && is_aligned(output);
    Pass<Number, Factor> pass{.shape = shape,
                              .finish = finish,
                              .weights = weights,
                              .output = output,
                              .tiles = tiles,
                              .input = {input, shape.height, shape.width, shape.in_channels, nullptr, shape.in_step},
                              .block = plan.block,
                              .depth = plan.depth,
                              .away = lines && size > Index{1} << 20};

    // Floats, or pairs, of each part of the scratch memory; what threads share lies before what each has of its own.
    const Index of_tiles = frequencies * pass.tile_stride, of_weights = frequencies * pass.weight_stride;
    const Index of_products = frequencies * pass.product_stride, of_zeros = parts(shape.in_channels, lanes) * lanes;
    const Index of_room = plan.depth * taps * panel;
    const Index common = of_zeros + (plan.shared ? of_tiles : pass.panels * of_weights);
    const Index own = of_room + of_products + (plan.shared ? of_weights : of_tiles);
    float* const memory = scratch(common + threads * own);
    pass.input.zeros = reinterpret_cast<const Number*>(memory);
    __builtin_memset(memory, 0, of_zeros * sizeof(float));

    const auto factors = [](float* some) { return reinterpret_cast<Factor*>(some); };

#pragma omp parallel num_threads(threads)
    {
        float* const room = memory + common + omp_get_thread_num() * own;
        float *const products = room + of_room, *const rest = products + of_products;
        if (plan.shared) {
            const auto spread_tiles = factors(memory + of_zeros), spread_weights = factors(rest);
            for (Index start = 0; start < tiles.count(); start += plan.block) {
                const Range here{start, least(start + plan.block, tiles.count())};
#pragma omp for schedule(static)
                for (Index index = here.first; index < here.last; ++index)
                    pass.spread(tiles[index], index - start, spread_tiles);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number) {
                    for (Index first = 0, last; first < shape.in_channels; first = last) {
                        last = least(first + plan.depth, shape.in_channels);
                        pass.spread_panel(number, first, last, room, spread_weights);
                        pass.multiply(here, spread_tiles, spread_weights, first, last, products);
                    }
                    pass.finish_block(here, products, number);
                }
            }
        } else {
            const auto spread_weights = factors(memory + of_zeros), spread_tiles = factors(rest);
#pragma omp for schedule(static)
            for (Index number = 0; number < pass.panels; ++number)
                pass.spread_panel(number, 0, plan.depth, room, spread_weights + number * of_weights);
#pragma omp for schedule(dynamic)
            for (Index start = 0; start < tiles.count(); start += plan.block) {
                const Range here{start, least(start + plan.block, tiles.count())};
                for (Index index = here.first; index < here.last; ++index)
                    pass.spread(tiles[index], index - start, spread_tiles);
                for (Index number = 0; number < pass.panels; ++number) {
                    pass.multiply(here, spread_tiles, spread_weights + number * of_weights, 0, plan.depth, products);
                    pass.finish_block(here, products, number);
                }
            }
        }
        settle();
    }
}

}  // namespace

Index packed_size(Index in_channels, Index out_channels) {
    return parts(out_channels, panel) * in_channels * taps * panel;
}

void pack(const float* numbers, Index in_channels, Index out_channels, float* packed, int threads) {
    const Weights weights{numbers, Order::plain, false, in_channels, out_channels};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < parts(out_channels, panel); ++number)
        weights.packed(number, 0, in_channels, packed + number * in_channels * taps * panel);
}

template <class Number>
void forward(const Convolution& shape, const Number* input, const void* weights, Order order, Precision precision,
             const Finish& finish, Number* output, int threads) {
    const bool narrow = order == Order::packed && precision != Precision::float32;
    const Weights all{weights, order, narrow, shape.in_channels, shape.out_channels};
    if (precision == Precision::bfloat16)
        compute<Pair>(shape, input, all, finish, output, threads);
    else
        compute<float>(shape, input, all, finish, output, threads);
}

template void forward(const Convolution&, const float*, const void*, Order, Precision, const Finish&, float*, int);
template void forward(const Convolution&, const BFloat16*, const void*, Order, Precision, const Finish&, BFloat16*,
                      int);

}  // namespace svertka::INSTRUCTIONS
