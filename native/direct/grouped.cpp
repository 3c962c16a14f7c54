// Grouped convolution with small groups, down to depthwise.
//
// A vector holds neighbouring output channels, of one group or of several whole ones, and another one their inputs. What
// number i of a group's inputs gives to them is, for each tap, one product of vectors: the weights times the input channels
// with the i-th of each group in all places of its outputs. With groups of one channel these are the input's channels as
// they lie; else they change places. Where groups do not fill a vector, the last places are not used.
#include <omp.h>

#include <cstring>

#include "../vector_epilogue.h"
#include "../scratch.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Channels that are computed together: a cache line, and at least one vector.
constexpr Index chunk_width = max(lanes, 16), vectors = chunk_width / lanes;

// Outputs in x that share what they read; networks for photographs have lines of 7, 14, 28, 56 and 112.
constexpr Index outputs_per_block = MR > 7 ? 7 : 4;

// Values of a strip: about the size of the first-level cache.
constexpr Index room = 8192;

// Groups of `in` input and `out` output channels.
struct Groups {
    Index in, out;
    Index made = lanes / max(in, out) * out;  // outputs in a vector: of as many groups as it holds, and one of inputs
    Index chunk = vectors * made;              // outputs that are computed together
    Bits places[lanes] = {};  // where in a vector of inputs the outputs in its places find input `number` of their group

    Groups(Index in, Index out) : in(in), out(out) {
        for (Index number = 0; number < in; ++number)
            for (Index lane = 0; lane < made; ++lane)
                places[number][lane] = static_cast<std::uint32_t>(lane / out * in + number);
    }

    // The first input channel that a vector of outputs from `channel` on reads; it reads the next `lanes` at most.
    Index source(Index channel) const { return channel / out * in; }
};

inline Index span(const WindowAxis& axis) { return (axis.taps - 1) * axis.dilation + 1; }

// Some lines of a image, what a chunk of outputs reads of them and the zeros on the left and right, side by side: in the
// image these lie so far apart that they displace one another in the cache.
struct Strip {
    const Window& shape;
    Groups groups;
    Index width = (ceil_div(shape.x.out_size, outputs_per_block) * outputs_per_block - 1) * shape.x.stride + span(shape.x);
    // Lines of outputs for which there is room.
    Index lines = max((room / (width * chunk_width) - span(shape.y)) / shape.y.stride + 1, 1);
    Index size = ((lines - 1) * shape.y.stride + span(shape.y)) * width * chunk_width;

    // Lines `first` to `last`, those of them that there are, for the output channels from `channel` on; zeros in place of
    // channels that are not there.
    void fill(const float* image, Index first, Index last, Index channel, float* to) const {
        const Index before = shape.x.pad, there = max(min(width - before, shape.x.size), 0), step = shape.in_step;
        const bool simple = groups.in == groups.out && groups.made == lanes && channel + chunk_width <= shape.in_channels;
        for (Index y = first; y < last; ++y, to += width * chunk_width) {
            if (y < 0 || y >= shape.y.size) continue;
            const float* from = image + y * shape.x.size * step;
            std::memset(to, 0, min(before, width) * chunk_width * sizeof(float));
            float* pixel = to + before * chunk_width;
            if (simple)
                for (Index x = 0; x < there; ++x, from += step, pixel += chunk_width)
#pragma GCC unroll 4
                    for (Index part = 0; part < chunk_width; part += lanes) store(pixel + part, load(from + channel + part));
            else
                for (Index x = 0; x < there; ++x, from += step, pixel += chunk_width)
                    for (Index part = 0; part < chunk_width; part += lanes) {
                        const Index source = groups.source(channel + part / lanes * groups.made);
                        store(pixel + part, load_up_to(from + source, shape.in_channels - source));
                    }
            std::memset(pixel, 0, max(width - before - there, 0) * chunk_width * sizeof(float));
        }
    }
};

struct Pass {
    const Window& shape;
    Groups groups;
    const float *input, *weights;
    const Epilogue& epilogue;
    float* output;
    Strip strip{shape, groups};
    Index of_factors = shape.y.taps * shape.x.taps * groups.in * chunk_width;

    // A line of outputs of a chunk of channels, whose windows begin at line `in_y` of the image and at `from`.
    using Line = void (Pass::*)(const float* from, const float* factors, Index in_y, Index pixel, Index channel) const;

