// The memory layout of transformed kernel rows, and how weights are read into panels for the transform along x.
#pragma once

#include "grid.h"

namespace svertka::INSTRUCTIONS::fft {

// The transformed rows of the kernels from `depth` channels to some panels of `lanes` channels:
// (panel, frequency along x, one of the `depth` channels, row of taps, complex vector of the panel).
struct TransformedRows {
    float* numbers;
    Index depth, taps, frequencies;
    Index stride = depth * taps * pair + pair;  // distance between frequencies, in floats

    float* at(Index panel, Index v, Index channel, Index row) const {
        return numbers + (panel * frequencies + v) * stride + (channel * taps + row) * pair;
    }
};

struct Weights {
    const float* numbers;  // (width, taps_y, taps_x, depth); `adjoint`: (depth, taps_y, taps_x, width), read rotated
    bool adjoint;
    Index depth, width, taps_y, taps_x;

    // Copies row `row` of the kernels from channels `first` to `last` to panel `number`, times `scale`, in the order (channel,
    // tap, number in the panel); missing channels are zero.
    void read(Index number, Index first, Index last, Index row, float scale, float* to) const {
        const Index output = number * lanes, outputs = min(lanes, width - output);
        for (Index tap = 0; tap < taps_x; ++tap, to += lanes)
            if (adjoint)
                for (Index channel = first; channel < last; ++channel) {
                    const Index place = (channel * taps_y + taps_y - 1 - row) * taps_x + taps_x - 1 - tap;
                    const float* from = numbers + place * width + output;
                    store(to + (channel - first) * taps_x * lanes,
                          scale * (outputs == lanes ? load(from) : load_partial(from, outputs)));
                }
            else {
                Vector square[lanes] = {};
#pragma GCC unroll 16
                for (Index i = 0; i < lanes; ++i) {
                    if (i >= outputs) break;
                    const float* from = numbers + (((output + i) * taps_y + row) * taps_x + tap) * depth + first;
                    square[i] = last - first == lanes ? load(from) : load_partial(from, last - first);
                }
                transpose(square);
                for (Index i = 0; i < last - first; ++i) store(to + i * taps_x * lanes, scale * square[i]);
            }
    }
};

}  // namespace svertka::INSTRUCTIONS::fft
