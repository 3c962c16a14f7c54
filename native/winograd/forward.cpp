// Winograd convolution F(4×4, 3×3) or F(6×6, 3×3); with adjoint weights, its input gradient.
//
// Tiles are processed in blocks across the whole batch. A block's input transform is followed, for each panel of output
// channels, by the 36 or 64 products with the panel's transformed weights and the output transform, so that
// intermediate results stay in a cache. A few tiles are multiplied while the weights are transformed (few_tiles.h).
#include "../vector_epilogue.h"
#include "few_tiles.h"
#include "input_transform.h"
#include "tile_blocks.h"
#include "weight_packing.h"
#include "winograd.h"

namespace svertka::INSTRUCTIONS {
namespace {

// The tensors, sizes and steps of one call. Images consist of `Number`s, the output and the residual of `Result`s.
// `Factor`s are multiplied: floats or pairs of inputs.
template <class Number, class Result, class Factor, int outputs>
struct Pass {
    const Convolution& shape;
    const Epilogue& epilogue;
    Weights weights;
    Result* output;
    TileBlocks<Factor, outputs> blocks;
    Images<Number> input;
    bool stream;  // outputs exceed the cache and fill whole cache lines: use non-temporal stores
    static constexpr Index several = values_per<Factor>;
    static constexpr int points = Tiles<outputs>::points;
    static constexpr Index fetched_pairs = 8;  // of inputs, from one that is transformed to one that is prefetched

    void set_padding(float* memory) {
        input.zeros = reinterpret_cast<const Number*>(memory);
        __builtin_memset(memory, 0, ceil_div(shape.in_channels, lanes) * lanes * sizeof(float));
    }

    void transform_input(const Tile& tile, Index index, Factor* to) const {
        to = blocks.row_of(index, to);
        transform_tile_to(tile, several * blocks.tile_stride, [=](Index group) { return element_address(to, group); });
    }

    // Transforms a tile. For the channels from `lanes` · group on, number `frequency` is stored at
    // place(group) + frequency · stride.
    template <class Place>
    void transform_tile_to(const Tile& tile, Index stride, Place place) const {
        transform_tile<winograd::data_matrix<outputs>>(input, tile.image, tile.y - shape.pad_y, tile.x - shape.pad_x,
                                                       points, points, stride, place);
    }

    // Transforms the weights of one panel for inputs `first` to `last` into (frequency, input, output in the panel).
    // `room` holds depth · taps · panel numbers.
    void transform_weights(Index number, Index first, Index last, float* room, Factor* to) const {
        if (weights.narrow)
            transform_pairs(weights.packed_pairs(number, first), last - first, to);
        else
            transform_taps(weights.packed(number, first, last, room), last - first, to);
    }

    void transform_taps(const float* from, Index inputs, Factor* to) const {
        for (Index input = 0; input < inputs; ++input, from += taps * NR)
            for (Index half = 0; half < NR; half += lanes) {
                const float* taps_of = from + half;
                Factor* place = to + input / several * NR + half;
                fetch_taps(taps_of + 2 * fetched_pairs * taps * NR);
                transform<winograd::weight_matrix<outputs>>(
                    [&](auto i, auto j) __attribute__((always_inline)) { return load(taps_of + (3 * i + j) * NR); },
                    [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                        Factor* factors = place + (i * points + j) * blocks.weight_stride;
                        if constexpr (several == 1)
                            store(factors, vector);
                        else
                            store(factors, input % 2 ? load(factors) | bf16_bits(vector) << 16 : bf16_bits(vector));
                    });
            }
    }

    // The same for weights packed in pairs. If pairs are multiplied, a vector contains both elements of half as many
    // outputs, so that transformed weights are rounded and stored without being rearranged.
    void transform_pairs(const Pair* from, Index inputs, Factor* to) const {
        using Place = std::conditional_t<several == 1, float, BFloat16>;
        for (; inputs > 0; inputs -= 2, from += taps * NR, to += 2 / several * NR) {
            const Index end = several == 1 ? min(inputs, 2) * NR : 2 * NR;
            for (Index part = 0; part < end; part += lanes) {
                const Pair* taps_of = from + (several == 1 ? part % NR : part / 2);
                Place* place = reinterpret_cast<Place*>(to) + part;
                fetch_taps(taps_of + fetched_pairs * taps * NR);
                transform<winograd::weight_matrix<outputs>>(
                    [&](auto i, auto j) __attribute__((always_inline)) {
                        const Pair* pairs = taps_of + (3 * i + j) * NR;
                        if constexpr (several == 2)
                            return load(reinterpret_cast<const BFloat16*>(pairs));
                        else
                            return part < NR ? first_of(load(pairs)) : second_of(load(pairs));
                    },
                    [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                        store(place + (i * points + j) * several * blocks.weight_stride, vector);
                    });
            }
        }
    }

    // With few tiles, reading the weights takes most of the time; prefetching halves it.
    template <class Source>
    ALWAYS_INLINE static void fetch_taps(const Source* from) {
        for (Index tap = 0; tap < taps; ++tap) __builtin_prefetch(from + tap * NR, 0, 2);
    }

