// The weight gradient of a convolution with any kernel: the product of the gradient's columns, one for each output
// channel, with those of the gathered windows, over all output pixels. Pixels are taken in blocks whose factors stay in
// the first-level cache.
#include <omp.h>

#include <cstring>

#include "../gemm.h"
#include "../scratch.h"
#include "../windows.h"
#include "training.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index block_pixels = 192;  // a panel of their windows is 24 KiB, a tile of their gradients 10 KiB
constexpr Index of_tile = block_pixels * MR + lanes;  // whole vectors are stored

// A window is made of `count` segments of values that are contiguous in the image: its rows, or if these have gaps, its
// taps.
struct Segments {
    Index per_row, width, count;

    explicit Segments(const Window& shape) {
        const bool dense = shape.in_step == shape.in_channels && shape.x.dilation == 1;
        per_row = dense ? 1 : shape.x.taps;
        width = shape.in_channels * shape.x.taps / per_row;
        count = shape.y.taps * per_row;
    }
};

// Where the window of an output pixel begins.
struct Corner {
    const float* image;
    Index y, x;
};

struct Pass {
    const Window& shape;
    const float *gradient, *input;
    Segments segments{shape};
    Index pixels = shape.batch * shape.y.out_size * shape.x.out_size, blocks = ceil_div(pixels, block_pixels);
    Index panels_of_segment = ceil_div(segments.width, NR), panels = segments.count * panels_of_segment;
    Index depth = segments.count * segments.width;
    const float* end = gradient + (pixels - 1) * shape.out_step + shape.out_channels;
    Index tiles = ceil_div(shape.out_channels, MR), height = ceil_div(shape.out_channels, tiles);
    // Whether windows are the pixels as they lie, and how often a panel of them is read.
    bool in_place = tiles <= 2 && shape.y.taps == 1 && shape.x.taps == 1 && shape.y.stride == 1 && shape.x.stride == 1 &&
                    shape.y.pad == 0 && shape.x.pad == 0 && shape.y.out_size == shape.y.size &&
                    shape.x.out_size == shape.x.size;

    void find_corners(Index first, Index count, Corner* corners) const {
        for_each_window(shape, input, first, first + count, [&](Index index, const float* image, Index y, Index x) {
            corners[index] = {image, y, x};
        });
    }

    // The gradients of `count` pixels from `first` on, for the outputs of tile `number`: (pixel, output in tile).
    void pack_gradients(Index first, Index count, Index number, float* to) const {
        const Index channel = number * height, channels = min(height, shape.out_channels - channel);
        const float* from = gradient + first * shape.out_step + channel;
        for (Index pixel = 0; pixel < count; ++pixel, from += shape.out_step, to += MR)
            for (Index done = 0; done < channels; done += lanes)  // what is stored after them is replaced by the next pixel
                store(to + done, from + done + lanes <= end ? load(from + done) : load_up_to(from + done, channels - done));
    }

    // Part of the windows at `corners`: `width` values of a segment from `begin` on, (window, NR), the rest zeros.
    void pack_windows(const Corner* corners, Index count, Index segment, Index begin, Index width, float* to) const {
        const Index down = segment / segments.per_row * shape.y.dilation;
        const Index right = segment % segments.per_row * shape.x.dilation, of_line = shape.x.size * shape.in_step;
        const Index limit = shape.x.size * shape.in_step - (shape.in_step - shape.in_channels);
        for (Index index = 0; index < count; ++index, to += NR) {
            const Corner& corner = corners[index];
            const Index y = corner.y + down, start = (corner.x + right) * shape.in_step + begin;
            const bool inside = y >= 0 && y < shape.y.size;
            const float* from = corner.image + y * of_line + start;
            if (inside && start >= 0 && start + width <= limit) {
#pragma GCC unroll 2
                for (Index half = 0; half < NR; half += lanes)
                    store(to + half, half < width ? load_up_to(from + half, min(lanes, width - half)) : Vector{});
                continue;
            }
            std::memset(to, 0, NR * sizeof(float));
            const Index skipped = max(-start, 0), there = min(width, limit - start) - skipped;
            if (inside && there > 0) std::memcpy(to + skipped, from + skipped, there * sizeof(float));
        }
    }

