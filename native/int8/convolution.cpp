// Convolution of 8-bit maps with any kernel as an implicit GEMM: row i of A holds the window of output pixel i.
//
// Rows are gathered in blocks (byte_im2col.h), which are multiplied by one panel of output channels after another, so that
// a panel's weights stay in the first-level cache for all rows of the block.
#include <omp.h>

#include "../scratch.h"
#include "byte_im2col.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index NR = 2 * lanes;  // columns of the register tile
constexpr Index KC = 128;        // factors of k for which a panel's weights fit in the first-level cache

struct Pass {
    const Window& shape;
    const Requantization& after;
    const Factor* weights;
    void* output;
    ByteIm2col windows;
    Index steps = windows.steps, chunks = windows.chunks, panels = ceil_div(shape.out_channels, NR);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    bool two_passes = after.in_two_passes();

    // Multiply `count` gathered rows, from row `first` on, by panel `number`.
    void multiply(Index first, Index count, const Factor* gathered, Index number, std::int32_t* sums) const {
        if (shape.out_channels - number * NR > lanes)
            multiply_by<2>(first, count, gathered, number, sums);
        else
            multiply_by<1>(first, count, gathered, number, sums);
    }

    // `depth` factors of k from the register tile at `a` and the panel at `b`; `add`: continue stored sums; `last`: store
    // results. `next`: weights to fetch into the cache meanwhile, one line for each factor of k.
    struct Tile {
        const Factor *a, *b, *next;
        Index depth, pixel, number;
        bool add, last;
        std::int32_t* sums;
    };

    template <int vectors>
    void multiply_by(Index first, Index count, const Factor* gathered, Index number, std::int32_t* sums) const {
        for (Index k = 0; k < steps; k += KC) {
            const Index here = min(KC, steps - k);
            const Factor* const b = weights + (number * steps + k) * NR;
            for (Index row = 0; row < count; row += MR) {
                const Factor* const a = gathered + (row * chunks + k / lanes * MR) * lanes;
                // The first two tiles fetch the next factors of the panel, or the next panel.
                const Factor* const next = b + here * NR + min(row / MR, 1) * here * lanes;
                rows_of<vectors, MR>(min(MR, count - row),
                                     {a, b, next, here, first + row, number, k > 0, k + here == steps, sums + row * NR});
            }
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
        Ints sums[count][vectors];
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half)
                sums[row][half] = load_as<Ints>(tile.add ? kept + row * NR + half * lanes
                                                         : after.start + channel + half * lanes);
        const Factor *b = tile.b, *next = tile.next;
        const auto step = [&](const Factor* column) __attribute__((always_inline)) {
            Ints factors[vectors];
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half) factors[half] = load_as<Ints>(b + half * lanes);
            b += NR;
            __builtin_prefetch(next);
            next += lanes;
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row) {
                const Ints factor = static_cast<std::int32_t>(column[row * lanes]) - Ints{};
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    sums[row][half] = add_products(sums[row][half], factor, factors[half]);
            }
        };
        const Factor* from = tile.a;
        Index left = tile.depth;
        for (; left >= lanes; left -= lanes, from += MR * lanes) {
#pragma GCC unroll 4
            for (Index k = 0; k < lanes; ++k) step(from + k);
        }
        for (Index k = 0; k < left; ++k) step(from + k);
        if (!tile.last || two_passes) {
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half) store_as(kept + row * NR + half * lanes, sums[row][half]);
            if (tile.last)
                for (int half = 0; half < vectors; ++half)
                    results(tile, half).finish(after, kept + half * lanes, NR, count, 0);
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

    ALWAYS_INLINE VectorRequantization results(const Tile& tile, int half) const {
        const Index channel = tile.number * NR + half * lanes;
        return {after, output, shape.out_step, tile.pixel, channel, shape.out_channels - channel};
    }
};

// The schedule: `block` rows are gathered at a time. If `shared`, all threads gather one block and then divide the panels;
// otherwise each thread processes its own blocks.
struct Plan {
    bool shared;
    Index block;

    Plan(const Pass& pass, int threads) {
        const Index room = Index{1} << 16;  // factors: a quarter of a cache of 1 MiB
        const Index wanted = max(min(room / pass.steps, 16 * MR), MR);
        shared = pass.panels >= 2 * threads && pass.pixels < 4 * threads * wanted && threads > 1;
        const Index limit = shared ? max(8 * wanted, 4 * MR) : min(wanted, ceil_div(pass.pixels, 4 * threads));
        block = ceil_div(ceil_div(pass.pixels, ceil_div(pass.pixels, limit)), MR) * MR;
    }
};

}  // namespace

std::ptrdiff_t int8_panel_width() { return NR; }
std::ptrdiff_t int8_numbers_per_factor() { return per_factor; }

void int8_convolve(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                   void* output, int threads) {
    if (shape.batch == 0) return;
    Pass pass{shape, after, static_cast<const Factor*>(weights), output, {shape, input, nullptr}};
    const Plan plan(pass, threads);
    const auto floats = [](Index bytes) { return ceil_div(bytes, 4 * lanes) * lanes; };
    const Index of_padding = floats(shape.in_channels + ByteIm2col::slack), of_row = pass.chunks * lanes;
    const Index of_line = floats(pass.windows.depth + ByteIm2col::slack), of_rows = plan.block * of_row;
    const Index of_sums = plan.block * NR;
    const Index common = of_padding + (plan.shared ? of_rows : 0);
    const Index own = of_line + of_sums + (plan.shared ? 0 : of_rows);
    float* const memory = scratch(common + threads * own);
    std::memset(memory, zero, of_padding * sizeof(float));
    pass.windows.padding = reinterpret_cast<Byte*>(memory);

#pragma omp parallel num_threads(threads)
    {
        float* const mine = memory + common + omp_get_thread_num() * own;
        const auto line = reinterpret_cast<Byte*>(mine);
        const auto sums = reinterpret_cast<std::int32_t*>(mine + of_line);
        if (plan.shared) {
            const auto gathered = reinterpret_cast<Factor*>(memory + of_padding);
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = min(plan.block, pass.pixels - first);
#pragma omp for schedule(static)
                for (Index row = 0; row < count; row += MR)
                    pass.windows.gather(first + row, first + min(row + MR, count), gathered + row * of_row, line);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, sums);
            }
        } else {
            const auto gathered = reinterpret_cast<Factor*>(mine + of_line + of_sums);
#pragma omp for schedule(dynamic)
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = min(plan.block, pass.pixels - first);
                pass.windows.gather(first, first + count, gathered, line);
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, sums);
            }
        }
    }
}

}  // namespace svertka::INSTRUCTIONS
