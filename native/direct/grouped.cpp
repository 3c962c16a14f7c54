// Grouped convolution, and the depthwise convolutions that have no kernel of their own (depthwise.cpp).
//
// Small groups: one vector holds neighboring output channels, of one group or of several whole groups, and another vector
// their inputs. For each tap and each i, one vector product adds the contribution of the i-th input of every group: the
// weights times a vector that holds that input in the lanes of its group's outputs. With one channel per group, this is
// the vector of inputs itself; otherwise its lanes are permuted. If groups do not fill a vector, its last lanes are unused.
//
// Wide groups have more than 8 channels, or more than a vector has lanes: each input channel is multiplied by vectors of
// weights, as in a matrix product.
#include <cstring>

#include "../gemm.h"
#include "../parallel.h"
#include "../scratch.h"
#include "../vector_epilogue.h"
#include "depthwise.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Vectors of small groups that are computed together: a cache line of outputs, or at least one vector.
constexpr Index vectors = max(16 / lanes, 1);

// Outputs along x that share their inputs. Lines of common networks have 7, 14, 28, 56 or 112 outputs, some 8 or 16.
constexpr Index small_block = MR > 7 ? 7 : 4, long_block = MR > 7 ? 8 : 6;

// Values that fit in the L1 cache besides the outputs.
constexpr Index room = 8192;

constexpr Index round_up(Index size, Index part) { return ceil_div(size, part) * part; }

inline Index span(const WindowAxis& axis) { return (axis.taps - 1) * axis.dilation + 1; }

// Groups of `in` input and `out` output channels, computed in slices: a few vectors of outputs of small groups with one
// vector of inputs each, or one wide group with all its inputs.
struct Groups {
    Index in, out;
    bool wide = max(in, out) > min(lanes, 8);  // with more, too many permutations
    Index made = wide ? out : lanes / max(in, out) * out;  // outputs per vector: those of as many small groups as fit
    Index inputs = wide ? ceil_div(in, lanes) : vectors;   // vectors of inputs per slice
    Index slice = wide ? out : vectors * made;             // outputs per slice
    Index width = wide ? round_up(out, lanes) : vectors * lanes;  // the same with unused lanes
    Bits places[lanes] = {};  // for each lane of outputs, the lane of input `number` of its group

    Groups(Index in, Index out) : in(in), out(out) {
        if (wide) return;
        for (Index number = 0; number < in; ++number)
            for (Index lane = 0; lane < made; ++lane)
                places[number][lane] = static_cast<std::uint32_t>(lane / out * in + number);
    }

    Index slices(Index channels) const { return ceil_div(channels, slice); }

    // The first input channel in vector `number` of the inputs that the outputs from `channel` on read.
    Index source(Index channel, Index number) const {
        return wide ? channel / out * in + number * lanes : (channel + number * made) / out * in;
    }
};

// A copy of the rows of an image that some rows of outputs read, for some vectors of channels, with zeros on the left and
// right. In the image itself, pixels are so far apart that they evict one another from the cache.
struct Strip {
    const Window& shape;
    const Groups& groups;
    Index block, of_factors;  // outputs along x that are computed together; weights of a slice
    Index of_vector = ((round_up(shape.x.out_size, block) - 1) * shape.x.stride + span(shape.x)) * lanes;
    Index of_slice = groups.inputs * of_vector;
    // Rows of outputs, and slices, for which there is room, but enough rows that few are moved to the next ones:
    // neighboring channels share memory pages and cache lines.
    Index out_rows =
        min(max((room / of_slice - span(shape.y)) / shape.y.stride + 1, ceil_div(span(shape.y), 2)), shape.y.out_size);
    Index rows = (out_rows - 1) * shape.y.stride + span(shape.y);
    Index slices = groups.wide ? 1 : max(min(room / (rows * of_slice + of_factors), groups.slices(shape.out_channels)), 1);
    Index of_row = slices * of_slice, size = rows * of_row;
    Index before = min(shape.x.pad * lanes, of_vector);
    Index pixels = max(min(of_vector / lanes - shape.x.pad, shape.x.size), 0);

