// Max and average pooling.
#include <limits>

#include "../parallel.h"
#include "../vector_epilogue.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

struct Pass {
    const Window& shape;
    Pooling pooling;
    const float* input;
    float* output;

    static Index inside(const WindowAxis& axis, Index start) {  // number of taps before the end of the padding
        const Index room = axis.size + axis.pad - start;
        return min(ceil_div(room, axis.dilation), axis.taps);
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
        const Index count = pooling == Pooling::padded_mean ? inside(shape.y, start_y) * inside(shape.x, start_x)
                                                            : (last_i - first_i) * (last_j - first_j);
        const float* corner = input + ((image * shape.y.size + start_y) * shape.x.size + start_x) * shape.in_step;
        const Index down = shape.y.dilation * shape.x.size * shape.in_step, right = shape.x.dilation * shape.in_step;
        for (; channel < last; channel += lanes) {
            const Index here = shape.in_channels - channel;
            const auto reduce = [&](auto begin, auto step) __attribute__((always_inline)) {
                Vector result = begin - Vector{};
                for (Index i = first_i; i < last_i; ++i)
                    for (Index j = first_j; j < last_j; ++j) {
                        const float* from = corner + i * down + j * right + channel;
                        result = step(result, load_up_to(from, here));
                    }
                return result;
            };
            Vector result;
            if (pooling == Pooling::maximum)
                result = reduce(-std::numeric_limits<float>::infinity(), [](Vector best, Vector one) {
                    return one <= best || best != best ? best : one;  // NaN stays NaN
                });
            else
                result = reduce(0.0f, [](Vector sum, Vector one) { return sum + one; }) / static_cast<float>(count);
            store_up_to(output + number * shape.out_step + channel, result, here);
        }
    }
};

}  // namespace

void pool(const Window& shape, Pooling pooling, const float* input, float* output, int threads) {
    const Pass pass{shape, pooling, input, output};
    const Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    // If there are few pixels, as for the mean over whole maps, threads divide the channels.
    const Index pieces = pixels >= 4 * threads ? 1 : threads;
    const Index piece = ceil_div(ceil_div(shape.in_channels, lanes), pieces) * lanes;
    parallel_for(pixels * pieces, threads, [&](Index number, int) {
        const Index channel = number % pieces * piece;
        pass.pixel(number / pieces, channel, min(channel + piece, shape.in_channels));
    });
}

}  // namespace svertka::INSTRUCTIONS
