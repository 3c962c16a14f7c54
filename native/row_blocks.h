// The product of gathered windows and packed weights, block by block: the schedule of an implicit GEMM.
#pragma once

#include <omp.h>

#include "scratch.h"
#include "simd.h"

namespace svertka::INSTRUCTIONS {

// `block` rows are gathered at a time. If `shared`, all threads gather one block and then divide the panels; otherwise
// each thread processes its own blocks.
struct RowBlocks {
    bool shared;
    Index block;

    // `room`: factors of a block that fit in the cache of a thread. `may_share`: whether `shared` is considered.
    template <class Pass>
    RowBlocks(const Pass& pass, Index room, bool may_share, int threads) {
        const Index wanted = max(min(room / pass.steps, 16 * MR), MR), tiles = ceil_div(pass.pixels, MR);
        // Panels are divided if that gives more equal shares than dividing rows, or weights that only one thread's cache has
        // to hold.
        const Index by_panels = ceil_div(pass.panels, threads) * pass.pixels;
        const Index by_rows = ceil_div(tiles, threads) * MR * pass.panels;
        const bool better = by_panels < by_rows || (by_panels == by_rows && pass.panels * pass.steps * NR > room);
        shared = may_share && (better || threads == 1) && pass.panels >= 2 * threads && pass.pixels < 4 * threads * wanted;
        const Index limit = shared ? max(8 * wanted, 4 * MR) : wanted, fewest = ceil_div(pass.pixels, limit);
        block = ceil_div(tiles, fewest) * MR;
        if (shared || threads == 1) return;
        // Several blocks per thread, if that does not make the largest share of a thread larger.
        Index smallest = 0;
        for (Index each = 4; each > 0; --each) {
            const Index size = ceil_div(tiles, max(each * threads, fewest));
            const Index share = ceil_div(ceil_div(tiles, size), threads) * size;
            if (smallest && share >= smallest) continue;
            smallest = share;
            block = size * MR;
        }
    }
};

// Multiplies all rows of `pass` by all panels. A Pass has
//   Factor, Number, Sum                        types of 4 bytes, of the input, and of 4 bytes: what is multiplied, read, added
//   pixels, steps, panels, windows.chunks      numbers of rows, of factors in a row, of panels, and of vectors in a row
//   windows.gather(first, last, rows, line)    gathers rows `first` to `last`; `line` has space for `of_line` floats
//   multiply(first, count, rows, panel, sums)  multiplies `count` of them; `sums` has space for NR of each
//   set_padding(memory)                        prepares what windows read outside the image, `of_padding` floats
template <class Pass>
void multiply_in_blocks(Pass& pass, const RowBlocks& plan, Index of_padding, Index of_line, int threads) {
    using Factor = typename Pass::Factor;
    using Number = typename Pass::Number;
    using Sum = typename Pass::Sum;
    const Index of_row = pass.windows.chunks * lanes, of_rows = plan.block * of_row, of_sums = plan.block * NR;
    const Index common = of_padding + (plan.shared ? of_rows : 0);
    const Index own = of_line + of_sums + (plan.shared ? 0 : of_rows);
    float* const memory = scratch(common + threads * own);
    pass.set_padding(memory);
    const auto shared_rows = reinterpret_cast<Factor*>(memory + of_padding);
    const auto compute_block = [&](Index first, Factor* rows, float* mine) {
        const Index count = min(plan.block, pass.pixels - first);
        pass.windows.gather(first, first + count, rows, reinterpret_cast<Number*>(mine));
        for (Index number = 0; number < pass.panels; ++number)
            pass.multiply(first, count, rows, number, reinterpret_cast<Sum*>(mine + of_line));
    };
    if (threads == 1) {  // without a team of one, which takes as long as a small step
        float* const mine = memory + common;
        const auto rows = plan.shared ? shared_rows : reinterpret_cast<Factor*>(mine + of_line + of_sums);
        for (Index first = 0; first < pass.pixels; first += plan.block) compute_block(first, rows, mine);
        return;
    }

#pragma omp parallel num_threads(threads)
    {
        float* const mine = memory + common + omp_get_thread_num() * own;
        if (plan.shared) {
            const auto line = reinterpret_cast<Number*>(mine);
            const auto sums = reinterpret_cast<Sum*>(mine + of_line);
            for (Index first = 0; first < pass.pixels; first += plan.block) {
                const Index count = min(plan.block, pass.pixels - first);
#pragma omp for schedule(static)
                for (Index row = 0; row < count; row += MR)
                    pass.windows.gather(first + row, first + min(row + MR, count), shared_rows + row * of_row, line);
#pragma omp for schedule(dynamic)
                for (Index number = 0; number < pass.panels; ++number)
                    pass.multiply(first, count, shared_rows, number, sums);
            }
        } else {
            const auto rows = reinterpret_cast<Factor*>(mine + of_line + of_sums);
#pragma omp for schedule(dynamic)
            for (Index first = 0; first < pass.pixels; first += plan.block) compute_block(first, rows, mine);
        }
    }
}

}  // namespace svertka::INSTRUCTIONS