    void fill_padding(float* to) const {
        const Index end = before + pixels * lanes;
        for (Index number = 0; number < rows * slices * groups.inputs; ++number, to += of_vector) {
            std::memset(to, 0, before * sizeof(float));
            std::memset(to + end, 0, (of_vector - end) * sizeof(float));
        }
    }

    // Copies rows `first` to `last` of the inputs of `count` slices of outputs from `channel` on; missing channels are zero.
    template <class Number>
    void fill(const Number* image, Index first, Index last, Index channel, Index count, float* to) const {
        const Index step = shape.in_step, of_line = shape.x.size * step, numbers = count * groups.inputs;
        for (Index number = 0; number < numbers; ++number) {
            const Index source = groups.source(channel, number), left = shape.in_channels - source;
            const Number* line = image + first * of_line + source;
            float* pixel = to + number * of_vector + before;
            for (Index y = first; y < last; ++y, line += of_line, pixel += of_row)
                if (left >= lanes)
                    for (Index x = 0; x < pixels; ++x) store(pixel + x * lanes, load(line + x * step));
                else
                    for (Index x = 0; x < pixels; ++x) store(pixel + x * lanes, load_up_to(line + x * step, left));
        }
    }
};

template <class Number>
struct Pass {
    const Window& shape;
    Groups groups;
    const Number* input;
    const float* weights;
    const Epilogue& epilogue;
    Number* output;
    Index block = groups.wide ? 2 * wide_block() : small_block;
    Index taps = shape.y.taps * shape.x.taps;
    Index of_factors = taps * groups.in * groups.width;  // per slice
    Strip strip{shape, groups, block, of_factors};

    // Outputs along x that are computed together for two vectors of channels of a wide group; twice as many for one vector.
    Index wide_block() const {
        return round_up(shape.x.out_size, small_block) < round_up(shape.x.out_size, long_block) ? small_block : long_block;
    }

    // Rows of outputs of a slice: their inputs, the weights of the slice, the row of the image where the first windows begin,
    // the number of rows, and the first pixel and channel of the outputs.
    struct Band {
        const float *strip, *factors;
        Index in_y, rows, pixel, channel;
    };
    using BandFunction = void (Pass::*)(Band) const;

    // Rows `first` to `last` of image `number`, of slices `begin` to `end`; `memory`: room for a strip and the weights of
    // its slices. `simple` is for small groups whose outputs fill vectors, without residuals.
    void rows(Index number, Index first, Index last, Index begin, Index end, float* memory, BandFunction simple,
              BandFunction any) const {
        const Number* image = input + number * shape.y.size * shape.x.size * shape.in_step;
        float* const factors = memory + strip.size;
        strip.fill_padding(memory);
        for (; begin < end; begin += strip.slices) {
            const Index count = min(strip.slices, end - begin), channel = begin * groups.slice;
            for (Index slice = 0; slice < count; ++slice)
                pack(channel + slice * groups.slice, factors + slice * of_factors);
            Index there = 0;  // the first row of the image that is not in the strip
            for (Index y = first; y < last; y += strip.out_rows) {
                const Index here = min(strip.out_rows, last - y), in_y = y * shape.y.stride - shape.y.pad;
                const Index bottom = min(in_y + (here - 1) * shape.y.stride + span(shape.y), shape.y.size);
                const Index top = max(in_y, 0);
                if (there > top)  // the rows that the last band reads, too
                    std::memmove(memory + (top - in_y) * strip.of_row,
                                 memory + (top - in_y + strip.out_rows * shape.y.stride) * strip.of_row,
                                 (there - top) * strip.of_row * sizeof(float));
                there = max(there, top);
                strip.fill(image, there, bottom, channel, count, memory + (there - in_y) * strip.of_row);
                there = bottom;
                for (Index slice = 0; slice < count; ++slice) {
                    const Index own = channel + slice * groups.slice;
                    const bool whole = groups.made == lanes && own + groups.slice <= shape.out_channels;
                    (this->*(whole && !epilogue.residual ? simple : any))(
                        {memory + slice * strip.of_slice, factors + slice * of_factors, in_y, here,
                         (number * shape.y.out_size + y) * shape.x.out_size, own});
                }
            }
        }
    }

