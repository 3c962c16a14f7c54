// Convolution of 8-bit maps with any kernel as an implicit GEMM: row i of A holds the window of output pixel i.
//
// Rows are gathered in blocks (byte_im2col.h), which are multiplied by one panel of output channels after another, so that
// a panel's weights stay in the first-level cache for all rows of the block.
#include <cstring>

#include "../row_blocks.h"
#include "byte_im2col.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index ahead = 128;  // factors of k between a product and the weights that it fetches for a later one

// The floats that `bytes` take, in whole vectors.
Index floats(Index bytes) { return ceil_div(bytes, 4 * lanes) * lanes; }

struct Pass {
    using Factor = INSTRUCTIONS::Factor;
    using Number = Byte;
    using Sum = std::int32_t;

    const Window& shape;
    const Requantization& after;
    const Factor* weights;
    void* output;
    Byte zero;
    ByteIm2col windows;
    Index steps = windows.steps, chunks = windows.chunks, panels = ceil_div(shape.out_channels, NR);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    Index of_padding = floats(shape.in_channels + ByteIm2col::slack);
    bool two_passes = after.in_two_passes();

    void set_padding(float* memory) {
        std::memset(memory, zero, of_padding * sizeof(float));
        windows.padding = reinterpret_cast<Byte*>(memory);
    }

    // Multiply `count` gathered rows, from row `first` on, by panel `number`.
    void multiply(Index first, Index count, const Factor* gathered, Index number, std::int32_t* sums) const {
        if (shape.out_channels - number * NR > lanes)
            multiply_by<2>(first, count, gathered, number, sums);
        else
            multiply_by<1>(first, count, gathered, number, sums);
    }

    // The rows from `a` on and the panel at `b`. `next`: weights to fetch into the cache meanwhile, one line for each factor
    // of k, or two for one row.
    struct Tile {
        const Factor *a, *b, *next;
        Index pixel, number;
        std::int32_t* sums;
    };

    // Sums stay in registers for all factors of k: a panel that exceeds the first-level cache streams from the next.
    template <int vectors>
    void multiply_by(Index first, Index count, const Factor* gathered, Index number, std::int32_t* sums) const {
        const Factor* const b = weights + number * steps * NR;
        for (Index row = 0; row < count; row += MR) {
            // The first two tiles fetch the next panel. A tile alone fetches what it reads soon.
            const Factor* const next = b + (count > MR ? steps : min(steps, ahead)) * NR + min(row / MR, 1) * steps * lanes;
            rows_of<vectors, MR>(min(MR, count - row),
                                 {gathered + row * chunks * lanes, b, next, first + row, number, sums + row * NR});
        }
    }

    template <int vectors, int max_rows>
    ALWAYS_INLINE void rows_of(Index count, const Tile& tile) const {
        if constexpr (max_rows > 1) {
            if (count < max_rows) return rows_of<vectors, max_rows - 1>(count, tile);
        }
        compute<vectors, max_rows>(tile);
    }

    template <int vectors, int count>
    [[gnu::noinline]] void compute(const Tile& tile) const {
        const Index channel = tile.number * NR;
        std::int32_t* const kept = tile.sums;
        fetch<count>(tile.pixel, channel);
        Ints sums[count][vectors];
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half)
                sums[row][half] = load_as<Ints>(after.start + channel + half * lanes);
        const Factor *b = tile.b, *next = tile.next;
        const auto step = [&](const Factor* column) __attribute__((always_inline)) {
            Ints factors[vectors];
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half) factors[half] = load_as<Ints>(b + half * lanes);
            b += NR;
            __builtin_prefetch(next);
            if (count == 1) __builtin_prefetch(next + lanes);
            next += count == 1 ? NR : lanes;
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row) {
                const Ints factor = static_cast<std::int32_t>(column[row * lanes]) - Ints{};
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    sums[row][half] = add_products(sums[row][half], factor, factors[half]);
            }
        };
        const Factor* from = tile.a;
        Index left = steps;
        for (; left >= lanes; left -= lanes, from += MR * lanes) {
#pragma GCC unroll 4
            for (Index k = 0; k < lanes; ++k) step(from + k);
        }
        for (Index k = 0; k < left; ++k) step(from + k);
        if (two_passes) {
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half) store_as(kept + row * NR + half * lanes, sums[row][half]);
            for (int half = 0; half < vectors; ++half) results(tile, half).finish(after, kept + half * lanes, NR, count, 0);
            return;
        }
        const auto store = [&](auto with_residual) __attribute__((always_inline)) {
            VectorRequantization to[vectors];
            for (int half = 0; half < vectors; ++half) to[half] = results(tile, half);
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    to[half].template store<decltype(with_residual)::value>(sums[row][half], row);
        };
        after.residual ? store(std::true_type{}) : store(std::false_type{});
    }

    // Fetches what the epilogue of `count` pixels reads and writes into the cache.
    template <int count>
    ALWAYS_INLINE void fetch(Index pixel, Index channel) const {
        const Byte* residual = after.residual + pixel * after.residual_step + channel;
        if (after.residual)
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row) __builtin_prefetch(residual + row * after.residual_step);
    }

    ALWAYS_INLINE VectorRequantization results(const Tile& tile, int half) const {
        const Index channel = tile.number * NR + half * lanes;
        return {after, output, shape.out_step, tile.pixel, channel, shape.out_channels - channel};
    }
};

}  // namespace

std::ptrdiff_t int8_panel_width() { return NR; }
std::ptrdiff_t int8_numbers_per_factor() { return per_factor; }

void int8_convolve(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                   void* output, int threads) {
    if (shape.batch == 0) return;
    Pass pass{shape, after, static_cast<const Factor*>(weights), output, zero, {shape, input, nullptr}};
    const RowBlocks plan(pass, Index{1} << 16, threads > 1, threads);  // a quarter of a cache of 1 MiB
    multiply_in_blocks(pass, plan, pass.of_padding, floats(MR * pass.windows.of_line), threads);
}

}  // namespace svertka::INSTRUCTIONS
