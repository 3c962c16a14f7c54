// A convolution with any kernel as a product of matrices: a row for each output pixel, with all that its window reads.
//
// Rows are gathered in blocks; never all of them, except where there are few. Then comes one panel of output channels
// after another, so that a panel's weights are read from the nearest cache for all rows of the block.
#include <omp.h>

#include <cstring>

#include "../gemm.h"
#include "../scratch.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Numbers that are summed up before their sum is added to that of others: long sums lose digits, and as many rows of a
// panel's weights stay in the nearest cache.
constexpr Index portion = 128;

struct Pass {
    const Window& shape;
    const Finish& finish;
    const float *input, *weights;
    float* output;
    const float* zeros;  // in_channels of them
    const float* end = input + shape.batch * shape.y.size * shape.x.size * shape.in_step;
    Index taps = shape.y.taps * shape.x.taps, depth = taps * shape.in_channels, chunks = parts(depth, lanes);
    Index panels = parts(shape.out_channels, panel);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    // Whether the pixels that the taps of one row read are one piece of memory.
    bool dense = shape.in_step == shape.in_channels && shape.x.dilation == 1;

    // Rows first to last, to (register block, group of numbers, row of the register block, lane), the first at `to`.
    void gather(Index first, Index last, float* to, float* line) const {
        Index x = first % shape.x.out_size, y = first / shape.x.out_size % shape.y.out_size;
        const Index picture = first / shape.x.out_size / shape.y.out_size;
        const Index of_picture = shape.y.size * shape.x.size * shape.in_step;
        const float* from = input + picture * of_picture;
        for (Index index = 0; index < last - first; ++index) {
            float* row = to + (index / rows * chunks * rows + index % rows) * lanes;
            const Index in_y = y * shape.y.stride - shape.y.pad, in_x = x * shape.x.stride - shape.x.pad;
            if (shape.in_channels % lanes == 0 || taps == 1)
                gather_channels(from, in_y, in_x, row);
            else
                gather_line(from, in_y, in_x, row, line);
            if (++x < shape.x.out_size) continue;
            x = 0;
            if (++y < shape.y.out_size) continue;
            y = 0;
            from += of_picture;
        }
    }

    void gather_channels(const float* from, Index in_y, Index in_x, float* row) const {
        const Index whole = shape.in_channels / lanes, rest = shape.in_channels % lanes;
        for (Index i = 0; i < shape.y.taps; ++i)
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index y = in_y + i * shape.y.dilation, x = in_x + j * shape.x.dilation;
                const bool inside = y >= 0 && y < shape.y.size && x >= 0 && x < shape.x.size;
                const float* pixel = inside ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index group = 0; group < whole; ++group, row += rows * lanes) store(row, load(pixel + group * lanes));
                if (rest) store(row, load_some(pixel + whole * lanes, rest));
            }
    }

    // Where a pixel's channels do not fill vectors: first side by side, then cut. `line` has room for a vector more.
    void gather_line(const float* from, Index in_y, Index in_x, float* row, float* line) const {
        const Index channels = shape.in_channels, width = shape.x.taps * channels;
        float* to = line;
        for (Index i = 0; i < shape.y.taps; ++i, to += width) {
            const Index y = in_y + i * shape.y.dilation;
            const bool inside = y >= 0 && y < shape.y.size;
            const float* pixels = from + (y * shape.x.size + in_x) * shape.in_step;
            if (inside && dense && in_x >= 0 && in_x + shape.x.taps <= shape.x.size &&
                pixels + parts(width, lanes) * lanes <= end) {
                for (Index k = 0; k < width; k += lanes) store(to + k, load(pixels + k));
                continue;
            }
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index x = in_x + j * shape.x.dilation;
                const bool there = inside && x >= 0 && x < shape.x.size;
                const float* pixel = there ? from + (y * shape.x.size + x) * shape.in_step : zeros;
                for (Index channel = 0; channel < channels; ++channel) to[j * channels + channel] = pixel[channel];
            }
        }
        for (Index chunk = 0; chunk < chunks; ++chunk) store(row + chunk * rows * lanes, load(line + chunk * lanes));
    }

    // `count` gathered rows, the first of which is row `first`, times panel `number`.
    void multiply(Index first, Index count, const float* gathered, Index number, float* products) const {
        if (shape.out_channels - number * panel <= lanes)
            multiply_by<1>(first, count, gathered, number, products);
        else
            multiply_by<2>(first, count, gathered, number, products);
    }

    template <int vectors>
    void multiply_by(Index first, Index count, const float* gathered, Index number, float* products) const {
        for (Index k = 0; k < depth; k += portion) {
            const float* b = weights + (number * depth + k) * panel;
            for (Index row = 0; row < count; row += rows)
                product<lanes, 1, vectors>(least(rows, count - row), gathered + (row * chunks + k / lanes * rows) * lanes,
                                           rows * lanes, b, panel, lanes, products + row * panel,
                                           least(portion, depth - k), k > 0);
        }
        const Index channel = number * panel;
        for (Index half = 0; half < vectors; ++half) {
            const Index start = channel + half * lanes, here = least(lanes, shape.out_channels - start);
            if (here == lanes)
                finish_rows<true>(first, count, products + half * lanes, start, here);
            else
                finish_rows<false>(first, count, products + half * lanes, start, here);
        }
    }

    template <bool whole>
    void finish_rows(Index first, Index count, const float* products, Index channel, Index here) const {
        const auto read = [=](const float* from) __attribute__((always_inline)) {
            return whole ? load(from) : load_some(from, here);
        };
        const Vector bias = finish.bias ? read(finish.bias + channel) : Vector{};
        for (Index row = 0; row < count; ++row) {
            Vector vector = load(products + row * panel) + bias;
            if (finish.residual) vector += read(finish.residual + (first + row) * finish.residual_step + channel);
            vector = bounded(vector, finish.low, finish.high);
            float* to = output + (first + row) * shape.out_step + channel;
            whole ? store(to, vector) : store_some(to, vector, here);
        }
    }
};

