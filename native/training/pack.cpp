// Weights in the order in which `direct_forward` reads them.
#include "../gemm.h"
#include "training.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Rows `first` to first + `count` ≤ lanes of `from`, which are `step` floats apart, as columns of `to`, which has `lanes`
// of NR; `left` ≤ lanes columns of `from`.
void transpose_to(const float* from, Index step, Index count, Index left, float* to) {
    Vector square[lanes];
#pragma GCC unroll 16
    for (Index row = 0; row < lanes; ++row) square[row] = row < count ? load_up_to(from + row * step, left) : Vector{};
    transpose(square);
    for (Index column = 0; column < left; ++column) store(to + column * NR, square[column]);
}

}  // namespace

void direct_pack(const float* weights, std::ptrdiff_t out_channels, std::ptrdiff_t taps, std::ptrdiff_t in_channels,
                 bool adjoint, float* packed) {
    const Index depth = taps * in_channels;
    if (!adjoint) {
        for (Index first = 0; first < out_channels; first += NR, packed += depth * NR)
            for (Index half = 0; half < NR; half += lanes) {
                const Index count = max(min(out_channels - first - half, lanes), 0);
                for (Index k = 0; k < depth; k += lanes)
                    transpose_to(weights + (first + half) * depth + k, depth, count, min(lanes, depth - k),
                                 packed + k * NR + half);
            }
        return;
    }
    for (Index first = 0; first < in_channels; first += NR) {
        const Index left = in_channels - first;
        for (Index tap = taps - 1; tap >= 0; --tap)
            for (Index output = 0; output < out_channels; ++output, packed += NR) {
                const float* const from = weights + output * depth + tap * in_channels + first;
                store(packed, load_up_to(from, min(left, lanes)));
                store(packed + lanes, left > lanes ? load_up_to(from + lanes, min(left - lanes, lanes)) : Vector{});
            }
    }
}

}  // namespace svertka::INSTRUCTIONS
