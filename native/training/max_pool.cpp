// The input gradient is gathered: each of its pixels is written once, with the gradients of the windows that read it.
#include "max_pool.h"

#include <algorithm>
#include <vector>

#include "../bfloat16.h"
#include "../parallel.h"

namespace svertka::INSTRUCTIONS {
namespace {

using Places = std::int8_t __attribute__((vector_size(lanes)));
using Mask = std::int32_t __attribute__((vector_size(lanes * sizeof(std::int32_t))));

constexpr Index max_taps = 127;

ALWAYS_INLINE void store_places(std::int8_t* to, Bits places, Index left) {
#if defined(__AVX512F__)
    const auto bytes = (Places)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)places);
#else
    const auto bytes = __builtin_convertvector(places, Places);
#endif
    left >= lanes ? __builtin_memcpy(to, &bytes, sizeof bytes) : __builtin_memcpy(to, &bytes, left);
}

ALWAYS_INLINE Bits load_places(const std::int8_t* from, Index left) {
    Places bytes{};
    left >= lanes ? __builtin_memcpy(&bytes, from, sizeof bytes) : __builtin_memcpy(&bytes, from, left);
#if defined(__AVX512F__)
    return (Bits)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)bytes);
#else
    return (Bits)__builtin_convertvector(bytes, Mask);
#endif
}

// Keeps the larger of `best` and `number`, and its place.
ALWAYS_INLINE void keep_larger(Vector& best, Bits& place, Vector number, Index tap) {
#if defined(__AVX512F__)
    const __mmask16 larger = _mm512_cmp_ps_mask((__m512)number, (__m512)best, _CMP_GT_OQ) |
                             _mm512_cmp_ps_mask((__m512)number, (__m512)number, _CMP_UNORD_Q);
    best = (Vector)_mm512_mask_mov_ps((__m512)best, larger, (__m512)number);
    place = (Bits)_mm512_mask_mov_epi32((__m512i)place, larger, _mm512_set1_epi32(static_cast<int>(tap)));
#else
    const Mask larger = (number > best) | (number != number);
    best = larger ? number : best;
    place = larger ? Bits{} + static_cast<std::uint32_t>(tap) : place;
#endif
}

struct Range {
    Index first, last;
};

// The pixels that a window reads, or the windows that read a pixel: the place of the first channel of each, and the tap.
struct Readings {
    struct {
        Index place, tap;
    } found[max_taps];
    Index count = 0;

    // Those of a rectangle; place_of(y, x) and tap_of(y, x) are of one of them.
    template <class PlaceOf, class TapOf>
    ALWAYS_INLINE Readings(Range rows, Range columns, PlaceOf place_of, TapOf tap_of) {
        for (Index y = rows.first; y < rows.last; ++y)
            for (Index x = columns.first; x < columns.last; ++x) found[count++] = {place_of(y, x), tap_of(y, x)};
    }
};

// The pixels of an axis that the window of output `out` reads.
ALWAYS_INLINE Range pixels_of(const WindowAxis& axis, Index out) {
    const Index start = out * axis.stride - axis.pad;
    return {max(start, 0), min(start + axis.taps, axis.size)};
}

// The outputs of an axis whose windows read each pixel.
std::vector<Range> readers_of(const WindowAxis& axis) {
    std::vector<Range> readers;
    for (Index end = axis.pad; end < axis.size + axis.pad; ++end)
        readers.push_back({end < axis.taps ? 0 : (end - axis.taps) / axis.stride + 1,
                           min(end / axis.stride + 1, axis.out_size)});
    return readers;
}

// The tap of the window of output (out_y, out_x) that reads pixel (y, x).
ALWAYS_INLINE Index tap_of(const Window& shape, Index out_y, Index out_x, Index y, Index x) {
    const Index i = y + shape.y.pad - out_y * shape.y.stride, j = x + shape.x.pad - out_x * shape.x.stride;
    return i * shape.x.taps + j;
}

