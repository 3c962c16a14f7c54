// Normalization of bytes, 16 pixels at a time; the results are those of a subtraction and a multiplication of floats.
#include "byte_normalization.h"

#include "../int8/bytes.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index pixels = 16;  // that are normalized at a time
constexpr Index parts = pixels / lanes;
constexpr Index streamed = 1 << 20;  // floats of a batch that is written past the caches, which it would fill

using Sixteen = Byte __attribute__((vector_size(pixels)));

// Bytes `first`, first + 3, first + 6, ... of the 48 of `a`, `b` and `c`.
template <int first, int... place>
ALWAYS_INLINE Sixteen every_third(Sixteen a, Sixteen b, Sixteen c, std::integer_sequence<int, place...>) {
    const Sixteen early = __builtin_shufflevector(a, b, (3 * place + first < 32 ? 3 * place + first : 0)...);
    return __builtin_shufflevector(early, c, (3 * place + first < 32 ? place : 3 * place + first - 16)...);
}

// The means or scales of the values of a vector.
struct Factors {
    Vector mean, scale;
};

template <bool is_streamed>
ALWAYS_INLINE void put(float* to, Sixteen bytes, const Factors* by) {
    for (Index part = 0; part < parts; ++part) {
        const Bytes some = load_as<Bytes>(reinterpret_cast<const Byte*>(&bytes) + part * lanes);
        const Vector result = (to_floats(some) - by[part].mean) * by[part].scale;
        if constexpr (is_streamed)
            stream_store(to + part * lanes, result);
        else
            store(to + part * lanes, result);
    }
}

// Normalize 16 pixels. `by` has the factors of the three times 16 values that are written.
template <bool channels_last, bool is_streamed>
ALWAYS_INLINE void block(const std::int8_t* from, const Factors (&by)[3][parts], float* to, Index plane) {
    const auto a = load_as<Sixteen>(from), b = load_as<Sixteen>(from + pixels), c = load_as<Sixteen>(from + 2 * pixels);
    if constexpr (channels_last) {
        put<is_streamed>(to, a, by[0]);
        put<is_streamed>(to + pixels, b, by[1]);
        put<is_streamed>(to + 2 * pixels, c, by[2]);
    } else {
        constexpr std::make_integer_sequence<int, pixels> places;
        put<is_streamed>(to, every_third<0>(a, b, c, places), by[0]);
        put<is_streamed>(to + plane, every_third<1>(a, b, c, places), by[1]);
        put<is_streamed>(to + 2 * plane, every_third<2>(a, b, c, places), by[2]);
    }
}

template <bool channels_last, bool is_streamed>
void normalize(const ByteImages& shape, const std::int8_t* from, const float* mean, const float* scale, float* to) {
    Factors by[3][parts];
    for (Index i = 0; i < 3 * pixels; ++i) {
        const Index channel = channels_last ? i % 3 : i / pixels;
        Factors& some = by[i / pixels][i % pixels / lanes];
        some.mean[i % lanes] = mean[channel];
        some.scale[i % lanes] = scale[channel];
    }
    const Index plane = shape.height * shape.width, width = shape.width, pixel = channels_last ? 3 : 1;
    for (Index number = 0; number < shape.batch * shape.height; ++number) {
        const Index image = number / shape.height, y = number % shape.height;
        const std::int8_t* const row = from + image * shape.image_step + y * shape.row_step;
        float* const line = to + image * 3 * plane + y * width * pixel;
        for (Index x = 0; x + pixels <= width; x += pixels)
            block<channels_last, is_streamed>(row + 3 * x, by, line + x * pixel, plane);
        if (width % pixels == 0) continue;
        if (width > pixels) {  // the last 16 pixels, some of them again
            block<channels_last, false>(row + 3 * (width - pixels), by, line + (width - pixels) * pixel, plane);
            continue;
        }
        for (Index x = 0; x < width; ++x)
            for (Index channel = 0; channel < 3; ++channel)
                line[x * pixel + channel * (channels_last ? 1 : plane)] =
                    (static_cast<float>(static_cast<Byte>(row[3 * x + channel])) - mean[channel]) * scale[channel];
    }
    if constexpr (is_streamed) store_fence();
}

}  // namespace

void normalize_bytes(const ByteImages& shape, const std::int8_t* from, const float* mean, const float* scale,
                     bool channels_last, float* to) {
    const Index count = shape.batch * 3 * shape.height * shape.width;
    const bool is_streamed = count > streamed && shape.width % pixels == 0 && is_aligned(to);
    if (channels_last)
        (is_streamed ? normalize<true, true> : normalize<true, false>)(shape, from, mean, scale, to);
    else
        (is_streamed ? normalize<false, true> : normalize<false, false>)(shape, from, mean, scale, to);
}

}  // namespace svertka::INSTRUCTIONS
