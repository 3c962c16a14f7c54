// Products of two computed matrices, as in attention. Both are packed for the register tile of gemm.h: the rows of the
// left one once for a block of rows, a panel of columns of the right one at a time.
#include "../gemm.h"
#include "../parallel.h"
#include "../scratch.h"
#include "product_softmax_reduction_interpolation.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index KC = 128;  // steps accumulated in registers before the sum is added to memory: long sums lose precision
constexpr Index block_floats = Index{1} << 16;  // of packed rows: a quarter of a cache of 1 MiB

// The `count` ≤ lanes numbers at `from`, `step` apart, then zeros.
ALWAYS_INLINE Vector load_strided(const float* from, Index step, Index count) {
    if (step == 1) return load_up_to(from, count);
    Vector gathered{};
    for (Index i = 0; i < min(count, lanes); ++i) gathered[i] = from[i * step];
    return gathered;
}

// Copy a matrix so that the numbers of each row are contiguous, in whole vectors filled with zeros.
void pack_rows(const float* from, Index row_step, Index step, Index rows, Index count, float* to, Index to_step) {
    for (Index k = 0; k < count; k += lanes) {
        if (row_step == 1 && step != 1) {  // columns are contiguous: squares are transposed
            for (Index row = 0; row < rows; row += lanes) {
                Vector square[lanes];
                for (Index i = 0; i < lanes; ++i)
                    square[i] = k + i < count ? load_up_to(from + (k + i) * step + row, rows - row) : Vector{};
                transpose(square);
                for (Index i = 0; i < min(lanes, rows - row); ++i) store(to + (row + i) * to_step + k, square[i]);
            }
            continue;
        }
        for (Index row = 0; row < rows; ++row)
            store(to + row * to_step + k, load_strided(from + row * row_step + k * step, step, count - k));
    }
}

struct Pass {
    const MatrixProduct& shape;
    const float *left, *right;
    float* output;
    int threads;

    // Rows that are packed together. Where matrices are few, threads share the rows of one.
    Index chunks = ceil_div(shape.depth, lanes), panels = ceil_div(shape.columns, NR);
    Index matrices = shape.batch[0] * shape.batch[1] * shape.batch[2];
    Index most = max(block_floats / (chunks * lanes * MR), 1) * MR;
    Index each = matrices >= threads ? shape.rows : ceil_div(ceil_div(shape.rows, threads), MR) * MR;
    Index block = min(most, ceil_div(each, MR) * MR), blocks = ceil_div(shape.rows, block);
    Index of_rows = block * chunks * lanes, of_panel = shape.depth * NR, own = of_rows + of_panel + MR * NR;

    // One block of rows of one matrix, with `room` for `own` floats.
    void compute(Index number, float* room) const {
        Index matrix = number / blocks, from = 0, by = 0, to = 0;
        for (int axis = 2; axis >= 0; --axis) {
            const Index place = matrix % shape.batch[axis];
            matrix /= shape.batch[axis];
            from += place * shape.left[axis], by += place * shape.right[axis], to += place * shape.output[axis];
        }
        const Index first = number % blocks * block, rows = min(block, shape.rows - first);
        float* const panel = room + of_rows;
        for (Index row = 0; row < rows; row += MR)
            for (Index chunk = 0; chunk < chunks; ++chunk) {
                const float* const corner =
                    left + from + (first + row) * shape.left[3] + chunk * lanes * shape.left[4];
                pack_rows(corner, shape.left[3], shape.left[4], min(MR, rows - row),
                          min(lanes, shape.depth - chunk * lanes), room + (row * chunks + chunk * MR) * lanes, lanes);
            }
        for (Index number_of_panel = 0; number_of_panel < panels; ++number_of_panel) {
            const Index column = number_of_panel * NR, columns = min(NR, shape.columns - column);
            pack_rows(right + by + column * shape.right[4], shape.right[3], shape.right[4], shape.depth, columns, panel,
                      NR);
            float* const corner = output + to + first * shape.output[3] + column * shape.output[4];
            for (Index row = 0; row < rows; row += MR) {
                const float* const a = room + row * chunks * lanes;
                float* const tile = corner + row * shape.output[3];
                columns > lanes ? tile_of<2, MR>(min(MR, rows - row), a, panel, columns, tile, panel + of_panel)
                                : tile_of<1, MR>(min(MR, rows - row), a, panel, columns, tile, panel + of_panel);
            }
        }
    }

    template <int vectors, int max_rows>
    void tile_of(Index count, const float* a, const float* panel, Index columns, float* to, float* sums) const {
        if constexpr (max_rows > 1) {
            if (count < max_rows) return tile_of<vectors, max_rows - 1>(count, a, panel, columns, to, sums);
        }
        rows_of<vectors, max_rows>(a, panel, columns, to, sums);
    }

    template <int vectors, int count>
    [[gnu::noinline]] void rows_of(const float* a, const float* panel, Index columns, float* to, float* sums) const {
        const Index row_step = shape.output[3], step = shape.output[4];
        for (Index k = 0; k < shape.depth; k += KC) {
            const bool add = k > 0, last = k + KC >= shape.depth;
            Vector tile[count][vectors] = {};
            add_products<lanes, 1>(tile, a + k * MR, MR * lanes, panel + k * NR, NR, lanes, min(KC, shape.depth - k));
            each_sum<count, vectors>([&](int row, int half) __attribute__((always_inline)) {
                float* const kept = sums + row * NR + half * lanes;
                Vector sum = tile[row][half];
                if (add) sum += load(kept);
                if (!last) return store(kept, sum);
                sum *= shape.scale;
                float* const result = to + row * row_step + half * lanes * step;
                if (step == 1) return store_up_to(result, sum, columns - half * lanes);
                for (Index i = 0; i < min(lanes, columns - half * lanes); ++i) result[i * step] = sum[i];
            });
        }
    }
};

}  // namespace

void matrix_product(const MatrixProduct& shape, const float* left, const float* right, float* output, int threads) {
    const Pass pass{shape, left, right, output, threads};
    if (pass.matrices * shape.rows == 0) return;
    float* const memory = scratch(threads * pass.own);
    parallel_for(pass.matrices * pass.blocks, threads,
                 [&](Index number, int thread) { pass.compute(number, memory + thread * pass.own); });
}

}  // namespace svertka::INSTRUCTIONS
