// The register tile of products of 8-bit numbers, and where it reads its rows.
#pragma once

#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {

// Rows that were gathered: chunks of `lanes` factors, MR rows side by side.
struct GatheredRows {
    const Factor* first;
    Index steps;

    // Calls step(row_of), where row_of(row) is the factor of a row, for each factor of k.
    template <class Step>
    ALWAYS_INLINE void each_step(Step step) const {
        const Factor* from = first;
        Index left = steps;
        for (; left >= lanes; left -= lanes, from += MR * lanes) {
#pragma GCC unroll 4
            for (Index k = 0; k < lanes; ++k) step([=](int row) __attribute__((always_inline)) { return from[row * lanes + k]; });
        }
        for (Index k = 0; k < left; ++k) step([=](int row) __attribute__((always_inline)) { return from[row * lanes + k]; });
    }
};

// Rows that begin `apart` bytes after one another, each of several `pieces` of `steps` factors, `piece` bytes apart.
struct RowsInPlace {
    const Byte* first;
    Index apart, steps, pieces = 1, piece = 0;

    template <class Step>
    ALWAYS_INLINE void each_step(Step step) const {
        const Byte* begin = first;
        for (Index left = pieces; left > 0; --left, begin += piece) {
            // Addresses are one of these, plus none, one or two times `apart`: registers are too few for each row.
            const Byte* from[ceil_div(MR, 3)];
#pragma GCC unroll 8
            for (Index i = 0; i < ceil_div(MR, 3); ++i) from[i] = begin + 3 * i * apart;
            const Index right = apart;
            const auto next = [&](Index k) __attribute__((always_inline)) {
                step([&](int row) __attribute__((always_inline)) {
                    return load_as<Factor>(from[row / 3] + row % 3 * right + k * sizeof(Factor));
                });
            };
            const auto advance = [&](Index count) __attribute__((always_inline)) {
#pragma GCC unroll 8
                for (Index i = 0; i < ceil_div(MR, 3); ++i) from[i] += count * sizeof(Factor);
            };
            Index k = steps;
            for (; k >= 4; k -= 4, advance(4)) {
                next(0);
                next(1);
                next(2);
                next(3);
            }
            for (; k > 0; --k, advance(1)) next(0);
        }
    }
};

struct ByteProduct {
    const Requantization& after;
    void* output;
    Index out_step, out_channels;
    bool two_passes = after.in_two_passes();

    // The product of rows and the panel `number`, at `b`, for the pixels from `pixel` on. `next`: weights to fetch into the
    // cache meanwhile, one line for each factor of k, or two for one row.
    template <class Rows>
    struct Tile {
        Rows rows;
        const Factor *b, *next;
        Index pixel, number;
        std::int32_t* sums;  // space for NR of each row
    };

    template <class Rows>
    ALWAYS_INLINE void multiply(Index count, const Tile<Rows>& tile) const {
        if (out_channels - tile.number * NR > lanes)
            rows_of<2, MR>(count, tile);
        else
            rows_of<1, MR>(count, tile);
    }

  private:
    template <int vectors, int max_rows, class Rows>
    ALWAYS_INLINE void rows_of(Index count, const Tile<Rows>& tile) const {
        if constexpr (max_rows > 1) {
            if (count < max_rows) return rows_of<vectors, max_rows - 1>(count, tile);
        }
        compute<vectors, max_rows>(tile);
    }

    // Sums stay in registers for all factors of k: a panel that exceeds the first-level cache streams from the next.
    template <int vectors, int count, class Rows>
    [[gnu::noinline]] void compute(const Tile<Rows>& tile) const {
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
        tile.rows.each_step([&](auto row_of) __attribute__((always_inline)) {
            Ints factors[vectors];
#pragma GCC unroll 2
            for (int half = 0; half < vectors; ++half) factors[half] = load_as<Ints>(b + half * lanes);
            b += NR;
            __builtin_prefetch(next);
            if (count == 1) __builtin_prefetch(next + lanes);
            next += count == 1 ? NR : lanes;
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row) {
                const Ints factor = static_cast<std::int32_t>(row_of(row)) - Ints{};
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    sums[row][half] = add_products(sums[row][half], factor, factors[half]);
            }
        });
        if (two_passes) {
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half) store_as(kept + row * NR + half * lanes, sums[row][half]);
            for (int half = 0; half < vectors; ++half)
                results(tile.pixel, channel, half).finish(after, kept + half * lanes, NR, count, 0);
            return;
        }
        const auto store = [&](auto with_residual) __attribute__((always_inline)) {
            VectorRequantization to[vectors];
            for (int half = 0; half < vectors; ++half) to[half] = results(tile.pixel, channel, half);
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    to[half].template store<decltype(with_residual)::value>(to_floats(sums[row][half]), row);
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
        const Index size = after.to_float ? sizeof(float) : 1;
        const Byte* const to = static_cast<const Byte*>(output) + (pixel * out_step + channel) * size;
#pragma GCC unroll 16
        for (int row = 0; row < count; ++row) __builtin_prefetch(to + row * out_step * size, 1);
    }

    ALWAYS_INLINE VectorRequantization results(Index pixel, Index channel, int half) const {
        channel += half * lanes;
        return {after, output, out_step, pixel, channel, out_channels - channel};
    }
};

}  // namespace svertka::INSTRUCTIONS