    // Lines `first` to `last` of image `number`, of channels `begin` to `end`; `memory`: room for a strip and the weights
    // of its channels. `simple` is for channels that are all there, where nothing is added.
    void lines(Index number, Index first, Index last, Index begin, Index end, float* memory, Line simple,
               Line any) const {
        const float* image = input + number * shape.y.size * shape.x.size * shape.in_step;
        float* const factors = memory + strip.size;
        const Index stride = shape.y.stride;
        for (Index channel = begin; channel < end; channel += groups.chunk) {
            const Index count = shape.out_channels - channel;
            for (Index tap = 0; tap < of_factors / chunk_width; ++tap)
                for (Index part = 0; part < vectors; ++part) {
                    const Index first = part * groups.made;
                    store(factors + tap * chunk_width + part * lanes,
                          load_up_to(weights + tap * shape.out_channels + channel + first, count - first));
                }
            const Line line = groups.made == lanes && count >= chunk_width && !epilogue.residual ? simple : any;
            for (Index top = first; top < last; top += strip.lines) {
                const Index bottom = min(top + strip.lines, last), in_top = top * stride - shape.y.pad;
                strip.fill(image, in_top, (bottom - 1) * stride - shape.y.pad + span(shape.y), channel, memory);
                for (Index y = top; y < bottom; ++y) {
                    const Index in_y = y * stride - shape.y.pad, pixel = (number * shape.y.out_size + y) * shape.x.out_size;
                    (this->*line)(memory + (in_y - in_top) * strip.width * chunk_width, factors, in_y, pixel, channel);
                }
            }
        }
    }

    // For `taps` side by side, in groups of one or of several channels. What two outputs side by side read is read once.
    template <int taps, int stride, bool several, bool simple>
    [[gnu::noinline]] void line_of(const float* from, const float* factors, Index in_y, Index pixel, Index channel) const {
        constexpr Index reach = (outputs_per_block - 1) * stride + taps;
        each_block<several, simple>(
            from, factors, in_y, pixel, channel, stride,
            [](const float* pixels, const float* weight, Index between, Bits places, auto& sums)
                __attribute__((always_inline)) {
#pragma GCC unroll 32
                    for (Index place = 0; place < reach; ++place)
#pragma GCC unroll 4
                        for (Index part = 0; part < vectors; ++part) {
                            Vector one_pixel = load(pixels + place * chunk_width + part * lanes);
                            if constexpr (several) one_pixel = permute(one_pixel, places);
#pragma GCC unroll 8
                            for (Index one = 0; one < outputs_per_block; ++one)
                                if (place >= one * stride && place < one * stride + taps)
                                    sums[one][part] +=
                                        one_pixel * load(weight + (place - one * stride) * between + part * lanes);
                        }
                });
    }

    // For any number of taps, stride and dilation.
    template <bool several, bool simple>
    [[gnu::noinline]] void line_of_any(const float* from, const float* factors, Index in_y, Index pixel,
                                       Index channel) const {
        const Index taps = shape.x.taps, stride = shape.x.stride, apart = shape.x.dilation * chunk_width;
        each_block<several, simple>(
            from, factors, in_y, pixel, channel, stride,
            [=](const float* pixels, const float* weight, Index between, Bits places, auto& sums)
                __attribute__((always_inline)) {
                    for (Index tap = 0; tap < taps; ++tap, pixels += apart, weight += between)
#pragma GCC unroll 4
                        for (Index part = 0; part < vectors; ++part) {
                            const Vector factor = load(weight + part * lanes);
#pragma GCC unroll 8
                            for (Index one = 0; one < outputs_per_block; ++one) {
                                Vector one_pixel = load(pixels + one * stride * chunk_width + part * lanes);
                                if constexpr (several) one_pixel = permute(one_pixel, places);
                                sums[one][part] += one_pixel * factor;
                            }
                        }
                });
    }

