// Depthwise convolution of 8-bit maps.
//
// A lane holds one channel. The lines that a row of outputs reads are rewritten as factors: at each position the numbers of
// consecutive taps of a channel side by side, so that one product of vectors covers several taps. A line serves all rows of
// outputs that read it.
#include "../parallel.h"
#include "../scratch.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index block = 7;  // outputs in x that share their weights; lines of networks have 7, 14, 28, 56 or 112

struct Pass {
    const Window& shape;
    const Byte* input;
    Byte zero;
    const Factor* weights;
    const Requantization& after;
    void* output;
    Index factors = ceil_div(shape.x.taps, per_factor);      // of a row of taps
    Index of_factor = per_factor * shape.x.dilation;         // pixels from one factor of a window to the next
    Index hop = of_factor % shape.x.stride == 0 ? shape.x.stride : 1;  // pixels from one position to the next
    Index positions = ((shape.x.out_size - 1) * shape.x.stride + (factors - 1) * of_factor) / hop + 1;
    Index pixels = (positions - 1) * hop + (per_factor - 1) * shape.x.dilation + 1;  // that they hold
    Index span = (shape.y.taps - 1) * shape.y.dilation + 1;
    bool all_lines = shape.y.stride % shape.y.dilation != 0 || shape.y.dilation == 1;  // whether rows read them all
    // A task's memory: a line of pixels, then a ring of lines of factors.
    Index of_line = pixels * lanes / 4, of_ring = span * positions * lanes, size = of_line + of_ring;

    // Rows `first` to `last` of the outputs of an image, for the channels from `channel` on.
    void rows(Index image, Index first, Index last, Index channel, float* memory) const {
        const Byte* from = input + image * shape.y.size * shape.x.size * shape.in_step + channel;
        const auto line = reinterpret_cast<Byte*>(memory);
        const auto ring = reinterpret_cast<Factor*>(memory + of_line);
        std::memset(line, zero, pixels * lanes);
        Index there = first * shape.y.stride - shape.y.pad;  // lines from here on are not in the ring
        for (Index y = first; y < last; ++y) {
            const Index top = y * shape.y.stride - shape.y.pad;
            for (there = max(there, top); there < top + span; ++there)
                if (all_lines || (there - top) % shape.y.dilation == 0)
                    fill(from, there, channel, line, ring + slot(there) * positions * lanes);
            Index x = 0;
            for (; x + block <= shape.x.out_size; x += block) outputs<block>(image, y, x, channel, ring);
            for (; x < shape.x.out_size; ++x) outputs<1>(image, y, x, channel, ring);
        }
    }

  private:
    Index slot(Index y) const { return (y % span + span) % span; }

    // Write line `y` of the image as factors.
    void fill(const Byte* image, Index y, Index channel, Byte* line, Factor* to) const {
        if (y < 0 || y >= shape.y.size) {
            const Factor numbers = per_factor == 4 ? 0x01010101u * zero : 0x00010001u * zero;
            for (Index k = 0; k < positions * lanes; ++k) to[k] = numbers;
            return;
        }
        const Index count = shape.in_channels - channel, inside = min(shape.x.size, pixels - shape.x.pad);
        const Byte* from = image + y * shape.x.size * shape.in_step;
        for (Index x = 0; x < inside; ++x)
            store_as(line + (shape.x.pad + x) * lanes, load_bytes(from + x * shape.in_step, count));
        for (Index position = 0; position < positions; ++position, to += lanes, line += hop * lanes) {
            Ints numbers = to_ints(load_as<Bytes>(line));
#pragma GCC unroll 4
            for (Index number = 1; number < per_factor; ++number)
                numbers |= to_ints(load_as<Bytes>(line + number * shape.x.dilation * lanes)) << (32 / per_factor * number);
            store_as(to, numbers);
        }
    }

    template <int count>
    void outputs(Index image, Index y, Index x, Index channel, const Factor* ring) const {
        const Index top = y * shape.y.stride - shape.y.pad, apart = shape.x.stride / hop * lanes;
        const Factor* weight = weights + channel * shape.y.taps * factors;
        const Factor* const begin = ring + x * apart;
        Ints sums[count];
#pragma GCC unroll 8
        for (int one = 0; one < count; ++one) sums[one] = load_as<Ints>(after.start + channel);
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Factor* from = begin + slot(top + i * shape.y.dilation) * positions * lanes;
            for (Index j = 0; j < factors; ++j, from += of_factor / hop * lanes, weight += lanes) {
                const Ints own = load_as<Ints>(weight);
#pragma GCC unroll 8
                for (int one = 0; one < count; ++one)
                    sums[one] = add_products(sums[one], load_as<Ints>(from + one * apart), own);
            }
        }
        const Index pixel = (image * shape.y.out_size + y) * shape.x.out_size + x;
        const VectorRequantization to(after, output, shape.out_step, pixel, channel, shape.out_channels - channel);
        if (after.in_two_passes()) {
            std::int32_t kept[count * lanes];
            for (int one = 0; one < count; ++one) store_as(kept + one * lanes, sums[one]);
            return to.finish(after, kept, lanes, count, 0);
        }
        const auto store = [&](auto with_residual) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int one = 0; one < count; ++one) to.template store<decltype(with_residual)::value>(sums[one], one);
        };
        after.residual ? store(std::true_type{}) : store(std::false_type{});
    }
};

}  // namespace

std::ptrdiff_t int8_channel_width() { return lanes; }

void int8_depthwise(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                    void* output, int threads) {
    const Pass pass{shape, input, zero, static_cast<const Factor*>(weights), after, output};
    const Index blocks = ceil_div(shape.in_channels, lanes), height = shape.y.out_size;
    const Index segments = min(max(4 * threads / max(shape.batch * blocks, 1), 1), height);
    const Index own = ceil_div(pass.size, lanes) * lanes;
    float* const memory = scratch(threads * own);
    parallel_for(shape.batch * blocks * segments, threads, [&](Index task, int thread) {
        const Index channel = task % blocks * lanes, segment = task / blocks % segments;
        pass.rows(task / blocks / segments, height * segment / segments, height * (segment + 1) / segments, channel,
                  memory + thread * own);
    });
}

}  // namespace svertka::INSTRUCTIONS