template <class Number>
void find_largest(const Window& shape, const Number* input, Number* output, std::int8_t* places, int threads) {
    const Index channels = shape.in_channels;
    parallel_for(shape.batch * shape.y.out_size, threads, [&](Index line, int) {
        const Index image = line / shape.y.out_size, out_y = line % shape.y.out_size;
        const Range rows = pixels_of(shape.y, out_y);
        for (Index out_x = 0; out_x < shape.x.out_size; ++out_x) {
            const Readings read(
                rows, pixels_of(shape.x, out_x),
                [&](Index y, Index x) { return ((image * shape.y.size + y) * shape.x.size + x) * channels; },
                [&](Index y, Index x) { return tap_of(shape, out_y, out_x, y, x); });
            const Index to = (line * shape.x.out_size + out_x) * channels;
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                Vector best = load_up_to(input + read.found[0].place + channel, left);
                Bits place = Bits{} + static_cast<std::uint32_t>(read.found[0].tap);
                for (Index k = 1; k < read.count; ++k)
                    keep_larger(best, place, load_up_to(input + read.found[k].place + channel, left), read.found[k].tap);
                store_up_to(output + to + channel, best, left);
                store_places(places + to + channel, place, left);
            }
        }
    });
}

// The windows that read each pixel.
struct Readers {
    const Window& shape;
    std::vector<Range> rows = readers_of(shape.y), columns = readers_of(shape.x);

    ALWAYS_INLINE Readings of(Index image, Index y, Index x) const {
        return {rows[y], columns[x],
                [&](Index out_y, Index out_x) {
                    return ((image * shape.y.out_size + out_y) * shape.x.out_size + out_x) * shape.in_channels;
                },
                [&](Index out_y, Index out_x) { return tap_of(shape, out_y, out_x, y, x); }};
    }
};

// The sum of the gradients of the windows `readers` whose maximum is their common pixel, for `left` channels from `channel`
// on.
template <class Number>
ALWAYS_INLINE Vector sum_of_gradients(const Readings& readers, const Number* gradient, const std::int8_t* places,
                                      Index channel, Index left) {
    Vector sum{};
    for (Index k = 0; k < readers.count; ++k) {
        const auto [first, tap] = readers.found[k];
        const Vector upstream = load_up_to(gradient + first + channel, left);
        const Bits own = load_places(places + first + channel, left);
#if defined(__AVX512F__)
        const __mmask16 mine = _mm512_cmpeq_epi32_mask((__m512i)own, _mm512_set1_epi32(static_cast<int>(tap)));
        sum = (Vector)_mm512_mask_add_ps((__m512)sum, mine, (__m512)sum, (__m512)upstream);
#else
        sum += own == static_cast<std::uint32_t>(tap) ? upstream : Vector{};
#endif
    }
    return sum;
}

template <class Number>
void gather(const Window& shape, const Number* gradient, const std::int8_t* places, Number* result, int threads) {
    const Index channels = shape.in_channels;
    const Readers readers{shape};
    parallel_for(shape.batch * shape.y.size, threads, [&](Index line, int) {
        const Index image = line / shape.y.size, y = line % shape.y.size;
        for (Index x = 0; x < shape.x.size; ++x) {
            const Readings own = readers.of(image, y, x);
            Number* const to = result + (line * shape.x.size + x) * channels;
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                store_up_to(to + channel, sum_of_gradients(own, gradient, places, channel, left), left);
            }
        }
    });
}

// The channels of a pixel that are not 0.
struct Nonzero {
    std::vector<float> values;
    std::vector<std::int32_t> channels;
    Index count = 0;

    explicit Nonzero(Index channel_count) : values(channel_count + lanes), channels(channel_count + lanes) {}

