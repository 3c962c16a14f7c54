// Convolutions of each channel by itself.
#include <omp.h>

#include <cstring>

#include "../ending.h"
#include "../scratch.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Channels that are computed together: what a cache line holds, and at least a vector.
constexpr Index together = most(lanes, 16), vectors = together / lanes;

// Outputs in x that share what they read; networks for photographs have lines of 7, 14, 28, 56 and 112.
constexpr Index side_by_side = rows > 7 ? 7 : 4;

// Numbers of a strip: about as many as the nearest cache holds.
constexpr Index room = 8192;

// Some lines of a picture, `together` channels of them and the zeros on the left and right, side by side: in the picture
// these lie so far apart that they displace one another in the cache.
struct Strip {
    const Window& shape;
    Index width = (parts(shape.x.out_size, side_by_side) * side_by_side - 1) * shape.x.stride + shape.x.taps;
    // Lines of outputs for which there is room.
    Index lines = most((room / (width * together) - shape.y.taps) / shape.y.stride + 1, 1);
    Index size = ((lines - 1) * shape.y.stride + shape.y.taps) * width * together;

    // Lines `first` to `last`, those of them that there are; `count` channels, and zeros in place of others.
    void fill(const float* picture, Index first, Index last, Index count, float* to) const {
        const Index before = shape.x.pad, there = most(least(width - before, shape.x.size), 0);
        for (Index y = first; y < last; ++y, to += width * together) {
            if (y < 0 || y >= shape.y.size) continue;
            const float* from = picture + y * shape.x.size * shape.in_step;
            std::memset(to, 0, least(before, width) * together * sizeof(float));
            float* pixel = to + before * together;
            const Index step = shape.in_step;
            if (count >= together)
                for (Index x = 0; x < there; ++x, from += step, pixel += together)
#pragma GCC unroll 4
                    for (Index part = 0; part < together; part += lanes) store(pixel + part, load(from + part));
            else
                for (Index x = 0; x < there; ++x, from += step, pixel += together)
                    for (Index part = 0; part < together; part += lanes)
                        store(pixel + part, load_up_to(from + part, count - part));
            std::memset(pixel, 0, most(width - before - there, 0) * together * sizeof(float));
        }
    }
};

struct Pass {
    const Window& shape;
    const float *input, *weights;
    const Finish& finish;
    float* output;
    Strip strip{shape};

