// Winograd convolution F(4×4, 3×3); with adjoint weights, its input gradient.
//
// Tiles are processed in blocks across the whole batch. A block's input transform is followed, for each panel of output
// channels, by the 36 products with the panel's transformed weights and the output transform, so that intermediate results
// stay in a cache.
#include <omp.h>

#include "../vector_epilogue.h"
#include "../gemm.h"
#include "../scratch.h"
#include "input_transform.h"
#include "weight_packing.h"
#include "winograd.h"

namespace svertka::INSTRUCTIONS {
namespace {

// KC: factors accumulated in registers before the sum is added to memory. This reduces the error at 256 channels of 28×28
// pixels from 1.44e-6 of the results' root mean square to 8.1e-7 and takes 2 % of the time.
constexpr Index KC = 64;

// The tensors, sizes and steps of one call. Images consist of `Number`s, the output and the residual of `Result`s. `Factor`s
// are multiplied: floats or pairs of inputs.
template <class Number, class Result, class Factor>
struct Pass {
    const Convolution& shape;
    const Epilogue& epilogue;
    Weights weights;
    Result* output;
    Tiles tiles;
    Images<Number> input;
    Index block;  // tiles
    Index depth;  // input channels whose weights are transformed at a time
    bool stream;    // outputs exceed the cache and fill whole cache lines: use non-temporal stores
    static constexpr Index several = values_per<Factor>;
    Index groups = ceil_div(shape.in_channels, several * lanes), panels = ceil_div(shape.out_channels, NR);
    // Distance between frequencies: in factors for the tiles and a panel's weights, in floats for a panel's products.
    Index tile_stride = ceil_div(block, MR) * MR * groups * lanes + lanes;
    Index weight_stride = ceil_div(depth, several) * NR + lanes;
    Index product_stride = block * NR + lanes;

    // Transforms tile `index` of its block into (frequency, register block, group of channels, row of the block, lane).
    void transform_input(const Tile& tile, Index index, Factor* to) const {
        to += (index / MR * groups * MR + index % MR) * lanes;
        transform_tile<winograd::data_matrix>(input, tile.image, tile.y - shape.pad_y, tile.x - shape.pad_x,
                                           winograd::points, winograd::points, several * tile_stride,
                                           [=](Index group) { return element_address(to, group); });
    }

    // Transforms the weights of one panel for inputs `first` to `last` into (frequency, input, output in the panel). `room`
    // holds depth · taps · panel numbers.
    void transform_weights(Index number, Index first, Index last, float* room, Factor* to) const {
        if (weights.narrow)
            transform_taps(weights.narrow_packed(number, first), last - first, to);
        else
            transform_taps(weights.packed(number, first, last, room), last - first, to);
    }

    // With few tiles, reading the weights takes most of the time; prefetching halves it.
    template <class Source>
    void transform_taps(const Source* from, Index inputs, Factor* to) const {
        for (Index input = 0; input < inputs; ++input, from += taps * NR)
            for (Index half = 0; half < NR; half += lanes) {
                const Source* taps_of = from + half;
                Factor* place = to + input / several * NR + half;
                for (Index tap = 0; tap < taps; ++tap)
                    __builtin_prefetch(taps_of + (16 * taps + tap) * NR, 0, 2);
                transform<winograd::weight_matrix>(
                    [&](auto i, auto j) __attribute__((always_inline)) { return load(taps_of + (3 * i + j) * NR); },
                    [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                        Factor* factors = place + (i * winograd::points + j) * weight_stride;
                        if constexpr (several == 1)
                            store(factors, vector);
                        else
                            store(factors, input % 2 ? load(factors) | bf16_bits(vector) << 16 : bf16_bits(vector));
                    });
            }
    }

    // Computes the 36 products of a block and one panel's weights for inputs `first` to `last`.
    void multiply(Range here, const Factor* transformed_tiles, const Factor* transformed_weights, Index first, Index last,
                  float* products) const {
        const Index begin = first / several, end = ceil_div(last, several);
        for (Index frequency = 0; frequency < frequencies; ++frequency) {
            const Factor* a = transformed_tiles + frequency * tile_stride;
            const Factor* b = transformed_weights + frequency * weight_stride;
            float* c = products + frequency * product_stride;
            const Range needed = tiles.needing(frequency, here);
            for (Index input = begin; input < end; input += KC, b += KC * NR)
                for (Index tile = needed.first, next; tile < needed.last; tile = next) {
                    next = min((tile / MR + 1) * MR, needed.last);
                    product<lanes, 1>(next - tile,
                                      a + (tile / MR * groups * MR + tile % MR) * lanes + input * MR,
                                      MR * lanes, b, NR, lanes, c + tile * NR, min(KC, end - input),
                                      input > 0);
                }
        }
    }

