// Depthwise convolution. Vectors hold neighboring channels. For a few outputs of a line, one vector of channels after
// another is computed: the pixels that it reads are consecutive in memory, and its sums and a row of weights stay in
// registers. Pixels are read in place; those of the padding are skipped.
#include "../parallel.h"
#include "../vector_epilogue.h"
#include "depthwise.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Weights, in floats, that stay in the L1 cache while a band of rows is computed.
constexpr Index weights_room = 4096;

// Whether two lines of outputs are computed together, so that what both read is loaded once; needs registers for their sums.
constexpr bool has_pairs = lanes == 16;

// Some neighboring outputs of a line, or of two.
template <class Number>
struct Outputs {
    const Number* pixels;  // what the first row of taps reads for the first output, at the first channel
    const float* weights;  // of the first row of taps, at the first channel
    Index first, last;     // rows of taps in the image; for two lines, rows of the image from that of `pixels` on
    std::uint32_t inside;  // bit i: whether the pixel i to the right of `pixels` is in the image
    Index pixel, count;    // the first output, and how many there are
    Index channel, end;    // the channels
};

template <class Number>
struct Depthwise {
    const Window& shape;
    const Number* input;
    const float* weights;
    const Epilogue& epilogue;
    Number* output;

    // Adds what a line of the image contributes to the outputs of `count` lines from `first` on, by the row of taps at
    // `weights` for the first of them and by the row before for the next; `left`: channels of a vector, `whole`: all of them.
    template <int taps, int stride, bool whole, int first, int count, int lines, int block>
    ALWAYS_INLINE static void add_line(Vector (&sums)[lines][block], const Number* pixel, const float* weights,
                                       std::uint32_t inside, Index step, Index channels, Index left) {
        Vector factors[count][taps];
#pragma GCC unroll 2
        for (int line = 0; line < count; ++line)
#pragma GCC unroll 8
            for (int tap = 0; tap < taps; ++tap) {
                const float* const from = weights + (tap - line * taps) * channels;
                factors[line][tap] = whole ? load(from) : load_partial(from, left);
            }
#pragma GCC unroll 32
        for (int place = 0; place < (block - 1) * stride + taps; ++place, pixel += step) {
            if (!(inside >> place & 1)) continue;
            const Vector value = whole ? load(pixel) : load_partial(pixel, left);
#pragma GCC unroll 2
            for (int line = 0; line < count; ++line)
#pragma GCC unroll 8
                for (int one = 0; one < block; ++one)
                    if (place >= one * stride && place < one * stride + taps)
                        sums[first + line][one] += value * factors[line][place - one * stride];
        }
    }

    template <int taps, int stride, int block, int lines>
    [[gnu::noinline]] void compute(const Outputs<Number>& given) const {
        const Index step = shape.in_step, down = shape.y.dilation * shape.x.size * step, channels = shape.out_channels;
        const Index of_taps = taps * channels, width = shape.x.out_size;
        const Epilogue after = epilogue;
        const bool later = after.in_two_passes();
        const Outputs<Number> outputs = given;
        const Number* from = outputs.pixels;
        const float* by = outputs.weights;
        const auto compute_vector = [&](Index channel, Index left, auto is_whole) __attribute__((always_inline)) {
            constexpr bool whole = is_whole;
            const Vector bias = after.bias ? load_up_to(after.bias + channel, left) : Vector{};
            Vector sums[lines][block];
#pragma GCC unroll 2
            for (int line = 0; line < lines; ++line)
#pragma GCC unroll 8
                for (int one = 0; one < block; ++one) sums[line][one] = bias;
            const auto add = [&]<int first, int count>(Index row, Index taps_row) __attribute__((always_inline)) {
                add_line<taps, stride, whole, first, count>(sums, from + row * down, by + taps_row * of_taps, outputs.inside,
                                                            step, channels, left);
            };
            if constexpr (lines == 1) {
                for (Index row = outputs.first; row < outputs.last; ++row) add.template operator()<0, 1>(row, row);
            } else {
                if (outputs.first == 0) add.template operator()<0, 1>(0, 0);
#pragma GCC unroll 8
                for (int row = 1; row < taps; ++row) add.template operator()<0, 2>(row, row);
                if (outputs.last > taps) add.template operator()<1, 1>(taps, taps - 1);
            }
#pragma GCC unroll 2
            for (int line = 0; line < lines; ++line) {
                const Index pixel = outputs.pixel + line * width;
                if (later) {
                    float kept[block * lanes];
#pragma GCC unroll 8
                    for (int one = 0; one < block; ++one) svertka::INSTRUCTIONS::store(kept + one * lanes, sums[line][one]);
                    VectorEpilogue<Number> last{after, output, shape.out_step, pixel, channel, left};
                    last.bias = Vector{};  // the sums include it
                    last.finish(kept, lanes, outputs.count, 0);
                    continue;
                }
                Number* const to = output + pixel * shape.out_step + channel;
                const Number* residual = static_cast<const Number*>(after.residual);
                if (residual) residual += pixel * after.residual_step + channel;
#pragma GCC unroll 8
                for (int one = 0; one < block; ++one) {
                    if (one >= outputs.count) break;
                    if (residual) sums[line][one] += load_up_to(residual + one * after.residual_step, left);
                    const Vector result = clamp(sums[line][one], after.low, after.high);
                    if (whole)
                        svertka::INSTRUCTIONS::store(to + one * shape.out_step, result);
                    else
                        store_partial(to + one * shape.out_step, result, left);
                }
            }
        };
        Index channel = outputs.channel;
        for (; channel + lanes <= outputs.end; channel += lanes, from += lanes, by += lanes)
            compute_vector(channel, lanes, std::true_type{});
        if (channel < outputs.end) compute_vector(channel, outputs.end - channel, std::false_type{});
    }

