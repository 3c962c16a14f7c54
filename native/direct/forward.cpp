// Convolution with any kernel as an implicit GEMM: row i of A holds the window of output pixel i.
//
// Images with few channels, as in a network's first layer, are read in place, one line at a time. Otherwise rows are
// gathered in blocks (im2col.h). A block is multiplied by one panel of output channels after another, so that the panel's
// weights stay in the L1 cache for all rows of the block.
#include <cstring>

#include "../parallel.h"
#include "../row_blocks.h"
#include "../vector_epilogue.h"
#include "im2col.h"

namespace svertka::INSTRUCTIONS {
namespace {

// KC: steps of k accumulated in registers before the sum is added to memory. Long sums lose precision, and KC rows of a
// panel's weights fit in the L1 cache.
constexpr Index KC = 192;

// How many channels a panel's last vector has: all, less, or at most half of them.
enum class Width { whole, part, half };

// The tensors, sizes and steps of one call. `Factor`: the type that is multiplied. `Number`: that of the input, floats or pairs
// of bfloat16, which `shape` then counts as channels. `Result`: that of the output and the residual.
template <class FactorType, class NumberType = float, class Result = float>
struct Pass {
    using Factor = FactorType;
    using Number = NumberType;
    using Sum = float;

    const Window& shape;
    const Epilogue& epilogue;
    const Number* input;
    const Factor* weights;
    const Pair* narrow;  // bfloat16 weights to convert, instead of `weights`
    Result* output;
    Gate gate{};
    Im2col<Factor, Number> windows{shape, input, gate};
    Index depth = windows.depth, steps = windows.steps, panels = ceil_div(shape.out_channels, NR);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;

    void set_padding(float* memory) {
        std::memset(memory, 0, shape.in_channels * sizeof(float));
        windows.zeros = reinterpret_cast<const Number*>(memory);
    }

    // Multiply `count` gathered rows, from row `first` on, by panel `number`.
    void multiply(Index first, Index count, const Factor* gathered, Index number, float* products) const {
        const Index channels = shape.out_channels - number * NR;
        if (channels >= NR)
            multiply_by<2, Width::whole>(first, count, gathered, number, products);
        else if (channels > lanes + half_lanes)
            multiply_by<2, Width::part>(first, count, gathered, number, products);
        else if (channels > lanes)
            multiply_by<2, half_lanes ? Width::half : Width::part>(first, count, gathered, number, products);
        else if (channels == lanes)
            multiply_by<1, Width::whole>(first, count, gathered, number, products);
        else if (channels > half_lanes)
            multiply_by<1, Width::part>(first, count, gathered, number, products);
        else
            multiply_by<1, half_lanes ? Width::half : Width::part>(first, count, gathered, number, products);
    }

    template <int vectors, Width width>
    void multiply_by(Index first, Index count, const Factor* gathered, Index number, float* products) const {
        Factor room[KC * NR];
        const Index part = ceil_div(ceil_div(steps, ceil_div(steps, KC)), lanes) * lanes;  // parts of k of about one size
        for (Index k = 0; k < steps; k += part) {
            const Index here = min(part, steps - k);
            const Factor* const a = gathered + k / lanes * MR * lanes;
            Block block{.chunk = MR * lanes,
                        .b = factors(number, k, here, room),
                        .depth = here,
                        .number = number,
                        .add = k > 0,
                        .last = k + here == steps};
            // Each row of tiles fetches its share of the next weights, which follow in memory. A single row reads
            // weights only once: fetched so far ahead, they would arrive more slowly than in order.
            const bool several_rows = count > MR;
            const Index share = several_rows ? ceil_div(NR * sizeof(Factor), ceil_div(count, MR)) : 0;
            const Factor* const next = several_rows ? weights + (number * steps + k + here) * NR : block.b;
            block.ahead = {reinterpret_cast<const char*>(next), share};
            for (Index row = 0; row < count; row += MR, block.ahead.from += here * share)
                block_of<vectors, width, lanes, MR>(min(MR, count - row), first + row,
                                                      a + row * windows.chunks * lanes, block, products + row * NR);
        }
    }