    // Adds those of a vector whose first lane is `channel`; if `rectify`, without the negative ones. Lanes without a
    // channel are 0.
    ALWAYS_INLINE void add(Vector numbers, Index channel, bool rectify) {
#if defined(__AVX512F__)
        const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(channel)),
                                                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        const __m512 zero = _mm512_setzero_ps();
        const __mmask16 kept = rectify ? _mm512_cmp_ps_mask((__m512)numbers, zero, _CMP_NLE_UQ)
                                       : _mm512_cmp_ps_mask((__m512)numbers, zero, _CMP_NEQ_UQ);
        _mm512_storeu_ps(values.data() + count, _mm512_maskz_compress_ps(kept, (__m512)numbers));
        _mm512_storeu_si512(channels.data() + count, _mm512_maskz_compress_epi32(kept, places));
        count += __builtin_popcount(kept);
#else
        for (Index lane = 0; lane < lanes; ++lane) {
            values[count] = numbers[lane];
            channels[count] = static_cast<std::int32_t>(channel + lane);
            count += rectify ? !(numbers[lane] <= 0) : numbers[lane] != 0;
        }
#endif
    }
};

// Adds to `parts` vectors, from number `first` on, the products of a pixel's channels with their weights. Vector number
// n belongs to tap n / line in y, and is at n % line of the `row_size` numbers that this tap reaches.
template <Index parts>
ALWAYS_INLINE void add_products(const Nonzero& nonzero, const float* weights, Index weights_step, Index first, Index line,
                                float* to, Index row_step, Index row_size) {
    Vector sums[parts]{};
    for (Index k = 0; k < nonzero.count; ++k) {
        const float value = nonzero.values[k];
        const float* const by = weights + nonzero.channels[k] * weights_step + first * lanes;
#pragma GCC unroll 8
        for (Index n = 0; n < parts; ++n) sums[n] += value * load(by + n * lanes);
    }
#pragma GCC unroll 8
    for (Index n = 0; n < parts; ++n) {
        const Index tap = (first + n) / line, at = (first + n) % line * lanes, left = row_size - at;
        float* const place = to + tap * row_step + at;
        store_up_to(place, load_up_to(place, left) + sums[n], left);
    }
}

}  // namespace

void max_pool_forward(const Window& shape, const void* input, void* output, std::int8_t* places, bool narrow, int threads) {
    narrow ? find_largest(shape, static_cast<const BFloat16*>(input), static_cast<BFloat16*>(output), places, threads)
           : find_largest(shape, static_cast<const float*>(input), static_cast<float*>(output), places, threads);
}

void max_pool_input_gradient(const Window& shape, const void* gradient, const std::int8_t* places, void* result,
                             bool narrow, int threads) {
    narrow ? gather(shape, static_cast<const BFloat16*>(gradient), places, static_cast<BFloat16*>(result), threads)
           : gather(shape, static_cast<const float*>(gradient), places, static_cast<float*>(result), threads);
}

void max_pool_convolution_gradient(const Window& pool, const Window& convolution, const float* gradient,
                                   const std::int8_t* places, bool rectify, const float* weights, float* result,
                                   int threads) {
    const Index channels = pool.in_channels, row_size = convolution.x.taps * convolution.in_channels;
    const Index row_step = convolution.x.size * convolution.in_channels, per_image = convolution.y.size * row_step;
    const Index line = ceil_div(row_size, weight_columns) * (weight_columns / lanes), all = convolution.y.taps * line;
    const Readers readers{pool};
    parallel_for(pool.batch, threads, [&](Index image, int) {
        float* const own = result + image * per_image;
        std::fill(own, own + per_image, 0.0f);
        Nonzero nonzero(channels);
        for (Index y = 0; y < pool.y.size; ++y)
            for (Index x = 0; x < pool.x.size; ++x) {
                const Readings windows = readers.of(image, y, x);
                nonzero.count = 0;
                for (Index channel = 0; channel < channels; channel += lanes)
                    nonzero.add(sum_of_gradients(windows, gradient, places, channel, channels - channel), channel,
                                rectify);
                if (nonzero.count == 0) continue;
                float* const to = own + y * convolution.y.stride * row_step + x * convolution.x.stride * convolution.in_channels;
                Index first = 0;
                const auto add = [&]<Index parts>() {
                    for (; all - first >= parts; first += parts)
                        add_products<parts>(nonzero, weights, all * lanes, first, line, to, row_step, row_size);
                };
                add.template operator()<6>();
                add.template operator()<3>();
                add.template operator()<1>();
            }
    });
}

}  // namespace svertka::INSTRUCTIONS