    using Function = void (Depthwise::*)(const Outputs<Number>&) const;

    // Lines of common networks have 7, 14, 28, 56 or 112 outputs.
    static constexpr Index long_block = 7, short_block = 4;

    // Of a long or a short block of outputs, in one line and in two.
    struct Functions {
        Function of_long, of_short, of_two_long = nullptr, of_two_short = nullptr;
    };

    template <int taps, int stride>
    static constexpr Functions functions_of() {
        if constexpr (has_pairs && taps == 3 && stride == 1)
            return {&Depthwise::compute<3, 1, long_block, 1>, &Depthwise::compute<3, 1, short_block, 1>,
                    &Depthwise::compute<3, 1, long_block, 2>, &Depthwise::compute<3, 1, short_block, 2>};
        else
            return {&Depthwise::compute<taps, stride, long_block, 1>, &Depthwise::compute<taps, stride, short_block, 1>};
    }

    Functions functions() const {
        const Index taps = shape.x.taps, stride = shape.x.stride;
        if (taps == 3) return stride == 1 ? functions_of<3, 1>() : functions_of<3, 2>();
        if (taps == 5) return stride == 1 ? functions_of<5, 1>() : functions_of<5, 2>();
        return stride == 1 ? functions_of<7, 1>() : functions_of<7, 2>();
    }

    // Rows `first` to `last` of image `number`, of channels `begin` to `end`.
    void rows(Index number, Index first, Index last, Index begin, Index end, const Functions& functions) const {
        const Index room = max(weights_room / (shape.y.taps * shape.x.taps) / lanes, 1) * lanes;
        const Index parts = ceil_div(end - begin, room), part = ceil_div(ceil_div(end - begin, parts), lanes) * lanes;
        for (; begin < end; begin += part)
            for (Index y = first, lines; y < last; y += lines) {
                lines = functions.of_two_long && y + 1 < last && are_pair(y) ? 2 : 1;
                line(number, y, lines, begin, min(begin + part, end), functions);
            }
    }

    // Whether lines y and y + 1 of outputs can be computed together: all but the first and last line that they read are in
    // the image.
    bool are_pair(Index y) const {
        const Index top = y - shape.y.pad;
        return shape.y.stride == 1 && shape.y.dilation == 1 && shape.y.taps == shape.x.taps && top >= -1 &&
               top + shape.y.taps <= shape.y.size;
    }

    void line(Index number, Index y, Index lines, Index begin, Index end, const Functions& functions) const {
        const TapsInside inside(shape.y, y);
        const Index out_size = shape.x.out_size;
        const Number* const from = input + (number * shape.y.size + inside.start) * shape.x.size * shape.in_step + begin;
        const Index last = lines == 1 ? inside.last : min(shape.y.size - inside.start, shape.y.taps + 1);
        for (Index x = 0, block; x < out_size; x += block) {
            block = out_size - x > short_block ? long_block : short_block;
            const Index in_x = x * shape.x.stride - shape.x.pad;
            std::uint32_t there = 0;
            for (Index place = max(-in_x, 0); place < min(shape.x.size - in_x, 32); ++place) there |= 1u << place;
            const Outputs<Number> outputs{.pixels = from + in_x * shape.in_step,
                                          .weights = weights + begin,
                                          .first = inside.first,
                                          .last = last,
                                          .inside = there,
                                          .pixel = (number * shape.y.out_size + y) * out_size + x,
                                          .count = min(block, out_size - x),
                                          .channel = begin,
                                          .end = end};
            const Function one = block == long_block ? functions.of_long : functions.of_short;
            const Function two = block == long_block ? functions.of_two_long : functions.of_two_short;
            (this->*(lines == 1 ? one : two))(outputs);
        }
    }
};

template <class Number>
void compute(const Window& shape, const void* input, const float* weights, const Epilogue& epilogue, void* output,
             int threads) {
    const Depthwise<Number> pass{shape, static_cast<const Number*>(input), weights, epilogue, static_cast<Number*>(output)};
    const auto functions = pass.functions();
    // The work is divided by lines, or by channels if these give more equal shares.
    const Index height = shape.y.out_size, lines = shape.batch * height, vectors = ceil_div(shape.out_channels, lanes);
    const auto largest = [=](Index count) { return static_cast<double>(ceil_div(count, threads)) / static_cast<double>(count); };
    const bool by_lines = largest(lines) <= largest(vectors);
    parallel_for(threads, threads, [&](Index number, int) {
        const Index all = by_lines ? lines : vectors;
        const Index begin = all * number / threads, end = all * (number + 1) / threads;
        const Index channel = by_lines ? 0 : begin * lanes;
        const Index last_channel = by_lines ? shape.out_channels : min(end * lanes, shape.out_channels);
        if (channel >= last_channel) return;
        for (Index first = by_lines ? begin : 0, last = by_lines ? end : lines, next; first < last; first = next) {
            const Index image = first / height;
            next = min(last, (image + 1) * height);
            pass.rows(image, first - image * height, next - image * height, channel, last_channel, functions);
        }
    });
}

}  // namespace

bool has_depthwise_kernel(const Window& shape, Index groups) {
    const Index taps = shape.x.taps, stride = shape.x.stride;
    return groups == shape.in_channels && groups == shape.out_channels && shape.x.dilation == 1 && stride <= 2 &&
           (taps == 3 || taps == 5 || taps == 7);
}

void depthwise(const Window& shape, const void* input, const float* weights, const Epilogue& epilogue, void* output,
               bool narrow, int threads) {
    (narrow ? compute<BFloat16> : compute<float>)(shape, input, weights, epilogue, output, threads);
}

}  // namespace svertka::INSTRUCTIONS