    // The weights of panel `number` for steps k to k + count: in place, or converted into `room`.
    const Factor* factors(Index number, Index k, Index count, Factor* room) const {
        if constexpr (values_per<Factor> == 1)
            if (narrow) {
                const Pair* from = narrow + (number * ceil_div(depth, 2) + k / 2) * NR;
                for (Index step = 0; step < count; step += 2)
                    for (Index half = 0; half < NR; half += lanes, from += lanes) {
                        const Bits pairs = load(from);
                        store(room + step * NR + half, first_of(pairs));
                        store(room + (step + 1) * NR + half, second_of(pairs));
                    }
                return room;
            }
        return weights + (number * steps + k) * NR;
    }

    // The arguments of a register tile; `add`: continue stored sums; `last`: apply the epilogue.
    struct Block {
        Index chunk;
        const Factor* b;
        Index depth, number, pieces = 1, piece = 0;
        bool add = false, last = true;
        Prefetch ahead{};
    };

    // A register tile of `count` rows, the first at `a`.
    template <int vectors, Width width, Index row_stride, int max_rows>
    ALWAYS_INLINE void block_of(Index count, Index pixel, const Factor* a, const Block& block, float* products) const {
        if constexpr (max_rows > 1) {
            if (count < max_rows)
                return block_of<vectors, width, row_stride, max_rows - 1>(count, pixel, a, block, products);
        }
        rows_of<vectors, width, row_stride, max_rows>(pixel, a, block, products);
    }