    // Copies the weights of the slice from `channel` on to (panel of a wide group, tap, input in group, output).
    void pack(Index channel, float* to) const {
        const Index panel = groups.wide ? NR : groups.width, apart = groups.wide ? lanes : groups.made;
        const Index end = min(channel + groups.slice, shape.out_channels);
        for (Index done = 0; done < groups.width; done += panel, channel += panel / lanes * apart) {
            const float* from = weights + channel;
            for (Index step = 0; step < taps * groups.in; ++step, from += shape.out_channels)
                for (Index first = 0; first < min(panel, groups.width - done) / lanes * apart; first += apart, to += lanes)
                    store(to, load_up_to(from + first, min(end - channel - first, apart)));
        }
    }

    // For `taps` neighboring taps, in groups of one or several channels. Inputs shared by neighboring outputs are read once.
    template <int taps, int stride, bool several, bool simple>
    [[gnu::noinline]] void band_of(Band band) const {
        constexpr Index reach = (small_block - 1) * stride + taps;
        each_small_block<several, simple>(
            band, stride,
            [](const float* pixels, Index of_vector, const float* weight, Index between, Bits places, auto& sums)
                __attribute__((always_inline)) {
#pragma GCC unroll 32
                    for (Index place = 0; place < reach; ++place)
#pragma GCC unroll 4
                        for (Index part = 0; part < vectors; ++part) {
                            Vector pixel = load(pixels + part * of_vector + place * lanes);
                            if constexpr (several) pixel = permute(pixel, places);
#pragma GCC unroll 8
                            for (Index one = 0; one < small_block; ++one)
                                if (place >= one * stride && place < one * stride + taps)
                                    sums[one][part] += pixel * load(weight + (place - one * stride) * between + part * lanes);
                        }
                });
    }

    // For any number of taps, stride and dilation.
    template <bool several, bool simple>
    [[gnu::noinline]] void band_of_any(Band band) const {
        const Index taps = shape.x.taps, stride = shape.x.stride, apart = shape.x.dilation * lanes;
        each_small_block<several, simple>(
            band, stride,
            [=](const float* pixels, Index of_vector, const float* weight, Index between, Bits places, auto& sums)
                __attribute__((always_inline)) {
                    for (Index tap = 0; tap < taps; ++tap, pixels += apart, weight += between)
#pragma GCC unroll 4
                        for (Index part = 0; part < vectors; ++part) {
                            const Vector factor = load(weight + part * lanes);
#pragma GCC unroll 8
                            for (Index one = 0; one < small_block; ++one) {
                                Vector pixel = load(pixels + part * of_vector + one * stride * lanes);
                                if constexpr (several) pixel = permute(pixel, places);
                                sums[one][part] += pixel * factor;
                            }
                        }
                });
    }

    // For each block, calls `add_row(pixels, of_vector, weight, between, places, sums)` for each row of taps and each input of
    // a group. `between`: distance between the weights of two taps, in numbers.
    template <bool several, bool simple, class AddRow>
    ALWAYS_INLINE void each_small_block(Band band, Index stride, AddRow add_row) const {
        const Index inputs = several ? groups.in : 1, between = inputs * vectors * lanes, of_taps = shape.x.taps * between;
        const Index of_vector = strip.of_vector;
        const float* const factors = band.factors;
        each_block<small_block, vectors, simple>(
            band, stride, groups.made, shape.out_channels - band.channel,
            [=, this](const float* pixels, Index i, auto& sums) __attribute__((always_inline)) {
                const float* const weight = factors + i * of_taps;
                for (Index number = 0; number < inputs; ++number)
                    add_row(pixels, of_vector, weight + number * vectors * lanes, between, groups.places[number], sums);
            });
    }

