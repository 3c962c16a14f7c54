// A convolution with any kernel as a product of matrices: a row for each output pixel, with all that its window reads.
//
// Pictures of few channels, as at the beginning of a network, are read in place, a line at a time. Else rows are
// gathered in blocks (windows.h); never all of them, except where there are few. Then comes one panel of output channels after
// another, so that a panel's weights are read from the nearest cache for all rows of the block.
#include <omp.h>

#include <cstring>

#include "../ending.h"
#include "../scratch.h"
#include "windows.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Factors that are summed up before their sum is added to that of others: long sums lose digits, and as many rows of a
// panel's weights stay in the nearest cache.
constexpr Index portion = 128;

// One call: its tensors and sizes, and the steps of which it is made. What is multiplied are `Factor`s.
template <class Factor>
struct Pass {
    const Window& shape;
    const Finish& finish;
    const float* input;
    const Factor* weights;
    const Pair* narrow;  // the weights in place of `weights`, to be widened
    float* output;
    Windows<Factor> windows{shape, input};
    Index depth = windows.depth, steps = windows.steps, panels = parts(shape.out_channels, panel);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;

    // `count` gathered rows, the first of which is row `first`, times panel `number`.
    void multiply(Index first, Index count, const Factor* gathered, Index number, float* products) const {
        const Index channels = shape.out_channels - number * panel;
        if (channels >= panel)
            multiply_by<2, true>(first, count, gathered, number, products);
        else if (channels > lanes)
            multiply_by<2, false>(first, count, gathered, number, products);
        else if (channels == lanes)
            multiply_by<1, true>(first, count, gathered, number, products);
        else
            multiply_by<1, false>(first, count, gathered, number, products);
    }

    template <int vectors, bool whole>
    void multiply_by(Index first, Index count, const Factor* gathered, Index number, float* products) const {
        Factor room[portion * panel];
        for (Index k = 0; k < steps; k += portion) {
            const Index here = least(portion, steps - k);
            const Factor* const a = gathered + k / lanes * rows * lanes;
            const Block block{.chunk = rows * lanes,
                              .b = factors(number, k, here, room),
                              .depth = here,
                              .number = number,
                              .add = k > 0,
                              .last = k + here == steps};
            for (Index row = 0; row < count; row += rows)
                block_of<vectors, whole, lanes, rows>(least(rows, count - row), first + row,
                                                      a + row * windows.chunks * lanes, block, products + row * panel);
        }
    }

    // Panel `number`'s weights of steps k to k + count: where they are, or put into `room`.
    const Factor* factors(Index number, Index k, Index count, Factor* room) const {
        if constexpr (numbers_in<Factor> == 1)
            if (narrow) {
                const Pair* from = narrow + (number * parts(depth, 2) + k / 2) * panel;
                for (Index step = 0; step < count; step += 2)
                    for (Index half = 0; half < panel; half += lanes, from += lanes) {
                        const Bits pairs = load(from);
                        store(room + step * panel + half, first_of(pairs));
                        store(room + (step + 1) * panel + half, second_of(pairs));
                    }
                return room;
            }
        return weights + (number * steps + k) * panel;
    }

    // What a register block multiplies, and whether it goes on with sums that are there and finishes them.
    struct Block {
        Index chunk;
        const Factor* b;
        Index depth, number, pieces = 1, piece = 0;
        bool add = false, last = true;
    };

    // As many rows as there are, the first of them at `a`.
    template <int vectors, bool whole, Index row_stride, int most_rows>
    ALWAYS_INLINE void block_of(Index count, Index pixel, const Factor* a, const Block& block, float* products) const {
        if constexpr (most_rows > 1) {
            if (count < most_rows)
                return block_of<vectors, whole, row_stride, most_rows - 1>(count, pixel, a, block, products);
        }
        rows_of<vectors, whole, row_stride, most_rows>(pixel, a, block, products);
    }

