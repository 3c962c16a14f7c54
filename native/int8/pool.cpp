// Max and average pooling of 8-bit maps.
#include "../parallel.h"
#include "../windows.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

struct Pass {
    const Window& shape;
    const BytePooling& pooling;
    const Byte* input;
    Byte* output;

    // One line of outputs, channels `first` to `last`.
    void line(Index number, Index first, Index last) const {
        const Index y = number % shape.y.out_size, image = number / shape.y.out_size;
        const TapsInside rows(shape.y, y);
        for (Index x = 0; x < shape.x.out_size; ++x) pixel(image, number * shape.x.out_size + x, rows, {shape.x, x}, first, last);
    }

  private:
    // Output pixel `number`, channels `channel` to `last`.
    void pixel(Index image, Index number, const TapsInside& rows, const TapsInside& columns, Index channel, Index last) const {
        const Byte* corner = input + ((image * shape.y.size + rows.start) * shape.x.size + columns.start) * shape.in_step;
        const Index down = shape.y.dilation * shape.x.size * shape.in_step, right = shape.x.dilation * shape.in_step;
        Byte* const to = output + number * shape.out_step;
        const auto each_tap = [&](auto function) __attribute__((always_inline)) {
            for (Index i = rows.first; i < rows.last; ++i)
                for (Index j = columns.first; j < columns.last; ++j) function(corner + i * down + j * right);
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
        const Index there = rows.count() * columns.count();
        const Index count = pooling.pooling == Pooling::mean ? there : rows.count_padded(shape.y) * columns.count_padded(shape.x);
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
    const Index lines = shape.batch * shape.y.out_size;
    // Where lines are few, as in the mean over whole maps, threads share the channels.
    const Index pieces = lines >= 4 * threads ? 1 : threads;
    const Index piece = ceil_div(ceil_div(shape.in_channels, lanes), pieces) * lanes;
    parallel_for(lines * pieces, threads, [&](Index number, int) {
        const Index channel = number % pieces * piece;
        pass.line(number / pieces, channel, min(channel + piece, shape.in_channels));
    });
}

}  // namespace svertka::INSTRUCTIONS