    // `width`: that of the panel's last vector.
    template <int vectors, Width width, Index row_stride, int count>
    [[gnu::noinline]] void rows_of(Index pixel, const Factor* a, const Block& block, float* products) const {
        constexpr bool whole = width == Width::whole;
        const Index channel = block.number * NR, left = whole ? lanes : shape.out_channels - channel - (vectors - 1) * lanes;
        const auto load_vector = [=](const auto* from, int half) __attribute__((always_inline)) {
            return whole || half < vectors - 1 ? load(from + half * lanes) : load_partial(from + half * lanes, left);
        };
        if (block.last && epilogue.residual) {
            const Result* const residual = residual_at(pixel) + channel;
            const Index step = epilogue.residual_step;
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                __builtin_prefetch(residual + row * step + half * lanes, 0, 2);
            });
        }
        // Lines of the output are read before they are written; fetching them meanwhile saves 3 % with many channels.
        if (block.last) {
            const Result* const to = output + pixel * shape.out_step + channel;
            const Index step = shape.out_step;
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                __builtin_prefetch(to + row * step + half * lanes, 1);
            });
        }
        Vector sums[count][vectors] = {};
        add_products<row_stride, 1, width == Width::half>(sums, a, block.chunk, block.b, NR, lanes, block.depth,
                                                          block.pieces, block.piece, block.ahead);
        // Added last, as sums of many terms lose precision.
        if (block.add)
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                sums[row][half] += load(products + row * NR + half * lanes);
            });
        if (block.last && epilogue.bias) {
            Vector bias[vectors];
            for (int half = 0; half < vectors; ++half) bias[half] = load_vector(epilogue.bias + channel, half);
            each_sum<count, vectors>(
                [&](int row, int half) __attribute__((always_inline)) { sums[row][half] += bias[half]; });
        }
        const bool later = epilogue.in_two_passes();
        if (!block.last || later) {
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                store(products + row * NR + half * lanes, sums[row][half]);
            });
            if (block.last) finish<vectors>(pixel, channel, left, count, products);
            return;
        }
        if (epilogue.residual) {
            const Result* const residual = residual_at(pixel) + channel;
            const Index step = epilogue.residual_step;
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                sums[row][half] += load_vector(residual + row * step, half);
            });
        }
        const float low = epilogue.low, high = epilogue.high;
        Result* const to = output + pixel * shape.out_step + channel;
        const Index step = shape.out_step;
        if constexpr (whole && vectors == 2 && std::is_same_v<Result, BFloat16>) {
#pragma GCC unroll 16
            for (int row = 0; row < count; ++row)
                store_two(to + row * step, clamp(sums[row][0], low, high), clamp(sums[row][1], low, high));
            return;
        }
        each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
            const Vector result = clamp(sums[row][half], low, high);
            if (whole || half < vectors - 1)
                store(to + row * step + half * lanes, result);
            else
                store_partial(to + row * step + half * lanes, result, left);
        });
    }

    const Result* residual_at(Index pixel) const {
        return static_cast<const Result*>(epilogue.residual) + pixel * epilogue.residual_step;
    }

    // The epilogue of a register tile in a second pass; its sums include the bias.
    template <int vectors>
    [[gnu::noinline]] void finish(Index pixel, Index channel, Index left, Index count, const float* products) const {
        with_activation(epilogue.activation, [&](auto chosen) __attribute__((always_inline)) {
            VectorEpilogue<Result> epilogues[vectors];
            for (int half = 0; half < vectors; ++half)
                epilogues[half] = {epilogue, output, shape.out_step, pixel, channel + half * lanes,
                                   half < vectors - 1 ? lanes : left};
            for (Index row = 0; row < count; ++row)
#pragma GCC unroll 2
                for (int half = 0; half < vectors; ++half)
                    epilogues[half].template finish_pixel<chosen>(load(products + row * NR + half * lanes), row);
        });
    }

    static constexpr Index per = values_per<Factor>;
    bool paired_lines = per > 1 && has_paired_lines(shape);
    // Factors of a pixel in a copied line, and numbers of copied lines for a line of outputs.
    Index of_pixel = paired_lines ? shape.in_channels : ceil_div(shape.in_channels, per);
    Index lines = paired_lines ? ceil_div(shape.y.taps, per) : shape.y.taps;

    // Whether im2col can be skipped: with few channels, consecutive rows of one line are a fixed distance apart.
    bool in_strips() const {
        if constexpr (per > 1) return has_lines_of_pairs(shape);
        const Index stride = shape.x.stride * shape.in_channels;
        const bool known = stride == 1 || stride == 2 || stride == 3 || stride == 6 || stride == 12;
        return !narrow && !gate.factors && windows.dense && shape.in_channels <= 4 && known;
    }

    // Pixels of one image line with its padding, and its number of factors.
    Index strip_pixels() const { return (shape.x.out_size - 1) * shape.x.stride + shape.x.taps; }
    Index strip() const { return strip_pixels() * of_pixel; }

    // Computes one line of outputs. The lines that it reads are copied with padding to `strips`.
    void line_of_strips(Index number, Factor* strips, float* products) const {
        const Index y = number % shape.y.out_size, image = number / shape.y.out_size, width = strip();
        for (Index i = 0; i < lines; ++i) {
            const Index tap = paired_lines ? per * i : i, from = y * shape.y.stride - shape.y.pad + tap * shape.y.dilation;
            if (!paired_lines)
                copy_line(image, from, strips + i * width);
            else if constexpr (per > 1)
                copy_two_lines(image, from, tap + 1 < shape.y.taps, strips + i * width);
        }
        const Index apart = shape.x.stride * of_pixel, of_line = shape.x.taps * of_pixel;
        for (Index panel_number = 0; panel_number < panels; ++panel_number) {
            const Index out = shape.out_channels - panel_number * NR;
            const Block block{.chunk = lanes,
                              .b = weights + panel_number * lines * of_line * NR,
                              .depth = of_line,
                              .number = panel_number,
                              .pieces = lines,
                              .piece = width};
            for (Index x = 0; x < shape.x.out_size; x += MR) {
                const Factor* const a = strips + x * apart;
                const Index count = min(MR, shape.x.out_size - x), pixel = number * shape.x.out_size + x;
                switch (apart) {
                    case 1: strips_by<1>(out, count, pixel, a, block, products); break;
                    case 2: strips_by<2>(out, count, pixel, a, block, products); break;
                    case 3: strips_by<3>(out, count, pixel, a, block, products); break;
                    case 6: strips_by<6>(out, count, pixel, a, block, products); break;
                    case 12: strips_by<12>(out, count, pixel, a, block, products); break;
                    default:
                        if (per > 1 && apart == 4)
                            strips_by<4>(out, count, pixel, a, block, products);
                        else if (per > 1 && apart == 8)
                            strips_by<8>(out, count, pixel, a, block, products);
                        else  // one by one
                            for (Index row = 0; row < count; ++row)
                                strips_by<1>(out, 1, pixel + row, a + row * apart, block, products);
                }
            }
        }
    }

    // The pixels of a line of the image in a strip: `count` of them, from pixel `first` on, after `before` of padding.
    struct Inside {
        Index before, first, count;
    };

    Inside inside_of(Index y) const {
        const Index width = strip_pixels();
        const bool inside = y >= 0 && y < shape.y.size;
        const Index before = inside ? min(max(shape.x.pad, 0), width) : width, first = max(-shape.x.pad, 0);
        return {before, first, inside ? max(min(shape.x.size - first, width - before), 0) : 0};
    }

    const Number* pixel_at(Index image, Index y, Index x) const {
        return input + ((image * shape.y.size + y) * shape.x.size + x) * shape.in_step;
    }

    // Copies line `y` of an image with its padding.
    void copy_line(Index image, Index y, Factor* strip) const {
        using Value = std::conditional_t<per == 1, float, BFloat16>;
        const Index channels = of_pixel * per;
        const auto [before, first, there] = inside_of(y);
        Value* to = reinterpret_cast<Value*>(strip);
        std::memset(to, 0, before * channels * sizeof(Value));
        to += before * channels;
        copy_pixels(pixel_at(image, y, first), there, to);
        std::memset(to + there * channels, 0, (strip_pixels() - before - there) * channels * sizeof(Value));
    }

    // Copies line `y` of an image with its padding, rounded, paired with the line of the next tap, or with zeros.
    void copy_two_lines(Index image, Index y, bool two, Pair* strip) const {
        const Index below = y + shape.y.dilation, channels = shape.in_channels;
        const bool is_inside = y >= 0 && y < shape.y.size, is_below = two && below >= 0 && below < shape.y.size;
        const auto [before, first, there] = inside_of(is_inside ? y : is_below ? below : -1);
        std::memset(strip, 0, before * channels * sizeof(Pair));
        strip += before * channels;
        const float* const above = is_inside ? pixel_at(image, y, first) : nullptr;
        const float* const under = is_below ? pixel_at(image, below, first) : nullptr;
        const bool dense = shape.in_step == channels;
        const Index count = there * channels;
        for (Index start = 0; start < count; start += lanes) {
            const Index here = min(lanes, count - start);
            const auto bits_of = [&](const float* line) __attribute__((always_inline)) -> Bits {
                if (!line) return Bits{};
                if (dense) return (Bits)upcast(to_bf16(load_up_to(line + start, here)));
                float numbers[lanes];
                for (Index i = 0; i < here; ++i)
                    numbers[i] = line[(start + i) / channels * shape.in_step + (start + i) % channels];
                return (Bits)upcast(to_bf16(load_up_to(numbers, here)));
            };
            const Vector pairs = (Vector)(bits_of(above) >> 16 | bits_of(under));
            store_up_to(reinterpret_cast<float*>(strip + start), pairs, here);
        }
        std::memset(strip + count, 0, (strip_pixels() - before - there) * channels * sizeof(Pair));
    }

    void copy_pixels(const float* from, Index count, float* to) const {
        std::memcpy(to, from, count * shape.in_channels * sizeof(float));
    }

    // Rounds them; an odd number of channels is filled up with a zero.
    void copy_pixels(const float* from, Index count, BFloat16* to) const {
        const Index channels = shape.in_channels, line_channels = of_pixel * per, together = lanes / line_channels;
        Bits places{}, kept{};
        for (Index i = 0; i < together * line_channels; ++i)
            if (i % line_channels < channels) {
                places[i] = static_cast<std::uint32_t>(i / line_channels * channels + i % line_channels);
                kept[i] = ~std::uint32_t{0};
            }
        for (; count > 0; count -= together, from += together * shape.in_step, to += together * line_channels) {
            const Index here = min(count, together);
            float numbers[lanes];
            if (shape.in_step != channels)
                for (Index i = 0; i < here * channels; ++i) numbers[i] = from[i / channels * shape.in_step + i % channels];
            const Vector values = load_up_to(shape.in_step == channels ? from : numbers, here * channels);
            store_up_to(to, (Vector)((Bits)permute(values, places) & kept), here * line_channels);
        }
    }

    template <Index row_stride>
    ALWAYS_INLINE void strips_by(Index channels, Index count, Index pixel, const Factor* a, const Block& block,
                                 float* products) const {
        if (channels >= NR)
            block_of<2, Width::whole, row_stride, MR>(count, pixel, a, block, products);
        else if (channels > lanes)
            block_of<2, Width::part, row_stride, MR>(count, pixel, a, block, products);
        else
            block_of<1, Width::part, row_stride, MR>(count, pixel, a, block, products);
    }
};