    // `whole`: all channels of each vector are there; only in the last vector of a panel some may not be.
    template <int vectors, bool whole, Index row_stride, int count>
    [[gnu::noinline]] void rows_of(Index pixel, const Factor* a, const Block& block, float* products) const {
        const bool add = block.add, last = block.last;  // copies, as those of Ending
        Ending<float> endings[vectors];
        for (Index half = 0; half < vectors; ++half) {
            const Index channel = block.number * panel + half * lanes;
            const Index left = whole || half < vectors - 1 ? lanes : shape.out_channels - channel;
            endings[half] = {finish, output, shape.out_step, pixel, channel, left};
        }
        block_sums<count, row_stride, 1, vectors>(
            a, block.chunk, block.b, panel, lanes, block.depth, block.pieces, block.piece,
            [&](int row, int half, Vector sum) __attribute__((always_inline)) {
                float* kept = products + row * panel + half * lanes;
                if (add) sum += load(kept);
                last ? endings[half].keep(sum + endings[half].bias, row) : store(kept, sum);
            });
    }

    // Whether rows need not be gathered: of few channels, those of one line lie so that each begins a fixed distance
    // behind the one before.
    bool in_strips() const {
        const Index stride = shape.x.stride * shape.in_channels;
        const bool known = stride == 1 || stride == 2 || stride == 3 || stride == 6 || stride == 12;
        return !narrow && windows.dense && shape.in_channels <= 4 && known;
    }

    // Numbers of a line of the pictures with the zeros around it.
    Index strip() const {
        return ((shape.x.out_size - 1) * shape.x.stride + shape.x.taps) * shape.in_channels;
    }

    // One line of outputs. The lines that it reads are copied, with their zeros, to `strips`.
    void line_of_strips(Index number, float* strips, float* products) const {
        const Index y = number % shape.y.out_size, picture = number / shape.y.out_size;
        const Index channels = shape.in_channels, width = strip();
        const Index before = shape.x.pad * channels, line = shape.x.size * channels;
        const Index there = most(least(line, width - before), 0);
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Index in_y = y * shape.y.stride - shape.y.pad + i * shape.y.dilation;
            float* to = strips + i * width;
            if (in_y < 0 || in_y >= shape.y.size || before > width) {
                std::memset(to, 0, width * sizeof(float));
                continue;
            }
            std::memset(to, 0, before * sizeof(float));
            std::memcpy(to + before, input + (picture * shape.y.size + in_y) * line, there * sizeof(float));
            std::memset(to + before + there, 0, (width - before - there) * sizeof(float));
        }
        for (Index panel_number = 0; panel_number < panels; ++panel_number) {
            const Index out = shape.out_channels - panel_number * panel;
            const Block block{.chunk = lanes,
                              .b = weights + panel_number * depth * panel,
                              .depth = shape.x.taps * channels,
                              .number = panel_number,
                              .pieces = shape.y.taps,
                              .piece = width};
            for (Index x = 0; x < shape.x.out_size; x += rows) {
                const Factor* const a = strips + x * shape.x.stride * channels;
                const Index count = least(rows, shape.x.out_size - x), pixel = number * shape.x.out_size + x;
                switch (shape.x.stride * channels) {
                    case 1: strips_by<1>(out, count, pixel, a, block, products); break;
                    case 2: strips_by<2>(out, count, pixel, a, block, products); break;
                    case 3: strips_by<3>(out, count, pixel, a, block, products); break;
                    case 6: strips_by<6>(out, count, pixel, a, block, products); break;
                    default: strips_by<12>(out, count, pixel, a, block, products);
                }
            }
        }
    }

    template <Index row_stride>
    void strips_by(Index channels, Index count, Index pixel, const Factor* a, const Block& block, float* products) const {
        if (channels >= panel)
            block_of<2, true, row_stride, rows>(count, pixel, a, block, products);
        else if (channels > lanes)
            block_of<2, false, row_stride, rows>(count, pixel, a, block, products);
        else
            block_of<1, false, row_stride, rows>(count, pixel, a, block, products);
    }
};