    void store_tile(const Tile& tile, const float* products, Index number) const {
        const Index first = number * NR, here = min(NR, shape.out_channels - first);
        const Index pixel = (tile.image * shape.out_height + tile.y) * shape.out_width + tile.x;
        // Copies, as in VectorEpilogue.
        const Index height = tile.height, width = tile.width, stride = product_stride;
        const bool past_caches = stream, later = epilogue.in_two_passes();
        for (Index half = 0; half < here; half += lanes) {
            const VectorEpilogue vector_epilogue(epilogue, output, shape.out_step, pixel, first + half, here - half, shape.out_width);
            const auto product_at = [=](auto i, auto j) __attribute__((always_inline)) {
                return load(products + (i * winograd::points + j) * stride + half);
            };
            if (later) {
                store_in_two_passes(vector_epilogue, product_at, height, width);
                continue;
            }
            transform<winograd::output_matrix>(
                product_at, [=](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                    if (i >= height || j >= width) return;
                    vector += vector_epilogue.bias;
                    if (past_caches)
                        stream_store(vector_epilogue.address(j, i), vector_epilogue.apply(vector, j, i));
                    else
                        vector_epilogue.store(vector, j, i);
                });
        }
    }

    template <class ProductAt>
    [[gnu::noinline]] static void store_in_two_passes(const VectorEpilogue<Result>& vector_epilogue, ProductAt product_at,
                                                      Index height, Index width) {
        float sums[outputs * outputs * lanes];
        transform<winograd::output_matrix>(product_at, [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
            store(sums + (i * outputs + j) * lanes, vector);
        });
        for (Index i = 0; i < height; ++i)
            vector_epilogue.finish(sums + i * outputs * lanes, lanes, width, 0, i);
    }

    void store_block(Range here, const float* products, Index number) const {
        Tile tile = tiles[here.first];
        for (Index index = here.first; index < here.last; ++index) {
            const Tile next = index + 1 < here.last ? tiles[index + 1] : tile;
            if (epilogue.residual) fetch_residual(next, number);
            store_tile(tile, products + (index - here.first) * NR, number);
            tile = next;
        }
    }

    // Fetches what the epilogue of a tile adds into the cache.
    void fetch_residual(const Tile& tile, Index number) const {
        const Index pixel = (tile.image * shape.out_height + tile.y) * shape.out_width + tile.x;
        const Result* from = static_cast<const Result*>(epilogue.residual) + pixel * epilogue.residual_step + number * NR;
        for (Index i = 0; i < tile.height; ++i, from += shape.out_width * epilogue.residual_step)
            for (Index j = 0; j < tile.width; ++j)
                for (Index half = 0; half < NR; half += lanes) __builtin_prefetch(from + j * epilogue.residual_step + half);
    }
};

// The division of the work. If `shared`, blocks of tiles are processed one after another; each thread takes panels of a
// block and transforms their weights when it needs them, `depth` inputs at a time, so that they stay in its cache.
// Transformed weights have four times as many numbers, and reading them from memory takes longer than transforming them
// again. Otherwise all weights are transformed first, which is faster if many tiles use them, and each thread takes blocks.
struct Plan {
    bool shared;
    Index block, depth;

