// Convolution of 8-bit maps with any kernel as a product of matrices: row i of A holds the window of output pixel i.
//
// Windows are read where they are if they are one pixel (in_place), or from lines of the image that are copied with their
// padding (in_lines). Otherwise rows are gathered in blocks (byte_im2col.h). A block is multiplied by one panel of output
// channels after another, so that a panel's weights stay in the first-level cache for all rows of the block.
#include <cstring>

#include "../parallel.h"
#include "../row_blocks.h"
#include "byte_im2col.h"
#include "byte_product.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index ahead = 128;  // factors of k between a product and the weights that it fetches for a later one
constexpr Index block_rows = 16 * MR;
constexpr Index number_size = sizeof(Factor) / per_factor;  // bytes of a number of a factor

// The floats that `bytes` take, in whole vectors.
Index floats(Index bytes) { return ceil_div(bytes, 4 * lanes) * lanes; }

// The rows of each tile of `count` rows: about the same number.
Index tile_rows(Index count) { return ceil_div(count, ceil_div(count, MR)); }

// The weights that tile number `tile` of `tiles` fetches. The first two fetch the next panel, `steps` · NR factors after `b`;
// a tile alone fetches what it reads soon.
const Factor* next_weights(const Factor* b, Index steps, Index tile, Index tiles) {
    return b + (tiles > 1 ? steps : min(steps, ahead)) * NR + min(tile, 1) * steps * lanes;
}

struct Pass {
    using Factor = INSTRUCTIONS::Factor;
    using Number = Byte;
    using Sum = std::int32_t;

    const Window& shape;
    const Requantization& after;
    const Factor* weights;
    void* output;
    Byte zero;
    ByteIm2col windows;
    Index steps = windows.steps, chunks = windows.chunks, panels = ceil_div(shape.out_channels, NR);
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size;
    Index of_padding = floats(shape.in_channels + ByteIm2col::slack);
    ByteProduct product{after, output, shape.out_step, shape.out_channels};

    void set_padding(float* memory) {
        std::memset(memory, zero, of_padding * sizeof(float));
        windows.padding = reinterpret_cast<Byte*>(memory);
    }

    // Multiply `count` gathered rows, from row `first` on, by panel `number`.
    void multiply(Index first, Index count, const Factor* gathered, Index number, std::int32_t* sums) const {
        const Factor* const b = weights + number * steps * NR;
        const Index tiles = ceil_div(count, MR);
        for (Index tile = 0, row = 0; row < count; ++tile, row += MR)
            product.multiply<GatheredRows>(min(MR, count - row),
                                           {{gathered + row * chunks * lanes, steps}, b, next_weights(b, steps, tile, tiles),
                                            first + row, number, sums + row * NR});
    }
};

// Rows of A that lie in the map as they are: pixels of a 1×1 kernel, or whole images that the kernel covers.
struct InPlace {
    const Byte* input;
    const Factor* weights;
    ByteProduct product;
    Index rows, apart, depth;  // number of rows, bytes from one to the next, and numbers of each
    Index steps = depth / per_factor, panels = ceil_div(product.out_channels, NR);

    void compute(Index first, Index last, Index first_panel, Index last_panel, std::int32_t* sums) const {
        const Index per = tile_rows(last - first), tiles = ceil_div(last - first, per);
        for (Index number = first_panel; number < last_panel; ++number) {
            const Factor* const b = weights + number * steps * NR;
            for (Index tile = 0, row = first; row < last; ++tile, row += per) {
                const Byte* const from = input + row * apart;
                // The first panel finds each tile in the cache because the tile before has fetched it.
                const Factor* const next = number == first_panel && tile + 1 < tiles
                                               ? reinterpret_cast<const Factor*>(from + per * apart)
                                               : next_weights(b, steps, tile, tiles);
                product.multiply<RowsInPlace>(min(per, last - row), {{from, apart, steps}, b, next, row, number, sums});
            }
        }
    }
};

void in_place(const InPlace& pass, int threads) {
    // A block of rows fills a quarter of a cache of 1 MiB at most. Where rows are few, threads divide the panels.
    const Index fitting = max(min((Index{1} << 16) / pass.steps, block_rows), MR);
    const Index pieces = threads > 1 && pass.rows < 4 * threads * fitting ? min(threads, pass.panels) : 1;
    const Index blocks = ceil_div(pass.rows, min(fitting, ceil_div(pass.rows, pieces == 1 ? threads : 1)));
    float* const memory = scratch(threads * MR * NR);
    parallel_for(blocks * pieces, threads, [&](Index task, int thread) {
        const Index block = task / pieces, piece = task % pieces;
        pass.compute(pass.rows * block / blocks, pass.rows * (block + 1) / blocks, pass.panels * piece / pieces,
                     pass.panels * (piece + 1) / pieces, reinterpret_cast<std::int32_t*>(memory + thread * MR * NR));
    });
}

// The lines of an image that some lines of outputs read, copied with their padding, so that a row of taps is contiguous.
struct Lines {
    const Window& shape;
    const Byte* input;
    Byte zero;
    const Factor* weights;
    ByteProduct product;
    Index row_steps = ceil_div(shape.x.taps * shape.in_channels, per_factor), steps = shape.y.taps * row_steps;
    Index panels = ceil_div(shape.out_channels, NR);
    Index width = (shape.x.out_size - 1) * shape.x.stride + shape.x.taps;  // pixels of a line with its padding
    // Bytes of a line. The last factor of a row of taps may end after it, where weights are zero.
    Index pitch = ceil_div(width * shape.in_channels * number_size + sizeof(Factor), 64) * 64;
    Index height = max(min(block_rows / shape.x.out_size, shape.y.out_size), 1);  // lines of outputs of a block
    Index reach = (shape.y.taps - 1) * shape.y.dilation + 1;  // lines that a line of outputs reads or passes over
    Index blocks = ceil_div(shape.y.out_size, height);
    Index memory = floats(((height - 1) * shape.y.stride + reach) * pitch);  // floats of the copied lines