// How the work is cut: `block` rows are gathered at a time. Either `shared`: by all threads, which then take panels; or
// each thread takes blocks.
struct Plan {
    bool shared;
    Index block;

    template <class Factor>
    Plan(const Pass<Factor>& pass, int threads) {
        const Index room = Index{1} << 17;  // floats: half of a cache of 1 MiB
        const Index wanted = most(least(room / pass.steps, 16 * rows), rows);
        shared = pass.panels >= 2 * threads && pass.pixels < 4 * threads * wanted;
        const Index limit = shared ? most(8 * wanted, 4 * rows) : least(wanted, parts(pass.pixels, 4 * threads));
        block = parts(parts(pass.pixels, parts(pass.pixels, limit)), rows) * rows;
    }
};

void in_strips(const Pass<float>& pass, int threads) {
    const Window& shape = pass.shape;
    const Index of_strips = parts(shape.y.taps * pass.strip(), lanes) * lanes, own = of_strips + rows * panel;
    float* const memory = scratch(threads * own);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (Index number = 0; number < shape.batch * shape.y.out_size; ++number) {
        float* const strips = memory + omp_get_thread_num() * own;
        pass.line_of_strips(number, strips, strips + of_strips);
    }
}

template <class Factor>
void in_blocks(Pass<Factor> pass, int threads) {
    const Window& shape = pass.shape;
    const Plan plan(pass, threads);
    const Index of_zeros = parts(shape.in_channels, lanes) * lanes, of_row = pass.windows.chunks * lanes;
    const Index of_line = parts(pass.depth, lanes) * lanes + lanes, of_rows = plan.block * of_row;
    const Index of_products = plan.block * panel;
    const Index common = of_zeros + (plan.shared ? of_rows : 0);
    const Index own = of_line + of_products + (plan.shared ? 0 : of_rows);
    float* const memory = scratch(common + threads * own);
    pass.windows.zeros = memory;
    std::memset(memory, 0, of_zeros * sizeof(float));

#pragma omp parallel num_threads(threads)
    {
        float* const line = memory + common + omp_get_thread_num() * own;
        float* const products = line + of_line;
        if (plan.shared) {
            const auto gathered = reinterpret_cast<Factor*>(memory + of_zeros);
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = least(plan.block, pass.pixels - first);
#pragma omp for schedule(static)
                for (Index row = 0; row < count; row += rows)
                    pass.windows.gather(first + row, first + least(row + rows, count), gathered + row * of_row, line);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, products);
            }
        } else {
            const auto gathered = reinterpret_cast<Factor*>(products + of_products);
#pragma omp for schedule(dynamic)
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = least(plan.block, pass.pixels - first);
                pass.windows.gather(first, first + count, gathered, line);
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, products);
            }
        }
    }
}

}  // namespace

std::ptrdiff_t direct_panel() { return panel; }

void direct_forward(const Window& shape, const float* input, const void* weights, Precision precision,
                    const Finish& finish, float* output, int threads) {
    if (shape.batch == 0) return;
    if (precision == Precision::bfloat16)
        return in_blocks(Pass<Pair>{.shape = shape,
                                    .finish = finish,
                                    .input = input,
                                    .weights = static_cast<const Pair*>(weights),
                                    .narrow = nullptr,
                                    .output = output},
                         threads);
    const bool widened = precision == Precision::widened;
    const Pass<float> pass{.shape = shape,
                           .finish = finish,
                           .input = input,
                           .weights = static_cast<const float*>(weights),
                           .narrow = widened ? static_cast<const Pair*>(weights) : nullptr,
                           .output = output};
    pass.in_strips() ? in_strips(pass, threads) : in_blocks(pass, threads);
}

}  // namespace svertka::INSTRUCTIONS
