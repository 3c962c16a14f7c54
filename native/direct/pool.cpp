// Max and average pooling.
#include <limits>

#include "../parallel.h"
#include "../vector_epilogue.h"
#include "../windows.h"

namespace svertka::INSTRUCTIONS {
namespace {

struct Pass {
    const Window& shape;
    Pooling pooling;
    const float* input;
    float* output;

    // One output pixel, channels `channel` to `last`.
    void pixel(Index number, Index channel, Index last) const {
        const Index x = number % shape.x.out_size, above = number / shape.x.out_size;
        const Index y = above % shape.y.out_size, image = above / shape.y.out_size;
        const TapsInside rows(shape.y, y), columns(shape.x, x);
        const Index count = pooling == Pooling::padded_mean ? rows.count_padded(shape.y) * columns.count_padded(shape.x)
                                                            : rows.count() * columns.count();
        const float* corner = input + ((image * shape.y.size + rows.start) * shape.x.size + columns.start) * shape.in_step;
        const Index down = shape.y.dilation * shape.x.size * shape.in_step, right = shape.x.dilation * shape.in_step;
        for (; channel < last; channel += lanes) {
            const Index here = shape.in_channels - channel;
            const auto reduce = [&](auto begin, auto step) __attribute__((always_inline)) {
                Vector result = begin - Vector{};
                for (Index i = rows.first; i < rows.last; ++i)
                    for (Index j = columns.first; j < columns.last; ++j) {
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
