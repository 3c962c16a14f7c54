// What comes after the sums of a kernel: the channels of one vector, of some pixels.
#pragma once

#include "bfloat16.h"
#include "finish.h"

namespace svertka::INSTRUCTIONS {

// For the `count` channels from `channel` on, or as many of them as a vector holds, of `pixel` and others. Copies of all
// that it takes: a result that is stored could be one of the sizes and bounds, for all that the compiler knows, and it
// would read them again each time.
template <class Number>
struct Ending {
    Vector bias;
    Index count, step, line, residual_step, residual_line;
    float low, high;
    const float* residual;
    Number* output;

    Ending() = default;

    // `step`: numbers from one pixel to the next; `width`: pixels from one line to the next, where there are several.
    ALWAYS_INLINE Ending(const Finish& finish, Number* output, Index step, Index pixel, Index channel, Index count,
                         Index width = 0)
        : bias(finish.bias ? load_up_to(finish.bias + channel, count) : Vector{}),
          count(count),
          step(step),
          line(width * step),
          residual_step(finish.residual_step),
          residual_line(width * finish.residual_step),
          low(finish.low),
          high(finish.high),
          residual(finish.residual ? finish.residual + pixel * residual_step + channel : nullptr),
          output(output + pixel * step + channel) {}

    // The result of the pixel `x` further to the right and `y` further down; `sum` is one with the bias.
    ALWAYS_INLINE Vector of(Vector sum, Index x, Index y = 0) const {
        if (residual) sum += load_up_to(residual + y * residual_line + x * residual_step, count);
        return bounded(sum, low, high);
    }

    ALWAYS_INLINE Number* place(Index x, Index y = 0) const { return output + y * line + x * step; }

    ALWAYS_INLINE void keep(Vector sum, Index x, Index y = 0) const { store_up_to(place(x, y), of(sum, x, y), count); }
};

}  // namespace svertka::INSTRUCTIONS
