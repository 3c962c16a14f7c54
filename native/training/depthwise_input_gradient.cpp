// The input gradient of a depthwise convolution with any stride.
//
// With stride s, a pixel is read by about every s-th tap of each axis, and pixels that are s apart by the same taps. They
// are computed together, so that nothing is multiplied by zeros and weights stay in registers.
#include "../bfloat16.h"
#include "../parallel.h"
#include "../scratch.h"
#include "training.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index block = 2;   // vectors of channels that are summed in registers
constexpr Index pixels = 4;  // the same of pixels

// A tap that reads some pixels of a row, s apart: the number of the first output minus that of the pixel, and the places of
// the gradient and of the weights for pixel 0.
struct Reader {
    Index shift;
    const float *gradient, *weights;
};

// Pixels of a row that are `stride` apart.
struct Line {
    const Window& shape;
    Reader* readers;
    Index count = 0;  // of readers
    float* result;    // pixel 0
    Index size;       // number of pixels

    // List the taps that read the pixels x, x + stride, … of row y. `gradient`: of the image.
    void list_readers(const float* gradient, const float* weights, Index y, Index x) {
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Index above = y + shape.y.pad - i * shape.y.dilation, out_y = above / shape.y.stride;
            if (above < 0 || above % shape.y.stride || out_y >= shape.y.out_size) continue;
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index before = x + shape.x.pad - j * shape.x.dilation;
                if (before % shape.x.stride) continue;
                const Index shift = before / shape.x.stride;
                readers[count++] = {shift, gradient + (out_y * shape.x.out_size + shift) * shape.out_step,
                                    weights + (i * shape.x.taps + j) * shape.in_channels};
            }
        }
    }

    // Channels from `channel` on of the pixels `first` to `last`, for all of which the outputs of all readers exist. `taps`:
    // the readers, or 0 if there is no function for as many.
    template <int taps, int vectors, bool full, int together>
    ALWAYS_INLINE void add_inner(Index first, Index last, Index channel, Index left) const {
        const auto here = [&](int number) { return full || number < vectors - 1 ? lanes : left; };
        const Index number_of_taps = taps ? taps : count, to_next = shape.x.stride * shape.in_step;
        Vector factors[taps ? taps : 1][vectors];
#pragma GCC unroll 9
        for (int tap = 0; tap < taps; ++tap)
#pragma GCC unroll 2
            for (int number = 0; number < vectors; ++number)
                factors[tap][number] = load_up_to(readers[tap].weights + channel + number * lanes, here(number));
        for (Index x = first; x + together <= last; x += together) {
            Vector sums[together][vectors] = {};
#pragma GCC unroll 9
            for (Index tap = 0; tap < number_of_taps; ++tap)
#pragma GCC unroll 2
                for (int number = 0; number < vectors; ++number) {
                    Vector factor;
                    if constexpr (taps > 0)
                        factor = factors[tap][number];
                    else
                        factor = load_up_to(readers[tap].weights + channel + number * lanes, here(number));
#pragma GCC unroll 4
                    for (int pixel = 0; pixel < together; ++pixel) {
                        const float* const from = readers[tap].gradient + (x + pixel) * shape.out_step + channel;
                        sums[pixel][number] += factor * load_up_to(from + number * lanes, here(number));
                    }
                }
#pragma GCC unroll 4
            for (int pixel = 0; pixel < together; ++pixel)
#pragma GCC unroll 2
                for (int number = 0; number < vectors; ++number)
                    store_up_to(result + (x + pixel) * to_next + channel + number * lanes, sums[pixel][number], here(number));
        }
    }

    template <int taps, int vectors, bool full>
    [[gnu::noinline]] void add_inner(Index first, Index last, Index channel, Index left) const {
        const Index middle = first + (last - first) / pixels * pixels;
        add_inner<taps, vectors, full, pixels>(first, middle, channel, left);
        add_inner<taps, vectors, full, 1>(middle, last, channel, left);
    }

    template <int vectors, bool full>
    void add_inner(Index first, Index last, Index channel, Index left) const {
        switch (count) {
            case 1: return add_inner<1, vectors, full>(first, last, channel, left);
            case 2: return add_inner<2, vectors, full>(first, last, channel, left);
            case 3: return add_inner<3, vectors, full>(first, last, channel, left);
            case 4: return add_inner<4, vectors, full>(first, last, channel, left);
            case 6: return add_inner<6, vectors, full>(first, last, channel, left);
            case 9: return add_inner<9, vectors, full>(first, last, channel, left);
            default: return add_inner<0, vectors, full>(first, last, channel, left);
        }
    }

    // All channels of the pixels `first` to `last`, for which some outputs do not exist.
    void add_outer(Index first, Index last) const {
        for (Index x = first; x < last; ++x)
            for (Index channel = 0; channel < shape.in_channels; channel += lanes) {
                const Index left = shape.in_channels - channel;
                Vector sum{};
                for (const Reader* reader = readers; reader < readers + count; ++reader) {
                    const Index output = x + reader->shift;
                    if (output < 0 || output >= shape.x.out_size) continue;
                    sum += load_up_to(reader->weights + channel, left) *
                           load_up_to(reader->gradient + x * shape.out_step + channel, left);
                }
                store_up_to(result + x * shape.x.stride * shape.in_step + channel, sum, left);
            }
    }

    void add() const {
        Index first = 0, last = size;
        for (Index number = 0; number < count; ++number) {
            first = max(first, -readers[number].shift);
            last = min(last, shape.x.out_size - readers[number].shift);
        }
        first = min(first, size);
        last = max(last, first);
        add_outer(0, first);
        add_outer(last, size);
        for (Index channel = 0; channel < shape.in_channels; channel += block * lanes) {
            const Index left = shape.in_channels - channel;
            if (left >= 2 * lanes)
                add_inner<2, true>(first, last, channel, lanes);
            else if (left > lanes)
                add_inner<2, false>(first, last, channel, left - lanes);
            else
                add_inner<1, false>(first, last, channel, left);
        }
    }
};

}  // namespace

void depthwise_input_gradient(const Window& shape, const float* gradient, const float* weights, float* result,
                              int threads) {
    const Index taps = shape.y.taps * shape.x.taps, floats = taps * static_cast<Index>(sizeof(Reader) / sizeof(float));
    const auto readers = reinterpret_cast<Reader*>(scratch(threads * floats));
    parallel_for(shape.batch * shape.y.size, threads, [&](Index number, int thread) {
        const Index image = number / shape.y.size, y = number % shape.y.size;
        const float* const upstream = gradient + image * shape.y.out_size * shape.x.out_size * shape.out_step;
        for (Index x = 0; x < min(shape.x.stride, shape.x.size); ++x) {
            float* const pixel = result + (number * shape.x.size + x) * shape.in_step;
            Line line{.shape = shape, .readers = readers + thread * taps, .result = pixel,
                      .size = ceil_div(shape.x.size - x, shape.x.stride)};
            line.list_readers(upstream, weights, y, x);
            line.add();
        }
    });
}

}  // namespace svertka::INSTRUCTIONS