    // For a wide group. `stride`: the stride along x, or 0 for any.
    template <Index block, int stride>
    void band_of_wide(Band band) const {
        for (Index done = 0; done < groups.out; done += NR, band.channel += NR, band.factors += taps * groups.in * NR) {
            const Index left = groups.out - done;
            if (left > lanes)
                panel_of<block, 2, stride>(band, left);
            else if (shape.x.out_size > block)
                panel_of<2 * block, 1, stride>(band, left);
            else
                panel_of<block, 1, stride>(band, left);
        }
    }

    template <Index block, Index width, int fixed>
    [[gnu::noinline]] void panel_of(Band band, Index left) const {
        const Index stride = fixed ? fixed : shape.x.stride, of_vector = strip.of_vector, in = groups.in;
        const Index taps = shape.x.taps, apart = shape.x.dilation * lanes;
        const float* const factors = band.factors;
        each_block<block, width, false>(
            band, stride, lanes, left, [=](const float* pixels, Index i, auto& sums) __attribute__((always_inline)) {
                const float* weight = factors + i * taps * in * width * lanes;
                for (Index tap = 0; tap < taps; ++tap, pixels += apart)
                    for (Index done = 0; done < in; done += lanes) {
                        const float* from = pixels + done / lanes * of_vector;
                        for (Index k = 0; k < min(lanes, in - done); ++k, ++from, weight += width * lanes) {
                            Vector factor[width];
#pragma GCC unroll 2
                            for (Index part = 0; part < width; ++part) factor[part] = load(weight + part * lanes);
#pragma GCC unroll 16
                            for (Index one = 0; one < block; ++one)
#pragma GCC unroll 2
                                for (Index part = 0; part < width; ++part)
                                    sums[one][part] += from[one * stride * lanes] * factor[part];
                        }
                    }
            });
    }

    // For every `block` outputs of a line, calls `add_row(pixels, i, sums)` for each row of taps, then the epilogue. `apart`:
    // distance between vectors, of `left` channels, in channels.
    template <Index block, Index width, bool simple, class AddRow>
    ALWAYS_INLINE void each_block(Band band, Index stride, Index apart, Index left, AddRow add_row) const {
        const Index out_size = shape.x.out_size, size = shape.y.size, taps = shape.y.taps, dilation = shape.y.dilation;
        Epilogue after = epilogue;
        if (simple) after.residual = nullptr;
        const bool later = after.in_two_passes();
        VectorEpilogue<Number> epilogues[width];
        Vector starts[width];
        for (Index part = 0; part < width; ++part) {
            const Index count = simple ? lanes : min(apart, left - part * apart);
            epilogues[part] = {after, output, shape.out_step, band.pixel, band.channel + part * apart, count, out_size};
            starts[part] = epilogues[part].bias;
            if (later) epilogues[part].bias = Vector{};  // the sums include the bias
        }
        const Index next = dilation * strip.of_row;
        for (Index y = 0; y < band.rows; ++y) {
            const Index in_y = band.in_y + y * shape.y.stride;
            const Index begin = in_y < 0 ? ceil_div(-in_y, dilation) : 0;
            const Index end = in_y + span(shape.y) > size ? min(ceil_div(size - in_y, dilation), taps) : taps;
            const float* from = band.strip + y * shape.y.stride * strip.of_row;
            for (Index x = 0; x < out_size; x += block, from += block * stride * lanes) {
                Vector sums[block][width];
#pragma GCC unroll 16
                for (Index one = 0; one < block; ++one)
#pragma GCC unroll 4
                    for (Index part = 0; part < width; ++part) sums[one][part] = starts[part];
                for (Index i = begin; i < end; ++i) add_row(from + i * next, i, sums);
                if (later) {
                    float kept[block * width * lanes];
#pragma GCC unroll 16
                    for (Index one = 0; one < block; ++one)
#pragma GCC unroll 4
                        for (Index part = 0; part < width; ++part)
                            store(kept + (one * width + part) * lanes, sums[one][part]);
                    for (Index part = 0; part < width; ++part)
                        epilogues[part].finish(kept + part * lanes, width * lanes, min(block, out_size - x), x, y);
                    continue;
                }
#pragma GCC unroll 16
                for (Index one = 0; one < block; ++one) {
                    if (x + one >= out_size) break;
#pragma GCC unroll 4
                    for (Index part = 0; part < width; ++part) epilogues[part].store(sums[one][part], x + one, y);
                }
            }
        }
    }