// How the work is cut: `block` rows are gathered at a time. Either `shared`: by all threads, which then take panels; or
// each thread takes blocks.
struct Plan {
    bool shared;
    Index block;

    Plan(const Pass& pass, int threads) {
        const Index room = Index{1} << 17;  // floats: half of a cache of 1 MiB
        const Index wanted = most(least(room / pass.depth, 16 * rows), rows);
        shared = pass.panels >= 2 * threads && pass.pixels < 4 * threads * wanted;
        const Index limit = shared ? most(8 * wanted, 4 * rows) : least(wanted, parts(pass.pixels, 4 * threads));
        block = parts(parts(pass.pixels, parts(pass.pixels, limit)), rows) * rows;
    }
};

}  // namespace

std::ptrdiff_t direct_panel() { return panel; }

void direct_forward(const Window& shape, const float* input, const float* weights, const Finish& finish, float* output,
                    int threads) {
    Pass pass{.shape = shape, .finish = finish, .input = input, .weights = weights, .output = output, .zeros = nullptr};
    const Plan plan(pass, threads);
    const Index of_zeros = parts(shape.in_channels, lanes) * lanes, of_row = pass.chunks * lanes;
    const Index of_line = of_row + lanes, of_rows = plan.block * of_row, of_products = plan.block * panel;
    const Index common = of_zeros + (plan.shared ? of_rows : 0);
    const Index own = of_line + of_products + (plan.shared ? 0 : of_rows);
    float* const memory = scratch(common + threads * own);
    pass.zeros = memory;
    std::memset(memory, 0, of_zeros * sizeof(float));

#pragma omp parallel num_threads(threads)
    {
        float* const line = memory + common + omp_get_thread_num() * own;
        float* const products = line + of_line;
        if (plan.shared) {
            float* const gathered = memory + of_zeros;
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = least(plan.block, pass.pixels - first);
#pragma omp for schedule(static)
                for (Index row = 0; row < count; row += rows)
                    pass.gather(first + row, first + least(row + rows, count), gathered + row * of_row, line);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, products);
            }
        } else {
            float* const gathered = products + of_products;
#pragma omp for schedule(dynamic)
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = least(plan.block, pass.pixels - first);
                pass.gather(first, first + count, gathered, line);
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, gathered, number, products);
            }
        }
    }
}

}  // namespace svertka::INSTRUCTIONS