    // `several`: number of inputs in a factor.
    Plan(const Convolution& shape, Index several, Index tiles, int threads) {
        const Index panels = ceil_div(shape.out_channels, NR);
        const bool fits = frequencies * shape.in_channels * panels * NR <= several << 24;  // 64 MiB
        shared = !fits || (tiles <= 128 && panels >= threads);
        const Index wanted = shared ? 128 : max(min(28, ceil_div(tiles, 8 * threads)), 1);
        block = ceil_div(ceil_div(tiles, max(ceil_div(tiles, wanted), 1)), MR) * MR;
        depth = shared ? min(shape.in_channels, several * 128) : shape.in_channels;
    }
};

template <class Factor, class Number, class Result>
void compute(const Convolution& shape, const void* input, const Weights& weights, const Epilogue& epilogue, void* results,
             int threads) {
    Result* const output = static_cast<Result*>(results);
    const Tiles tiles(shape.batch, shape.out_height, shape.out_width);
    const Plan plan(shape, values_per<Factor>, tiles.count(), threads);
    const Index size = shape.batch * shape.out_height * shape.out_width * shape.out_channels;
    const bool lines = NR * sizeof(Result) % 64 == 0 && shape.out_channels % lanes == 0 &&
                       shape.out_step % lanes == 0 && is_aligned(output);
    Pass<Number, Result, Factor> pass{.shape = shape,
                              .epilogue = epilogue,
                              .weights = weights,
                              .output = output,
                              .tiles = tiles,
                              .input = {static_cast<const Number*>(input), shape.height, shape.width, shape.in_channels, nullptr, shape.in_step},
                              .block = plan.block,
                              .depth = plan.depth,
                              .stream = lines && size > Index{1} << 20};

    // Sizes of the parts of the scratch memory, in floats or pairs; shared parts come before those of each thread.
    const Index of_tiles = frequencies * pass.tile_stride, of_weights = frequencies * pass.weight_stride;
    const Index of_products = frequencies * pass.product_stride, of_zeros = ceil_div(shape.in_channels, lanes) * lanes;
    const Index of_room = plan.depth * taps * NR;
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
            const auto transformed_tiles = factors(memory + of_zeros), transformed_weights = factors(rest);
            for (Index start = 0; start < tiles.count(); start += plan.block) {
                const Range here{start, min(start + plan.block, tiles.count())};
#pragma omp for schedule(static)
                for (Index index = here.first; index < here.last; ++index)
                    pass.transform_input(tiles[index], index - start, transformed_tiles);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number) {
                    for (Index first = 0, last; first < shape.in_channels; first = last) {
                        last = min(first + plan.depth, shape.in_channels);
                        pass.transform_weights(number, first, last, room, transformed_weights);
                        pass.multiply(here, transformed_tiles, transformed_weights, first, last, products);
                    }
                    pass.store_block(here, products, number);
                }
            }
        } else {
            const auto transformed_weights = factors(memory + of_zeros), transformed_tiles = factors(rest);
#pragma omp for schedule(static)
            for (Index number = 0; number < pass.panels; ++number)
                pass.transform_weights(number, 0, plan.depth, room, transformed_weights + number * of_weights);
#pragma omp for schedule(dynamic)
            for (Index start = 0; start < tiles.count(); start += plan.block) {
                const Range here{start, min(start + plan.block, tiles.count())};
                for (Index index = here.first; index < here.last; ++index)
                    pass.transform_input(tiles[index], index - start, transformed_tiles);
                for (Index number = 0; number < pass.panels; ++number) {
                    pass.multiply(here, transformed_tiles, transformed_weights + number * of_weights, 0, plan.depth, products);
                    pass.store_block(here, products, number);
                }
            }
        }
        store_fence();
    }
}

}  // namespace

Index packed_size(Index in_channels, Index out_channels) {
    return ceil_div(out_channels, NR) * in_channels * taps * NR;
}

void pack(const float* numbers, Index in_channels, Index out_channels, float* packed, int threads) {
    const Weights weights{numbers, Order::plain, false, in_channels, out_channels};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < ceil_div(out_channels, NR); ++number)
        weights.packed(number, 0, in_channels, packed + number * in_channels * taps * NR);
}

void forward(const Convolution& shape, const void* input, const void* weights, Order order, Precision precision,
             const Epilogue& epilogue, void* output, NarrowMaps narrow, int threads) {
    const bool halves = order == Order::packed && precision != Precision::float32;
    const Weights all{weights, order, halves, shape.in_channels, shape.out_channels};
    const auto run = [&](auto function) { function(shape, input, all, epilogue, output, threads); };
    if (precision != Precision::bfloat16)
        return run(narrow.input ? compute<float, BFloat16, BFloat16> : compute<float, float, float>);
    if (narrow.input)
        return run(narrow.output ? compute<Pair, BFloat16, BFloat16> : compute<Pair, BFloat16, float>);
    run(narrow.output ? compute<Pair, float, BFloat16> : compute<Pair, float, float>);
}

}  // namespace svertka::INSTRUCTIONS
