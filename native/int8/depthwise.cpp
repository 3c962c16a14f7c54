// Depthwise convolution of 8-bit maps.
//
// A lane holds one channel. The lines that a row of outputs reads are rewritten as factors: at each position the numbers of
// consecutive taps of a channel side by side, so that one product of vectors covers several taps. A line serves all rows of
// outputs that read it.
#include <cmath>

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
            for (int one = 0; one < count; ++one) to.template store<decltype(with_residual)::value>(to_floats(sums[one]), one);
        };
        after.residual ? store(std::true_type{}) : store(std::false_type{});
    }
};

#if defined(__AVX512VNNI__)

// The same for blocks of 64 channels, a whole vector of bytes: a position has four vectors of factors, and an output four
// vectors of sums. Bytes of neighboring pixels are interleaved within the quarters of a vector, so that vector `part` holds
// channels 16 · quarter + 4 · part to + 3. Packing the sums into bytes puts the channels back in order.
struct WidePass {
    const Window& shape;
    const Byte* input;
    Byte zero;
    const Factor* weights;
    const Requantization& after;
    Byte* output;
    static constexpr Index parts = 4, channels = parts * lanes;
    Index factors = ceil_div(shape.x.taps, per_factor), hop = shape.x.stride;
    Index positions = ((shape.x.out_size - 1) * shape.x.stride + (factors - 1) * per_factor) / hop + 1;
    Index of_line = positions * channels, span = (shape.y.taps - 1) * shape.y.dilation + 1;
    bool all_lines = shape.y.stride % shape.y.dilation != 0 || shape.y.dilation == 1;
    Index blocks = ceil_div(shape.in_channels, channels);  // the last one overlaps the one before
    // Memory of a block: a ring of lines of factors, its weights, and start, scale and shift of its sums.
    Index of_ring = span * of_line, of_weights = shape.y.taps * factors * channels, of_ends = 3 * channels;
    Index size = of_ring + of_weights + of_ends;

    static bool fits(const Window& shape, const Requantization& after) {
        const bool simple = !after.in_two_passes() && !after.residual && shape.x.dilation == 1 && shape.x.stride <= 2;
        return simple && shape.in_channels >= channels && shape.in_channels % lanes == 0;
    }

    // Rows `first` to `last` of an image, for some blocks. Each row is computed for all of them, so that an image that exceeds
    // the cache is read once.
    void rows(Index image, Index first, Index last, Index first_block, Index last_block, float* memory) const {
        for (Index number = first_block; number < last_block; ++number)
            prepare(channel_of(number), memory + (number - first_block) * size + of_ring);
        for (Index y = first; y < last; ++y)
            for (Index number = first_block; number < last_block; ++number)
                row(image, y, y == first, channel_of(number), memory + (number - first_block) * size);
    }

  private:
    struct Pairs {  // bytes of two pixels, interleaved
        __m512i low, high;

        ALWAYS_INLINE Pairs(Wide a, Wide b)
            : low(_mm512_unpacklo_epi8((__m512i)a, (__m512i)b)), high(_mm512_unpackhi_epi8((__m512i)a, (__m512i)b)) {}
    };

    Index channel_of(Index number) const { return min(number * channels, shape.in_channels - channels); }
    Index slot(Index y) const { return (y % span + span) % span; }

    // Copy what belongs to the channels from `channel` on, in the order of their sums.
    void prepare(Index channel, float* to) const {
        const Index of_lanes = shape.y.taps * factors * lanes;  // weights of as many channels as a vector of sums has
        const Factor* const from = weights + channel / lanes * of_lanes;
        for (Index k = 0; k < of_lanes; k += lanes) to = reorder(from + k, of_lanes, to);
        to = reorder(after.start + channel, lanes, to);
        to = reorder(after.scale + channel, lanes, to);
        reorder(after.shift + channel, lanes, to);
    }

    // Copy four vectors that are `apart` numbers apart, the first quarters of all, then the second ones, and so on.
    template <class Number>
    static float* reorder(const Number* from, Index apart, float* to) {
        for (Index part = 0; part < parts; ++part)
            for (Index quarter = 0; quarter < parts; ++quarter, to += lanes / parts)
                std::memcpy(to, from + quarter * apart + part * lanes / parts, sizeof(Vector) / parts);
        return to;
    }

    // Row `y` of outputs; `fresh`: no line is in the ring.
    void row(Index image, Index y, bool fresh, Index channel, float* memory) const {
        const Byte* const from = input + image * shape.y.size * shape.x.size * shape.in_step + channel;
        const auto ring = reinterpret_cast<Factor*>(memory);
        const Index top = y * shape.y.stride - shape.y.pad;
        for (Index line = fresh ? top : max(top, top - shape.y.stride + span); line < top + span; ++line)
            if (all_lines || (line - top) % shape.y.dilation == 0) {
                Factor* const to = ring + slot(line) * of_line;
                hop == 1 ? fill<1>(from, line, to) : fill<2>(from, line, to);
            }
        const Index pixel = (image * shape.y.out_size + y) * shape.x.out_size;
        Byte* to = output + pixel * shape.out_step + channel;
        Index x = 0;
        for (; x + block <= shape.x.out_size; x += block, to += block * shape.out_step) outputs<block>(top, x, ring, to);
        for (; x < shape.x.out_size; ++x, to += shape.out_step) outputs<1>(top, x, ring, to);
    }