template <class Factor, class Result>
void in_strips(const Pass<Factor, float, Result>& pass, int threads) {
    const Window& shape = pass.shape;
    const Index of_strips = ceil_div(pass.lines * pass.strip(), lanes) * lanes, own = of_strips + MR * NR;
    float* const memory = scratch(threads * own);
    parallel_for(shape.batch * shape.y.out_size, threads, [&](Index number, int thread) {
        float* const strips = memory + thread * own;
        pass.line_of_strips(number, reinterpret_cast<Factor*>(strips), strips + of_strips);
    });
}

template <class Pass>
void in_blocks(Pass pass, int threads) {
    const RowBlocks plan(pass, Index{1} << 17, true, threads);  // half of a cache of 1 MiB
    const Index of_line = ceil_div(pass.depth, lanes) * lanes + lanes;
    multiply_in_blocks(pass, plan, ceil_div(pass.shape.in_channels, lanes) * lanes, of_line, threads);
}

// Products of pairs of bfloat16, for an input of floats or of pairs.
template <class Number, class Result>
void in_pairs(const Window& shape, const void* input, Gate gate, const void* weights, const Epilogue& epilogue, void* output,
              int threads) {
    const Pass<Pair, Number, Result> pass{.shape = shape,
                                          .epilogue = epilogue,
                                          .input = static_cast<const Number*>(input),
                                          .weights = static_cast<const Pair*>(weights),
                                          .narrow = nullptr,
                                          .output = static_cast<Result*>(output),
                                          .gate = gate};
    if constexpr (std::is_same_v<Number, float>)
        if (pass.in_strips()) return in_strips(pass, threads);
    in_blocks(pass, threads);
}

}  // namespace