    // A block of outputs, of the panels from `first_panel` to `last_panel`.
    void compute(Index block, Index first_panel, Index last_panel, float* room, std::int32_t* sums) const {
        const Index image = block / blocks, first = block % blocks * height;
        const Index count = min(height, shape.y.out_size - first), apart = shape.x.stride * shape.in_channels * number_size;
        Byte* const lines = reinterpret_cast<Byte*>(room);
        const Index top = first * shape.y.stride - shape.y.pad;
        for (Index y = 0; y < (count - 1) * shape.y.stride + reach; ++y) copy(image, top + y, lines + y * pitch);
        const Index per = tile_rows(shape.x.out_size), of_line = ceil_div(shape.x.out_size, per);
        for (Index number = first_panel; number < last_panel; ++number) {
            const Factor* const b = weights + number * steps * NR;
            for (Index y = 0, tile = 0; y < count; ++y)
                for (Index x = 0; x < shape.x.out_size; x += per, ++tile) {
                    const RowsInPlace rows{lines + y * shape.y.stride * pitch + x * apart, apart, row_steps, shape.y.taps,
                                           shape.y.dilation * pitch};
                    const Index pixel = (image * shape.y.out_size + first + y) * shape.x.out_size + x;
                    product.multiply<RowsInPlace>(min(per, shape.x.out_size - x),
                                                  {rows, b, next_weights(b, steps, tile, count * of_line), pixel, number, sums});
                }
        }
    }

  private:
    // Copy line `y` of an image, or fill one with zeros outside of it.
    void copy(Index image, Index y, Byte* to) const {
        const Index channels = shape.in_channels, size = channels * number_size;
        const bool inside = y >= 0 && y < shape.y.size;
        const Index before = inside ? min(max(shape.x.pad, 0), width) : width, first = max(-shape.x.pad, 0);
        const Index there = inside ? max(min(shape.x.size - first, width - before), 0) : 0;
        fill(to, before * channels);
        fill(to + (before + there) * size, (width - before - there) * channels);
        to += before * size;
        const Byte* from = input + ((image * shape.y.size + y) * shape.x.size + first) * shape.in_step;
        if (shape.in_step == channels) return copy_numbers(to, from, there * channels);
        for (Index x = 0; x < there; ++x, from += shape.in_step, to += size) copy_numbers(to, from, channels);
    }

    static void copy_numbers(Byte* to, const Byte* from, Index count) {
        if constexpr (per_factor == 4)
            std::memcpy(to, from, count);
        else
            for (Index k = 0; k < count; ++k) store_as<std::int16_t>(to + k * number_size, from[k]);
    }

    void fill(Byte* to, Index count) const {
        if constexpr (per_factor == 4)
            std::memset(to, zero, count);
        else
            for (Index k = 0; k < count; ++k) store_as<std::int16_t>(to + k * number_size, zero);
    }
};

void in_lines(const Lines& lines, int threads) {
    const Index own = lines.memory + MR * NR;
    float* const memory = scratch(threads * own);
    // Where blocks are few, threads divide the panels.
    const Index blocks = lines.shape.batch * lines.blocks, pieces = blocks < 4 * threads ? min(threads, lines.panels) : 1;
    parallel_for(blocks * pieces, threads, [&](Index task, int thread) {
        const Index piece = task % pieces;
        float* const mine = memory + thread * own;
        lines.compute(task / pieces, lines.panels * piece / pieces, lines.panels * (piece + 1) / pieces, mine,
                      reinterpret_cast<std::int32_t*>(mine + lines.memory));
    });
}

}  // namespace

std::ptrdiff_t int8_panel_width() { return NR; }
std::ptrdiff_t int8_numbers_per_factor() { return per_factor; }

void int8_convolve(const Window& shape, const Byte* input, Byte zero, const void* weights, const Requantization& after,
                   void* output, int threads) {
    if (shape.batch == 0) return;
    const auto factors = static_cast<const Factor*>(weights);
    const ByteProduct product{after, output, shape.out_step, shape.out_channels};
    const Index taps = shape.y.taps * shape.x.taps, outputs = shape.batch * shape.y.out_size * shape.x.out_size;
    if (per_factor == 4 && shape.y.pad == 0 && shape.x.pad == 0 && shape.in_channels % per_factor == 0) {
        const bool covered = shape.y.taps == shape.y.size && shape.x.taps == shape.x.size && shape.y.dilation == 1 &&
                             shape.x.dilation == 1 && shape.in_step == shape.in_channels && outputs == shape.batch;
        if (covered || (taps == 1 && shape.y.stride == 1 && shape.x.stride == 1))
            return in_place({input, factors, product, outputs, taps * shape.in_step, taps * shape.in_channels}, threads);
    }
    if (taps > 1 && shape.x.dilation == 1 && 5 * shape.x.out_size >= 3 * MR)
        return in_lines({shape, input, zero, factors, product}, threads);
    Pass pass{shape, after, factors, output, zero, {shape, input, nullptr}};
    const RowBlocks plan(pass, Index{1} << 16, threads > 1, threads);  // a quarter of a cache of 1 MiB
    multiply_in_blocks(pass, plan, pass.of_padding, floats(MR * pass.windows.of_line), threads);
}

}  // namespace svertka::INSTRUCTIONS
