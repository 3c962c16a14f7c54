// The input gradient is gathered: each of its pixels is written once, with the gradients of the windows that read it.
#include "max_pool.h"

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

// A pixel that a window reads, or a window that reads a pixel: the place of its first channel, and the tap.
struct Reading {
    Index place, tap;
};

struct Range {
    Index first, last;
};

// The taps of an axis at output `out` that are inside the image.
ALWAYS_INLINE Range taps_inside(const WindowAxis& axis, Index out) {
    const Index start = out * axis.stride - axis.pad;
    return {max(-start, 0), min(axis.taps, axis.size - start)};
}

// The outputs of an axis whose windows read pixel `place`.
ALWAYS_INLINE Range readers_of(const WindowAxis& axis, Index place) {
    const Index end = place + axis.pad;
    return {end < axis.taps ? 0 : (end - axis.taps) / axis.stride + 1, min(end / axis.stride + 1, axis.out_size)};
}

template <class Number>
void find_largest(const Window& shape, const Number* input, Number* output, std::int8_t* places, int threads) {
    const Index channels = shape.in_channels;
    parallel_for(shape.batch * shape.y.out_size, threads, [&](Index line, int) {
        const Index image = line / shape.y.out_size, out_y = line % shape.y.out_size;
        const Range rows = taps_inside(shape.y, out_y);
        for (Index out_x = 0; out_x < shape.x.out_size; ++out_x) {
            const Range columns = taps_inside(shape.x, out_x);
            Reading read[max_taps];
            Index count = 0;
            for (Index i = rows.first; i < rows.last; ++i)
                for (Index j = columns.first; j < columns.last; ++j) {
                    const Index y = out_y * shape.y.stride - shape.y.pad + i, x = out_x * shape.x.stride - shape.x.pad + j;
                    read[count++] = {((image * shape.y.size + y) * shape.x.size + x) * channels, i * shape.x.taps + j};
                }
            const Index to = (line * shape.x.out_size + out_x) * channels;
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                Vector best = load_up_to(input + read[0].place + channel, left);
                Bits place = Bits{} + static_cast<std::uint32_t>(read[0].tap);
                for (Index k = 1; k < count; ++k)
                    keep_larger(best, place, load_up_to(input + read[k].place + channel, left), read[k].tap);
                store_up_to(output + to + channel, best, left);
                store_places(places + to + channel, place, left);
            }
        }
    });
}

template <class Number>
void gather(const Window& shape, const Number* gradient, const std::int8_t* places, Number* result, int threads) {
    const Index channels = shape.in_channels;
    parallel_for(shape.batch * shape.y.size, threads, [&](Index line, int) {
        const Index image = line / shape.y.size, y = line % shape.y.size;
        const Range rows = readers_of(shape.y, y);
        for (Index x = 0; x < shape.x.size; ++x) {
            const Range columns = readers_of(shape.x, x);
            Reading readers[max_taps];
            Index count = 0;
            for (Index out_y = rows.first; out_y < rows.last; ++out_y)
                for (Index out_x = columns.first; out_x < columns.last; ++out_x) {
                    const Index i = y + shape.y.pad - out_y * shape.y.stride, j = x + shape.x.pad - out_x * shape.x.stride;
                    readers[count++] = {((image * shape.y.out_size + out_y) * shape.x.out_size + out_x) * channels,
                                        i * shape.x.taps + j};
                }
            Number* const to = result + (line * shape.x.size + x) * channels;
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                Vector sum{};
                for (Index k = 0; k < count; ++k) {
                    const Index place = readers[k].place + channel;
                    const Vector upstream = load_up_to(gradient + place, left);
                    const Bits own = load_places(places + place, left);
#if defined(__AVX512F__)
                    const __mmask16 mine = _mm512_cmpeq_epi32_mask((__m512i)own, _mm512_set1_epi32(static_cast<int>(readers[k].tap)));
                    sum = (Vector)_mm512_mask_add_ps((__m512)sum, mine, (__m512)sum, (__m512)upstream);
#else
                    sum += own == static_cast<std::uint32_t>(readers[k].tap) ? upstream : Vector{};
#endif
                }
                store_up_to(to + channel, sum, left);
            }
        }
    });
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

}  // namespace svertka::INSTRUCTIONS