    // Write line `y` of an image as factors, one position for every `step` pixels.
    template <Index step>
    void fill(const Byte* image, Index y, Factor* to) const {
        const Wide padding = zero - Wide{};
        const bool inside = y >= 0 && y < shape.y.size;
        const Byte* const line = image + y * shape.x.size * shape.in_step;
        const auto pixel = [=, this](Index x) __attribute__((always_inline)) {
            return inside && x >= 0 && x < shape.x.size ? load_as<Wide>(line + x * shape.in_step) : padding;
        };
        Index x = 2 - shape.x.pad;
        Wide last = pixel(x);
        Pairs first(pixel(x - 2), pixel(x - 1)), second(pixel(x - 1), last);  // of a position and of the pixel after it
        for (Index position = 0; position < positions; ++position, to += channels, x += step) {
            const Wide next = pixel(x + 1);
            const Pairs here(last, next);
            store_as(to, _mm512_unpacklo_epi16(first.low, here.low));
            store_as(to + lanes, _mm512_unpackhi_epi16(first.low, here.low));
            store_as(to + 2 * lanes, _mm512_unpacklo_epi16(first.high, here.high));
            store_as(to + 3 * lanes, _mm512_unpackhi_epi16(first.high, here.high));
            first = step == 1 ? second : here;
            second = here;
            last = step == 1 ? next : pixel(x + 2);
        }
    }

    template <int count>
    void outputs(Index top, Index x, const Factor* ring, Byte* to) const {
        const Factor *weight = ring + of_ring, *const begin = ring + x * channels;
        const float* const ends = reinterpret_cast<const float*>(weight) + of_weights;
        Ints sums[count][parts];
#pragma GCC unroll 8
        for (int one = 0; one < count; ++one)
#pragma GCC unroll 4
            for (int part = 0; part < parts; ++part) sums[one][part] = load_as<Ints>(ends + part * lanes);
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Factor* from = begin + slot(top + i * shape.y.dilation) * of_line;
            for (Index j = 0; j < factors; ++j, from += per_factor / hop * channels, weight += channels)
#pragma GCC unroll 4
                for (int part = 0; part < parts; ++part) {
                    const Ints own = load_as<Ints>(weight + part * lanes);
#pragma GCC unroll 8
                    for (int one = 0; one < count; ++one) {
                        const Ints factor = load_as<Ints>(from + one * channels + part * lanes);
                        sums[one][part] = add_products(sums[one][part], factor, own);
                    }
                }
        }
        const __m512 high = _mm512_set1_ps(after.high);  // before conversion to integers, which would overflow
        const __m512i low = _mm512_set1_epi8(static_cast<char>(std::lrint(after.low)));
#pragma GCC unroll 8
        for (int one = 0; one < count; ++one) {
            __m512i results[parts];
#pragma GCC unroll 4
            for (int part = 0; part < parts; ++part) {
                const float* const scale = ends + channels + part * lanes;
                const Vector result = to_floats(sums[one][part]) * load(scale) + load(scale + channels);
                results[part] = _mm512_cvtps_epi32(_mm512_min_ps(high, (__m512)result));
            }
            const __m512i words = _mm512_packs_epi32(results[0], results[1]), more = _mm512_packs_epi32(results[2], results[3]);
            store_as(to + one * shape.out_step, _mm512_max_epu8(low, _mm512_packus_epi16(words, more)));
        }
    }
};

void in_wide_blocks(const WidePass& pass, int threads) {
    const Window& shape = pass.shape;
    // Blocks that share each row. A small image stays in the cache, so that one after the other is faster.
    const bool small = shape.y.size * shape.x.size * shape.in_step <= Index{1} << 18;
    const bool overlap = shape.in_channels % WidePass::channels != 0;
    const Index groups = small ? max(pass.blocks - overlap, 1) : 1, height = shape.y.out_size;
    const Index segments = threads == 1 ? 1 : min(max(4 * threads / max(shape.batch * groups, 1), 1), height);
    const Index own = (pass.blocks - groups + 1) * pass.size;
    float* const memory = scratch(threads * own);
    parallel_for(shape.batch * groups * segments, threads, [&](Index task, int thread) {
        const Index group = task % groups, segment = task / groups % segments;
        pass.rows(task / groups / segments, height * segment / segments, height * (segment + 1) / segments, group,
                  group + 1 == groups ? pass.blocks : group + 1, memory + thread * own);
    });
}

#endif

}  // namespace

std::ptrdiff_t int8_channel_width() { return lanes; }

void int8_depthwise(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                    void* output, int threads) {
#if defined(__AVX512VNNI__)
    if (WidePass::fits(shape, after))
        return in_wide_blocks({shape, input, zero, static_cast<const Factor*>(weights), after, static_cast<Byte*>(output)},
                              threads);
#endif
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