    void store_tile(const Tile& tile, const float* products, Index number) const {
        const Index first = number * NR, here = min(NR, shape.out_channels - first);
        const Index pixel = (tile.image * shape.out_height + tile.y) * shape.out_width + tile.x;
        // Copies, as in VectorEpilogue.
        const Index height = tile.height, width = tile.width, stride = blocks.product_stride;
        const bool past_caches = stream, later = epilogue.in_two_passes();
        // Results of bfloat16 wait for the second half of their cache line: memory is written in whole lines.
        constexpr bool waits = std::is_same_v<Result, BFloat16>;
        Halves waiting[waits ? outputs * outputs : 1] = {};  // gcc warns of uninitialized ones
        for (Index half = 0; half < here; half += lanes) {
            const VectorEpilogue vector_epilogue(epilogue, output, shape.out_step, pixel, first + half, here - half, shape.out_width);
            const auto product_at = [=](auto i, auto j) __attribute__((always_inline)) {
                return load(products + (i * points + j) * stride + half);
            };
            if (later) {
                store_in_two_passes(vector_epilogue, product_at, height, width);
                continue;
            }
            transform<winograd::output_matrix<outputs>>(
                product_at, [=, &waiting](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                    if (i >= height || j >= width) return;
                    vector += vector_epilogue.bias;
                    if (!past_caches) return vector_epilogue.store(vector, j, i);
                    const Vector result = vector_epilogue.apply(vector, j, i);
                    Result* const to = vector_epilogue.address(j, i);
                    if constexpr (!waits)
                        stream_store(to, result);
                    else if (half == 0)
                        waiting[i * outputs + j] = to_bf16(result);
                    else
                        stream_store_two(to - lanes, waiting[i * outputs + j], to_bf16(result));
                });
        }
    }

    template <class ProductAt>
    [[gnu::noinline]] static void store_in_two_passes(const VectorEpilogue<Result>& vector_epilogue, ProductAt product_at,
                                                      Index height, Index width) {
        float sums[outputs * outputs * lanes];
        transform<winograd::output_matrix<outputs>>(product_at, [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
            store(sums + (i * outputs + j) * lanes, vector);
        });
        for (Index i = 0; i < height; ++i)
            vector_epilogue.finish(sums + i * outputs * lanes, lanes, width, 0, i);
    }

    // Fetches what the epilogue of a tile adds into the cache.
    void fetch_residual(const Tile& tile, Index number) const {
        if (!epilogue.residual) return;
        const Index pixel = (tile.image * shape.out_height + tile.y) * shape.out_width + tile.x;
        const Result* from = static_cast<const Result*>(epilogue.residual) + pixel * epilogue.residual_step + number * NR;
        for (Index i = 0; i < tile.height; ++i, from += shape.out_width * epilogue.residual_step)
            for (Index j = 0; j < tile.width; ++j)
                for (Index half = 0; half < NR; half += lanes) __builtin_prefetch(from + j * epilogue.residual_step + half);
    }
};

template <class Factor, class Number, class Result, int outputs>
void compute(const Convolution& shape, const void* input, const Weights& weights, const Epilogue& epilogue, void* results,
             int threads) {
    Result* const output = static_cast<Result*>(results);
    const Tiles<outputs> tiles(shape.batch, shape.out_height, shape.out_width);
    const Plan plan(shape.in_channels, shape.out_channels, values_per<Factor>, tiles.count(), tiles.frequencies, threads);
    const Index size = shape.batch * shape.out_height * shape.out_width * shape.out_channels;
    const Index of_line = std::is_same_v<Result, BFloat16> ? NR : lanes;  // channels that are stored together
    const bool lines = NR * sizeof(Result) % 64 == 0 && shape.out_channels % of_line == 0 &&
                       shape.out_step % of_line == 0 && is_aligned(output);
    Pass<Number, Result, Factor, outputs> pass{
        .shape = shape,
        .epilogue = epilogue,
        .weights = weights,
        .output = output,
        .blocks = {shape.in_channels, shape.out_channels, tiles, plan},
        .input = {static_cast<const Number*>(input), shape.height, shape.width, shape.in_channels, nullptr, shape.in_step},
        .stream = lines && size > Index{1} << 20};
    const Index of_padding = ceil_div(shape.in_channels, lanes) * lanes;
    if constexpr (few_tiles > 0 && std::is_same_v<Factor, float> && outputs == 4)
        if (tiles.count() <= few_tiles && !weights.narrow) return compute_few_tiles(pass, of_padding, threads);
    compute_blocks(pass, of_padding, plan.depth * taps * NR, threads);
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
    if (shape.tile == 6) return run(compute<float, float, float, 6>);
    if (precision != Precision::bfloat16)
        return run(narrow.input ? compute<float, BFloat16, BFloat16, 4> : compute<float, float, float, 4>);
    if (narrow.input)
        return run(narrow.output ? compute<Pair, BFloat16, BFloat16, 4> : compute<Pair, BFloat16, float, 4>);
    run(narrow.output ? compute<Pair, float, BFloat16, 4> : compute<Pair, float, float, 4>);
}

}  // namespace svertka::INSTRUCTIONS
