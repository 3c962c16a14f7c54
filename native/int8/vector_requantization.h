// The requantization of the sums of one vector of channels.
#pragma once

#include "../bfloat16.h"
#include "../vector_math.h"
#include "bytes.h"
#include "int8.h"

namespace svertka::INSTRUCTIONS {

// Covers the `count` channels from `channel` on, at most one vector, of `pixel` and its neighbors. All members are copies:
// through references the compiler would have to assume that a store changes them.
struct VectorRequantization {
    Vector scale, shift;
    Index count, step, residual_step;
    float low, high;
    Affine real;
    const Byte* residual;
    Byte* output;  // or floats

    VectorRequantization() = default;

    // `step`: numbers from one pixel of the output to the next.
    ALWAYS_INLINE VectorRequantization(const Requantization& after, void* output, Index step, Index pixel, Index channel,
                                       Index count)
        : scale(load(after.scale + channel)),
          shift(load(after.shift + channel)),
          count(count),
          step(step),
          residual_step(after.residual_step),
          low(after.low),
          high(after.high),
          real(after.real),
          residual(after.residual ? after.residual + pixel * residual_step + channel : nullptr),
          output(static_cast<Byte*>(output) + (pixel * step + channel) * (after.to_float ? sizeof(float) : 1)) {}

    // The result `x` pixels further on, of one pass.
    template <bool with_residual>
    ALWAYS_INLINE void store(Vector sum, Index x) const {
        Vector result = sum * scale + shift;
        if constexpr (with_residual) result += to_floats(load_bytes(residual + x * residual_step, count)) * real.scale;
        store_bytes(output + x * step, to_bytes(clamp(result, low, high)), count);
    }

    // The second pass of two, for `pixels` pixels side by side, the first `x` further on; their sums are `between` apart.
    template <class Sum>
    [[gnu::noinline]] void finish(const Requantization& after, const Sum* sums, Index between, Index pixels, Index x) const {
        using Sums = std::conditional_t<std::is_same_v<Sum, float>, Vector, Ints>;
        const bool multiply = after.multiply, last = after.residual_last, to_float = after.to_float;
        const float slope = after.slope;
        const Affine stored = after.stored;
        with_activation(after.activation, [&](auto chosen) __attribute__((always_inline)) {
            const VectorRequantization self = *this;
            for (Index pixel = 0; pixel < pixels; ++pixel) {
                Vector result = __builtin_convertvector(load_as<Sums>(sums + pixel * between), Vector) * self.scale + self.shift, other{};
                if (self.residual)
                    other = to_floats(load_bytes(self.residual + (x + pixel) * self.residual_step, self.count)) *
                                self.real.scale + self.real.shift;
                if (self.residual && !last) result = multiply ? result * other : result + other;
                result = activate<chosen>(result, slope);
                if (self.residual && last) result = multiply ? result * other : result + other;
                result = clamp(result * stored.scale + stored.shift, self.low, self.high);
                if (to_float)
                    store_up_to(reinterpret_cast<float*>(self.output) + (x + pixel) * self.step, result, self.count);
                else
                    store_bytes(self.output + (x + pixel) * self.step, to_bytes(result), self.count);
            }
        });
    }
};

}  // namespace svertka::INSTRUCTIONS