    struct Functions {
        BandFunction simple, any;
    };

    Functions functions() const {
        if (groups.wide) return block == 2 * small_block ? wide_functions<small_block>() : wide_functions<long_block>();
        return max(groups.in, groups.out) > 1 ? small_functions<true>() : small_functions<false>();
    }

    template <Index block>
    Functions wide_functions() const {
        const BandFunction function = shape.x.stride == 1   ? &Pass::band_of_wide<block, 1>
                                  : shape.x.stride == 2 ? &Pass::band_of_wide<block, 2>
                                                        : &Pass::band_of_wide<block, 0>;
        return {function, function};
    }

    template <bool several>
    Functions small_functions() const {
        const Index taps = shape.x.dilation == 1 ? shape.x.taps : 0, stride = shape.x.stride;
        if (taps == 3 && stride == 1) return {&Pass::band_of<3, 1, several, true>, &Pass::band_of<3, 1, several, false>};
        if (taps == 3 && stride == 2) return {&Pass::band_of<3, 2, several, true>, &Pass::band_of<3, 2, several, false>};
        return {&Pass::band_of_any<several, true>, &Pass::band_of_any<several, false>};
    }
};

template <class Number>
void compute(const Window& shape, Index count, const void* input, const float* weights, const Epilogue& epilogue, void* output,
             int threads) {
    const Groups groups(shape.in_channels / count, shape.out_channels / count);
    const Pass<Number> pass{shape,    groups, static_cast<const Number*>(input), weights, epilogue,
                            static_cast<Number*>(output)};
    const auto functions = pass.functions();
    const Index own = pass.strip.size + pass.strip.slices * pass.of_factors;
    float* const memory = scratch(threads * own);
    // Each image is divided into several pieces per thread: into slices or, if these are few, into bands of rows. There are no
    // more bands than needed, because inputs shared by two bands are read twice.
    const Index wanted = threads == 1 ? 1 : ceil_div(4 * threads, shape.batch);
    const Index all = pass.groups.slices(shape.out_channels);
    const bool by_slices = all >= 2 * wanted;
    const Index pieces = by_slices ? wanted : min(wanted, shape.y.out_size);
    const Index bands = by_slices ? 1 : pieces, shares = by_slices ? pieces : 1;
    parallel_for(shape.batch * pieces, threads, [&](Index number, int thread) {
        const Index image = number / pieces, band = number % bands, share = number % shares;
        const Index first = shape.y.out_size * band / bands, last = shape.y.out_size * (band + 1) / bands;
        const Index begin = all * share / shares, end = all * (share + 1) / shares;
        pass.rows(image, first, last, begin, end, memory + thread * own, functions.simple, functions.any);
    });
}

}  // namespace

void grouped(const Window& shape, std::ptrdiff_t count, const void* input, const float* weights, const Epilogue& epilogue,
             void* output, bool narrow, int threads) {
    if (shape.batch == 0) return;
    if (has_depthwise_kernel(shape, count)) return depthwise(shape, input, weights, epilogue, output, narrow, threads);
    (narrow ? compute<BFloat16> : compute<float>)(shape, count, input, weights, epilogue, output, threads);
}

}  // namespace svertka::INSTRUCTIONS
