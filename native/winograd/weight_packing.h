// The weights of one pass, packed in the order in which the weight transform reads them.
#pragma once

#include "../gemm.h"
#include "winograd.h"

namespace svertka::INSTRUCTIONS {

constexpr Index taps = 9;

// Packed: (panel of outputs, input, tap, output in panel), zero-padded. As bfloat16, inputs are stored in pairs: (panel of
// outputs, pair of inputs, tap, output in panel, element of pair).
struct Weights {
    const void* numbers;
    Order order;
    bool narrow;  // packed as bfloat16
    Index depth, width;  // input and output channels of the pass

    // Returns the packed weights of inputs `first` to `last` of panel `number`: in place, or packed into `room`.
    const float* packed(Index number, Index first, Index last, float* room) const {
        const auto numbers = static_cast<const float*>(this->numbers);
        if (order == Order::packed) return numbers + place(number, first);
        const Index output = number * NR, here = min(NR, width - output);
        for (Index tap = 0; tap < taps; ++tap) {
            float* to = room + tap * NR;
            if (order == Order::adjoint)
                copy(numbers + (taps - 1 - tap) * width + output, here, first, last, to);
            else
                for (Index half = 0; half < NR; half += lanes)
                    transpose_copy(numbers + ((output + half) * taps + tap) * depth, max(min(here - half, lanes), 0), first,
                         last, to + half);
        }
        return room;
    }

    // Returns the packed pairs of panel `number` from input `first` on, which is even.
    const Pair* packed_pairs(Index number, Index first) const {
        return static_cast<const Pair*>(numbers) + (number * ceil_div(depth, 2) + first / 2) * taps * NR;
    }

  private:
    Index place(Index number, Index first) const { return (number * depth + first) * taps * NR; }

    // The outputs of each input are contiguous already.
    void copy(const float* from, Index outputs, Index first, Index last, float* to) const {
        for (Index input = first; input < last; ++input, to += taps * NR)
            for (Index half = 0; half < NR; half += lanes)
                store(to + half, load_up_to(from + input * taps * width + half, outputs - half));
    }

    // The inputs of each output are contiguous: one square at a time is transposed.
    void transpose_copy(const float* from, Index outputs, Index first, Index last, float* to) const {
        for (Index input = first; input < last; input += lanes) {
            const Index inputs = min(lanes, last - input);
            Vector square[lanes] = {};
#pragma GCC unroll 16
            for (Index output = 0; output < lanes; ++output) {
                if (output >= outputs) break;
                square[output] = load_up_to(from + output * taps * depth + input, inputs);
            }
            transpose(square);
            for (Index i = 0; i < inputs; ++i) store(to + (input - first + i) * taps * NR, square[i]);
        }
    }
};

}  // namespace svertka::INSTRUCTIONS
