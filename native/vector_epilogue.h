// The epilogue of a kernel for the channels of one vector: bias, residual, activation function, clamp, store.
#pragma once

#include "bfloat16.h"
#include "epilogue.h"
#include "vector_math.h"

namespace svertka::INSTRUCTIONS {

// Covers `count` channels from `channel` on, at most one vector, of `pixel` and its neighbors. All members are copies: the
// compiler would have to reload references after every store.
template <class Number>
struct VectorEpilogue {
    Vector bias;
    Index count, step, line, residual_step, residual_line;
    float low, high, slope;
    Activation activation;
    bool multiply, residual_last;
    const Number* residual;
    Number* output;

    VectorEpilogue() = default;

    // `step`: distance between pixels, in values. `width`: distance between lines, in pixels.
    ALWAYS_INLINE VectorEpilogue(const Epilogue& epilogue, Number* output, Index step, Index pixel, Index channel, Index count,
                         Index width = 0)
        : bias(epilogue.bias ? load_up_to(epilogue.bias + channel, count) : Vector{}),
          count(count),
          step(step),
          line(width * step),
          residual_step(epilogue.residual_step),
          residual_line(width * epilogue.residual_step),
          low(epilogue.low),
          high(epilogue.high),
          slope(epilogue.slope),
          activation(epilogue.activation),
          multiply(epilogue.multiply),
          residual_last(epilogue.residual_last),
          residual(epilogue.residual ? static_cast<const Number*>(epilogue.residual) + pixel * residual_step + channel
                                   : nullptr),
          output(output + pixel * step + channel) {}

    // One pass: the result at the pixel `x` to the right and `y` below. `sum` includes the bias.
    ALWAYS_INLINE Vector apply(Vector sum, Index x, Index y = 0) const {
        if (residual) sum += load_up_to(residual + y * residual_line + x * residual_step, count);
        return clamp(sum, low, high);
    }

    ALWAYS_INLINE Number* address(Index x, Index y = 0) const { return output + y * line + x * step; }

    ALWAYS_INLINE void store(Vector sum, Index x, Index y = 0) const { store_up_to(address(x, y), apply(sum, x, y), count); }

    // The second of two passes, for `pixels` neighboring pixels, the first `x` to the right and `y` below; their sums,
    // without bias, are `between` floats apart.
    [[gnu::noinline]] void finish(const float* sums, Index between, Index pixels, Index x, Index y = 0) const {
        with_activation(activation, [&](auto chosen) __attribute__((always_inline)) {
            const VectorEpilogue self = *this;
            for (Index pixel = 0; pixel < pixels; ++pixel)
                self.template finish_pixel<chosen>(load(sums + pixel * between) + self.bias, x + pixel, y);
        });
    }

    template <Activation chosen>
    ALWAYS_INLINE void finish_pixel(Vector result, Index x, Index y = 0) const {
        Vector other{};
        if (residual) other = load_up_to(residual + y * residual_line + x * residual_step, count);
        if (residual && !residual_last) result = multiply ? result * other : result + other;
        result = activate<chosen>(result, slope);
        if (residual && residual_last) result = multiply ? result * other : result + other;
        store_up_to(address(x, y), clamp(result, low, high), count);
    }
};

}  // namespace svertka::INSTRUCTIONS