    // Add what `count` pixels contribute to panel `number`, for all outputs.
    void add_panel(Index first, Index count, const Corner* corners, Index number, const float* gradients, float* windows,
                   bool add, float* result) const {
        const Index segment = number / panels_of_segment, begin = number % panels_of_segment * NR;
        const Index width = min(NR, segments.width - begin);
        const float* b = windows;
        Index b_stride = NR;
        const bool whole = in_place && (width == NR || width == lanes);
        if (whole) {
            b = input + first * shape.in_step + begin;
            b_stride = shape.in_step;
        } else {
            pack_windows(corners, count, segment, begin, width, windows);
        }
        float* const to = result + segment * segments.width + begin;
        for (Index tile = 0; tile < tiles; ++tile) {
            const Index channel = tile * height, rows = min(height, shape.out_channels - channel);
            const float* const a = gradients + tile * of_tile;
            if (width > lanes)
                add_tile<2, MR>(rows, a, b, b_stride, count, width, add, to + channel * depth);
            else
                add_tile<1, MR>(rows, a, b, b_stride, count, width, add, to + channel * depth);
        }
    }

    template <int vectors, int max_rows>
    ALWAYS_INLINE void add_tile(Index rows, const float* a, const float* b, Index b_stride, Index count, Index width,
                                bool add, float* to) const {
        if constexpr (max_rows > 1) {
            if (rows < max_rows) return add_tile<vectors, max_rows - 1>(rows, a, b, b_stride, count, width, add, to);
        }
        add_rows<vectors, max_rows>(a, b, b_stride, count, width, add, to);
    }

    template <int vectors, int rows>
    [[gnu::noinline]] void add_rows(const float* a, const float* b, Index b_stride, Index count, Index width, bool add,
                                    float* to) const {
        Vector sums[rows][vectors] = {};
        add_products<1, MR>(sums, a, lanes * MR, b, b_stride, lanes, count);
        each_sum<rows, vectors>([&](int row, int half) __attribute__((always_inline)) {
            float* const place = to + row * depth + half * lanes;
            const Index left = min(width - half * lanes, lanes);
            store_up_to(place, add ? load_up_to(place, left) + sums[row][half] : sums[row][half], left);
        });
    }
};

}  // namespace

void direct_weight_gradient(const Window& shape, const float* gradient, const float* input, float* result, int threads) {
    const Index of_result = shape.out_channels * shape.y.taps * shape.x.taps * shape.in_channels;
    if (shape.batch == 0) {
        std::memset(result, 0, of_result * sizeof(float));
        return;
    }
    const Pass pass{shape, gradient, input};
    // One block at a time, of which each thread takes panels. Where there are many blocks, each thread takes blocks and
    // has a result of its own, and these are added in the order of the threads.
    const bool shared = threads == 1 || pass.blocks < 4 * threads;
    const Index of_corners = ceil_div(block_pixels * sizeof(Corner), sizeof(float));
    const Index of_windows = block_pixels * NR, of_gradients = pass.tiles * of_tile;
    const Index common = shared ? of_gradients : 0;
    const Index own = of_windows + of_corners + (shared ? 0 : of_gradients + of_result);
    float* const memory = scratch(common + threads * own);
#pragma omp parallel num_threads(threads)
    {
        float* const windows = memory + common + omp_get_thread_num() * own;
        const auto corners = reinterpret_cast<Corner*>(windows + of_windows);
        const auto count_in = [&](Index block) { return min(block_pixels, pass.pixels - block * block_pixels); };
        if (shared) {
            for (Index block = 0; block < pass.blocks; ++block) {
                const Index first = block * block_pixels, count = count_in(block);
                pass.find_corners(first, count, corners);
#pragma omp for schedule(static)
                for (Index tile = 0; tile < pass.tiles; ++tile)
                    pass.pack_gradients(first, count, tile, memory + tile * of_tile);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number)
                    pass.add_panel(first, count, corners, number, memory, windows, block > 0, result);
            }
        } else {
            float* const gradients = windows + of_windows + of_corners;
            float* const sums = gradients + of_gradients;
            std::memset(sums, 0, of_result * sizeof(float));
#pragma omp for schedule(static)
            for (Index block = 0; block < pass.blocks; ++block) {
                const Index first = block * block_pixels, count = count_in(block);
                pass.find_corners(first, count, corners);
                for (Index tile = 0; tile < pass.tiles; ++tile)
                    pass.pack_gradients(first, count, tile, gradients + tile * of_tile);
                for (Index number = 0; number < pass.panels; ++number)
                    pass.add_panel(first, count, corners, number, gradients, windows, true, sums);
            }
            const Index before = own - of_result;
#pragma omp for schedule(static)
            for (Index place = 0; place < of_result; ++place) {
                float sum = 0;
                for (int thread = 0; thread < omp_get_num_threads(); ++thread)
                    sum += memory[common + thread * own + before + place];
                result[place] = sum;
            }
        }
    }
}

}  // namespace svertka::INSTRUCTIONS
