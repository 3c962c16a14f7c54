// Winograd convolution F(4×4, 3×3) of 8-bit maps, in integers.
//
// With the points 0, ±1, ±2, ∞, transformed numbers and weights are integers of 16 bits, so that nothing is rounded before
// the products. Sums have 32 bits for KC pairs of inputs and are added as floats. Only the output transform divides.
#include "../winograd/input_transform.h"
#include "../winograd/tile_blocks.h"
#include "short_pairs.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr int outputs = 4, points = Tiles<outputs>::points;

struct Pass {
    const Window& shape;
    const Requantization& after;
    const Factor* weights;  // packed as `Int8::convolve` reads them
    void* output;
    Byte zero;
    TileBlocks<ShortPair, outputs> blocks;
    Images<Byte> input;
    static constexpr Index row_of_taps = 3;
    Index steps_of_tap = shape.in_channels / per_factor, steps = row_of_taps * row_of_taps * steps_of_tap;
    bool later = after.in_two_passes();

    void set_padding(float* memory) {
        input.zeros = reinterpret_cast<const Byte*>(memory);
        std::memset(memory, zero, shape.in_channels);
    }

    void transform_input(const Tile& tile, Index index, ShortPair* to) const {
        constexpr int size = points;
        const Byte* pixel[size][size];
        locate_pixels(input, tile.image, tile.y - shape.y.pad, tile.x - shape.x.pad, size, size, pixel);
        const Shorts offset = static_cast<std::int16_t>(zero) - Shorts{};
        const Index stride = blocks.tile_stride;
        to = blocks.row_of(index, to);
        for (Index channel = 0; channel < shape.in_channels; channel += 2 * lanes, to += MR * lanes) {
            const Index count = shape.in_channels - channel;
            for (Index i = 0; i < size; ++i)
                for (Index j = 0; j < outputs; ++j)
                    __builtin_prefetch(pixel[i][j] + channel + 2 * outputs * input.step, 0, 2);
            const auto keep = [&](auto i, auto j, Shorts numbers) __attribute__((always_inline)) {
                store_as(to + (i * points + j) * stride, numbers);
            };
            if (count < 2 * lanes)
                transform<winograd::whole_data_matrix>(
                    [&](auto i, auto j) { return load_shorts(pixel[i][j] + channel, count) - offset; }, keep);
            else
                transform<winograd::whole_data_matrix>([&](auto i, auto j) __attribute__((always_inline)) {
                    return load_shorts(pixel[i][j] + channel, 2 * lanes) - offset; }, keep);
        }
    }

    // Transforms the weights of one panel for inputs `first` to `last` into (frequency, pair of inputs, output in panel).
    void transform_weights(Index number, Index first, Index last, float*, ShortPair* to) const {
        const Factor* from = weights + (number * steps + first / per_factor) * NR;
        const Index apart = steps_of_tap * NR;
        for (Index step = 0; step < (last - first) / per_factor; ++step, from += NR)
            for (Index half = 0; half < NR; half += lanes) {
                for (Index tap = 0; tap < row_of_taps * row_of_taps; ++tap)
                    __builtin_prefetch(from + tap * apart + 8 * NR + half, 0, 2);
                unrolled<per_factor / 2>([&](auto pair) __attribute__((always_inline)) {
                    ShortPair* const place = to + (step * (per_factor / 2) + pair) * NR + half;
                    transform<winograd::whole_weight_matrix>(
                        [&](auto i, auto j) __attribute__((always_inline)) {
                            return pairs_of<pair>(from + (row_of_taps * i + j) * apart + half);
                        },
                        [&](auto i, auto j, Shorts numbers) __attribute__((always_inline)) {
                            store_as(place + (i * points + j) * blocks.weight_stride, numbers);
                        });
                });
            }
    }

    void store_tile(const Tile& tile, const float* products, Index number) const {
        const Index first = number * NR, here = min(NR, shape.out_channels - first), width = shape.x.out_size;
        for (Index half = 0; half < here; half += lanes) {
            const VectorRequantization to(after, output, shape.out_step, pixel_of(tile), first + half, here - half);
            if (later)
                store_in_two_passes(tile, to, products + half);
            else if (after.residual)
                transform_output(products + half, [&](auto i, auto j, Vector sum) __attribute__((always_inline)) {
                    if (i < tile.height && j < tile.width) to.store<true>(sum, i * width + j);
                });
            else
                transform_output(products + half, [&](auto i, auto j, Vector sum) __attribute__((always_inline)) {
                    if (i < tile.height && j < tile.width) to.store<false>(sum, i * width + j);
                });
        }
    }

