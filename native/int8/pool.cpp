// Max and average pooling of 8-bit maps.
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

struct Pass {
    const Window& shape;
    const BytePooling& pooling;
    const Byte* input;
    Byte* output;

    static Index inside(const WindowAxis& axis, Index start) {  // taps before the end of the padding
        return min(ceil_div(axis.size + axis.pad - start, axis.dilation), axis.taps);
    }

    // One output pixel, channels `channel` to `last`.
    void pixel(Index number, Index channel, Index last) const {
        const Index x = number % shape.x.out_size, above = number / shape.x.out_size;
        const Index y = above % shape.y.out_size, image = above / shape.y.out_size;
        const Index start_y = y * shape.y.stride - shape.y.pad, start_x = x * shape.x.stride - shape.x.pad;
        const Index first_i = start_y < 0 ? ceil_div(-start_y, shape.y.dilation) : 0;
        const Index first_j = start_x < 0 ? ceil_div(-start_x, shape.x.dilation) : 0;
        const Index last_i = min(shape.y.taps, ceil_div(shape.y.size - start_y, shape.y.dilation));
        const Index last_j = min(shape.x.taps, ceil_div(shape.x.size - start_x, shape.x.dilation));
        const Byte* corner = input + ((image * shape.y.size + start_y) * shape.x.size + start_x) * shape.in_step;
        const Index down = shape.y.dilation * shape.x.size * shape.in_step, right = shape.x.dilation * shape.in_step;
        Byte* const to = output + number * shape.out_step;
        const auto each_tap = [&](auto function) __attribute__((always_inline)) {
            for (Index i = first_i; i < last_i; ++i)
                for (Index j = first_j; j < last_j; ++j) function(corner + i * down + j * right);
        };
        if (pooling.pooling == Pooling::maximum) {
            constexpr Index width = sizeof(Wide);
            for (; channel + width <= last; channel += width) {
                Wide best{};
                each_tap([&](const Byte* from) __attribute__((always_inline)) {
                    const Wide one = load_as<Wide>(from + channel);
                    best = one > best ? one : best;
                });
                store_as(to + channel, best);
            }
            for (; channel < last; channel += lanes) {
                Bytes best{};
                each_tap([&](const Byte* from) __attribute__((always_inline)) {
                    const Bytes one = load_bytes(from + channel, last - channel);
                    best = one > best ? one : best;
                });
                store_bytes(to + channel, best, last - channel);
            }
            return;
        }
        const Index there = (last_i - first_i) * (last_j - first_j);
        const Index count = pooling.pooling == Pooling::mean ? there : inside(shape.y, start_y) * inside(shape.x, start_x);
        const float scale = pooling.mean.scale / static_cast<float>(count);
        for (; channel < last; channel += lanes) {
            Ints sum = Ints{} - static_cast<std::int32_t>(there * pooling.zero);
            each_tap([&](const Byte* from) __attribute__((always_inline)) {
                sum += to_ints(load_bytes(from + channel, last - channel));
            });
            const Vector mean = to_floats(sum) * scale + pooling.mean.shift;
            store_bytes(to + channel, to_bytes(clamp(mean, 0, 255)), last - channel);
        }
    }
};

}  // namespace

void int8_pool(const Window& shape, const BytePooling& pooling, const Byte* input, Byte* output, int threads) {
    const Pass pass{shape, pooling, input, output};
    const Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    // Where pixels are few, as in the mean over whole maps, threads share the channels.
    const Index pieces = pixels >= 4 * threads ? 1 : threads;
    const Index piece = ceil_div(ceil_div(shape.in_channels, lanes), pieces) * lanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < pixels * pieces; ++number) {
        const Index channel = number % pieces * piece;
        pass.pixel(number / pieces, channel, min(channel + piece, shape.in_channels));
    }
}

}  // namespace svertka::INSTRUCTIONS