    // For every few outputs of a line, `add_row(pixels, weight, between, places, sums)` for each of their rows of taps and
    // each input of a group, then the ending. `between`: numbers from one tap's weights to the next.
    template <bool several, bool simple, class AddRow>
    ALWAYS_INLINE void each_block(const float* from, const float* factors, Index in_y, Index pixel, Index channel,
                                  Index stride, AddRow add_row) const {
        const Index out_size = shape.x.out_size, of_line = strip.width * chunk_width * shape.y.dilation;
        const Index begin = in_y < 0 ? ceil_div(-in_y, shape.y.dilation) : 0;
        const Index end = in_y < shape.y.size ? min(ceil_div(shape.y.size - in_y, shape.y.dilation), shape.y.taps) : 0;
        const Index inputs = several ? groups.in : 1, between = inputs * chunk_width, of_row = shape.x.taps * between;
        Epilogue after = epilogue;
        if (simple) after.residual = nullptr;
        const bool later = after.in_two_passes();
        VectorEpilogue<float> epilogues[vectors];
        for (Index part = 0; part < vectors; ++part) {
            const Index first = channel + part * groups.made;
            const Index count = simple ? lanes : min(groups.made, shape.out_channels - first);
            epilogues[part] = {after, output, shape.out_step, pixel, first, count};
        }
        for (Index x = 0; x < out_size; x += outputs_per_block, from += outputs_per_block * stride * chunk_width) {
            Vector sums[outputs_per_block][vectors];
#pragma GCC unroll 8
            for (Index one = 0; one < outputs_per_block; ++one)
#pragma GCC unroll 4
                for (Index part = 0; part < vectors; ++part) sums[one][part] = epilogues[part].bias;
            for (Index i = begin; i < end; ++i)
                for (Index number = 0; number < inputs; ++number)
                    add_row(from + i * of_line, factors + i * of_row + number * chunk_width, between, groups.places[number],
                            sums);
            if (later) {
                Vector kept[outputs_per_block][vectors];
#pragma GCC unroll 8
                for (Index one = 0; one < outputs_per_block; ++one)
#pragma GCC unroll 4
                    for (Index part = 0; part < vectors; ++part) kept[one][part] = sums[one][part];
                for (Index one = 0; one < min(outputs_per_block, out_size - x); ++one)
                    for (Index part = 0; part < vectors; ++part) epilogues[part].finish(kept[one][part], x + one);
                continue;
            }
#pragma GCC unroll 8
            for (Index one = 0; one < outputs_per_block; ++one) {
                if (x + one >= out_size) break;
#pragma GCC unroll 4
                for (Index part = 0; part < vectors; ++part) epilogues[part].store(sums[one][part], x + one);
            }
        }
    }

    struct Lines {
        Line simple, any;
    };

    template <bool several>
    Lines lines_of() const {
        const bool square = shape.y.taps == shape.x.taps && shape.y.stride == shape.x.stride && shape.x.dilation == 1;
        const Index taps = square ? shape.x.taps : 0, stride = shape.x.stride;
        if (taps == 3 && stride == 1) return {&Pass::line_of<3, 1, several, true>, &Pass::line_of<3, 1, several, false>};
        if (taps == 3 && stride == 2) return {&Pass::line_of<3, 2, several, true>, &Pass::line_of<3, 2, several, false>};
        if constexpr (!several) {
            if (taps == 5 && stride == 1) return {&Pass::line_of<5, 1, false, true>, &Pass::line_of<5, 1, false, false>};
            if (taps == 5 && stride == 2) return {&Pass::line_of<5, 2, false, true>, &Pass::line_of<5, 2, false, false>};
            if (taps == 7 && stride == 1) return {&Pass::line_of<7, 1, false, true>, &Pass::line_of<7, 1, false, false>};
        }
        return {&Pass::line_of_any<several, true>, &Pass::line_of_any<several, false>};
    }
};

}  // namespace

bool computes_groups(Index in, Index out) { return max(in, out) <= lanes; }

void grouped(const Window& shape, std::ptrdiff_t count, const float* input, const float* weights, const Epilogue& epilogue,
             float* output, int threads) {
    if (shape.batch == 0) return;
    const Pass pass{shape, Groups(shape.in_channels / count, shape.out_channels / count), input, weights, epilogue, output};
    const bool several = max(pass.groups.in, pass.groups.out) > 1;
    const Pass::Lines lines = several ? pass.lines_of<true>() : pass.lines_of<false>();
    const Index own = pass.strip.size + pass.of_factors;
    float* const memory = scratch(threads * own);
    // Some pieces of each image for every thread: channels, or where these are few bands of lines, but not more than
    // needed, since what two of them read is read twice.
    const Index wanted = threads == 1 ? 1 : ceil_div(4 * threads, shape.batch), chunk = pass.groups.chunk;
    const Index all = ceil_div(shape.out_channels, chunk);
    const bool by_channels = all >= 2 * wanted;
    const Index pieces = by_channels ? wanted : min(wanted, shape.y.out_size);
    const Index bands = by_channels ? 1 : pieces, shares = by_channels ? pieces : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < shape.batch * pieces; ++number) {
        const Index image = number / pieces, band = number % bands, share = number % shares;
        const Index first = shape.y.out_size * band / bands, last = shape.y.out_size * (band + 1) / bands;
        const Index begin = all * share / shares * chunk, end = all * (share + 1) / shares * chunk;
        pass.lines(image, first, last, begin, end, memory + omp_get_thread_num() * own, lines.simple, lines.any);
    }
}

}  // namespace svertka::INSTRUCTIONS