    // What is summed up for one output of any window.
    Vector any(const float* picture, Index y, Index x, Index channel, Index count) const {
        Vector sum{};
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Index in_y = y * shape.y.stride - shape.y.pad + i * shape.y.dilation;
            if (in_y < 0 || in_y >= shape.y.size) continue;
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index in_x = x * shape.x.stride - shape.x.pad + j * shape.x.dilation;
                if (in_x < 0 || in_x >= shape.x.size) continue;
                const float* from = picture + (in_y * shape.x.size + in_x) * shape.in_step + channel;
                const float* weight = weights + (i * shape.x.taps + j) * shape.in_channels + channel;
                sum += load_up_to(from, count) * load_up_to(weight, count);
            }
        }
        return sum;
    }

    void lines_of_any(Index number, Index first, Index last) const {
        const float* picture = input + number * shape.y.size * shape.x.size * shape.in_step;
        for (Index y = first; y < last; ++y)
            for (Index x = 0; x < shape.x.out_size; ++x)
                for (Index channel = 0; channel < shape.in_channels; channel += lanes) {
                    const Index count = shape.in_channels - channel;
                    const Index pixel = (number * shape.y.out_size + y) * shape.x.out_size + x;
                    const Ending ending(finish, output, shape.out_step, pixel, channel, count);
                    ending.keep(any(picture, y, x, channel, count) + ending.bias, 0);
                }
    }

    // Lines `first` to `last` of picture `number`, of channels `begin` to `end`; `memory`: room for a strip and the weights
    // of its channels.
    template <int taps, int stride>
    void lines(Index number, Index first, Index last, Index begin, Index end, float* memory) const {
        const float* picture = input + number * shape.y.size * shape.x.size * shape.in_step;
        float* const factors = memory + strip.size;
        for (Index channel = begin; channel < end; channel += together) {
            const Index count = shape.in_channels - channel;
            for (Index tap = 0; tap < taps * taps; ++tap)
                for (Index part = 0; part < together; part += lanes)
                    store(factors + tap * together + part,
                          load_up_to(weights + tap * shape.in_channels + channel + part, count - part));
            for (Index top = first; top < last; top += strip.lines) {
                const Index bottom = least(top + strip.lines, last), in_top = top * stride - shape.y.pad;
                strip.fill(picture + channel, in_top, (bottom - 1) * stride - shape.y.pad + taps, count, memory);
                for (Index y = top; y < bottom; ++y) {
                    const Index in_y = y * stride - shape.y.pad, pixel = (number * shape.y.out_size + y) * shape.x.out_size;
                    const float* const from = memory + (in_y - in_top) * strip.width * together;
                    if (count >= together && !finish.residual)
                        line<taps, stride, true>(from, factors, in_y, pixel, channel);
                    else
                        line<taps, stride, false>(from, factors, in_y, pixel, channel);
                }
            }
        }
    }

    // A line of outputs of `together` channels, whose windows begin at line `in_y` of the picture and at `from`.
    // `simple`: all of these channels are there, and no residual. What two outputs side by side read is read once.
    template <int taps, int stride, bool simple>
    [[gnu::noinline]] void line(const float* from, const float* factors, Index in_y, Index pixel, Index channel) const {
        constexpr Index reach = (side_by_side - 1) * stride + taps;
        const Index out_size = shape.x.out_size, of_line = strip.width * together;
        const Index begin = most(-in_y, 0), end = least(shape.y.size - in_y, taps);
        Finish after = finish;
        if (simple) after.residual = nullptr;
        Ending<float> endings[vectors];
        for (Index part = 0; part < vectors; ++part) {
            const Index first = channel + part * lanes, count = simple ? lanes : shape.in_channels - first;
            endings[part] = {after, output, shape.out_step, pixel, first, count};
        }
        for (Index x = 0; x < out_size; x += side_by_side, from += side_by_side * stride * together) {
            Vector sums[side_by_side][vectors];
#pragma GCC unroll 8
            for (Index one = 0; one < side_by_side; ++one)
#pragma GCC unroll 4
                for (Index part = 0; part < vectors; ++part) sums[one][part] = endings[part].bias;
            for (Index i = begin; i < end; ++i) {
                const float *pixels = from + i * of_line, *weight = factors + i * taps * together;
#pragma GCC unroll 32
                for (Index place = 0; place < reach; ++place)
#pragma GCC unroll 4
                    for (Index part = 0; part < vectors; ++part) {
                        const Vector one_pixel = load(pixels + place * together + part * lanes);
#pragma GCC unroll 8
                        for (Index one = 0; one < side_by_side; ++one)
                            if (place >= one * stride && place < one * stride + taps)
                                sums[one][part] +=
                                    one_pixel * load(weight + (place - one * stride) * together + part * lanes);
                    }
            }
#pragma GCC unroll 8
            for (Index one = 0; one < side_by_side; ++one) {
                if (x + one >= out_size) break;
#pragma GCC unroll 4
                for (Index part = 0; part < vectors; ++part) endings[part].keep(sums[one][part], x + one);
            }
        }
    }
};

}  // namespace

void depthwise(const Window& shape, const float* input, const float* weights, const Finish& finish, float* output,
               int threads) {
    if (shape.batch == 0) return;
    const Pass pass{shape, input, weights, finish, output};
    const bool square = shape.y.taps == shape.x.taps && shape.y.stride == shape.x.stride && shape.y.dilation == 1 &&
                        shape.x.dilation == 1;
    const Index taps = square ? shape.y.taps : 0, stride = shape.y.stride;
    const bool known = (taps == 3 || taps == 5) && stride <= 2;
    const Index own = known ? pass.strip.size + taps * taps * together : 0;
    float* const memory = scratch(threads * own);
    // Some pieces of each picture for every thread: channels, or where these are few bands of lines, but not more than
    // needed, since what two of them read is read twice.
    const Index wanted = threads == 1 ? 1 : parts(4 * threads, shape.batch), groups = parts(shape.in_channels, together);
    const bool by_channels = known && groups >= 2 * wanted;
    const Index pieces = by_channels ? wanted : least(wanted, shape.y.out_size);
    const Index bands = by_channels ? 1 : pieces, shares = by_channels ? pieces : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < shape.batch * pieces; ++number) {
        const Index picture = number / pieces, band = number % bands, share = number % shares;
        const Index first = shape.y.out_size * band / bands, last = shape.y.out_size * (band + 1) / bands;
        const Index begin = groups * share / shares * together, end = groups * (share + 1) / shares * together;
        float* const mine = memory + omp_get_thread_num() * own;
        if (!known)
            pass.lines_of_any(picture, first, last);
        else if (taps == 3 && stride == 1)
            pass.lines<3, 1>(picture, first, last, begin, end, mine);
        else if (taps == 3)
            pass.lines<3, 2>(picture, first, last, begin, end, mine);
        else if (stride == 1)
            pass.lines<5, 1>(picture, first, last, begin, end, mine);
        else
            pass.lines<5, 2>(picture, first, last, begin, end, mine);
    }
}

}  // namespace svertka::INSTRUCTIONS