std::ptrdiff_t direct_panel_width() { return NR; }

void direct_forward(const Window& shape, const void* input, Gate gate, const void* weights, Precision precision,
                    const Epilogue& epilogue, void* output, NarrowMaps narrow, int threads) {
    if (shape.batch == 0) return;
    if (precision == Precision::bfloat16) {
        if (!narrow.input) {
            const auto compute = narrow.output ? in_pairs<float, BFloat16> : in_pairs<float, float>;
            return compute(shape, input, gate, weights, epilogue, output, threads);
        }
        Window pairs = shape;
        pairs.in_channels /= 2;
        pairs.in_step /= 2;
        const auto compute = narrow.output ? in_pairs<Pair, BFloat16> : in_pairs<Pair, float>;
        return compute(pairs, input, gate, weights, epilogue, output, threads);
    }
    const bool upcast = precision == Precision::upcast;
    const Pass<float> pass{.shape = shape,
                           .epilogue = epilogue,
                           .input = static_cast<const float*>(input),
                           .weights = static_cast<const float*>(weights),
                           .narrow = upcast ? static_cast<const Pair*>(weights) : nullptr,
                           .output = static_cast<float*>(output),
                           .gate = gate};
    pass.in_strips() ? in_strips(pass, threads) : in_blocks(pass, threads);
}

}  // namespace svertka::INSTRUCTIONS