    // Fetches what the epilogue of a tile adds into the cache.
    void fetch_residual(const Tile& tile, Index number) const {
        if (!after.residual) return;
        const Byte* from = after.residual + pixel_of(tile) * after.residual_step + number * NR;
        for (Index i = 0; i < tile.height; ++i, from += shape.x.out_size * after.residual_step)
            for (Index j = 0; j < tile.width; ++j) __builtin_prefetch(from + j * after.residual_step);
    }

  private:
    Index pixel_of(const Tile& tile) const {
        return (tile.image * shape.y.out_size + tile.y) * shape.x.out_size + tile.x;
    }

    template <class Store>
    ALWAYS_INLINE void transform_output(const float* products, Store store) const {
        const Index stride = blocks.product_stride;
        transform<winograd::divided_output_matrix>(
            [=](auto i, auto j) __attribute__((always_inline)) {
                return load(products + (i * points + j) * stride);
            },
            store);
    }

    [[gnu::noinline]] void store_in_two_passes(const Tile& tile, const VectorRequantization& to, const float* products) const {
        float sums[outputs * outputs * lanes];
        transform_output(products, [&](auto i, auto j, Vector sum) __attribute__((always_inline)) {
            store(sums + (i * outputs + j) * lanes, sum);
        });
        for (Index i = 0; i < tile.height; ++i)
            to.finish(after, sums + i * outputs * lanes, lanes, tile.width, i * shape.x.out_size);
    }

    // Pair `number` of the consecutive weights of each output.
    template <int number>
    ALWAYS_INLINE static Shorts pairs_of(const Factor* from) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
        // Each byte becomes the upper half of a number, and is then shifted, which extends its sign.
        constexpr char none = -1, a = 2 * number, b = a + 1;
        const __m128i places = _mm_setr_epi8(none, a, none, b, none, a + 4, none, b + 4, none, a + 8, none, b + 8, none,
                                             a + 12, none, b + 12);
        const Ints quads = load_as<Ints>(from);
#if defined(__AVX512VNNI__)
        return (Shorts)_mm512_shuffle_epi8((__m512i)quads, _mm512_broadcast_i32x4(places)) >> 8;
#else
        return (Shorts)_mm256_shuffle_epi8((__m256i)quads, _mm256_broadcastsi128_si256(places)) >> 8;
#endif
#else
        return load_as<Shorts>(from);
#endif
    }
};

}  // namespace

std::ptrdiff_t int8_winograd_inputs() { return values_per<ShortPair> * KC; }

void int8_winograd(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                   void* output, int threads) {
    const Tiles<outputs> tiles(shape.batch, shape.y.out_size, shape.x.out_size);
    const Plan plan(shape.in_channels, shape.out_channels, values_per<ShortPair>, tiles.count(), tiles.frequencies, threads);
    Pass pass{.shape = shape,
              .after = after,
              .weights = static_cast<const Factor*>(weights),
              .output = output,
              .zero = zero,
              .blocks = {shape.in_channels, shape.out_channels, tiles, plan},
              .input = {input, shape.y.size, shape.x.size, shape.in_channels, nullptr, shape.in_step}};
    compute_blocks(pass, ceil_div(shape.in_channels, 4 * lanes) * lanes, 0, threads);
}

// Compares estimates in units of one product instruction. Its own products read more from the second-level cache.
bool int8_winograd_is_faster(const Window& shape) {
    constexpr double of_weights = 220;                 // for each vector of weights
    constexpr double of_tile = 340, of_outputs = 280;  // for a vector of inputs, and of outputs
    // Where blocks of tiles read transformed weights of more than 8 MiB again and again, these come from memory.
    const Index of_all_weights = Tiles<outputs>::frequencies * shape.in_channels * shape.out_channels * 2;
    const Axis<outputs> y(shape.y.out_size), x(shape.x.out_size);
    const auto products = [](const Axis<outputs>& axis) { return 5.0 * axis.count + axis.whole; };
    const double batch = shape.batch, tiles = batch * y.count * x.count;
    const double of_product = tiles > 128 && of_all_weights > Index{8} << 20 ? 2.2 : 1.3;
    const double vectors = ceil_div(shape.out_channels, lanes), pairs = shape.in_channels / 2.0;
    const double direct = batch * shape.y.out_size * shape.x.out_size * 9 * shape.in_channels / per_factor * vectors;
    const double here = (of_product * batch * products(y) * products(x) + of_weights) * pairs * vectors +
                        tiles * (of_tile * ceil_div(shape.in_channels, 2 * lanes) + of_outputs * vectors);
    return here < direct;
}

}  // namespace svertka::INSTRUCTIONS
