// Interpolation of maps: rows of the input are combined into one line, then the pixels of this line.
#include "../parallel.h"
#include "../scratch.h"
#include "../vector_epilogue.h"
#include "product_softmax_reduction_interpolation.h"

namespace svertka::INSTRUCTIONS {
namespace {

// The vector of output `number` of an axis, of at most `count` numbers; inputs are `step` apart.
ALWAYS_INLINE Vector weighted_sum(const float* from, Index step, const InterpolationAxis& axis, Index number, Index count) {
    const Index* indices = &axis.indices[number * axis.taps];
    const float* weights = &axis.weights[number * axis.taps];
    Vector sum = weights[0] * load_up_to(from + indices[0] * step, count);
    for (Index tap = 1; tap < axis.taps; ++tap) sum += weights[tap] * load_up_to(from + indices[tap] * step, count);
    return sum;
}

struct Pass {
    const Interpolation& shape;
    const float* input;
    const Epilogue& epilogue;
    float* output;

    template <Activation activation>
    void line_of(Index number, float* line) const {
        const Index y = number % shape.y.out_size, image = number / shape.y.out_size, channels = shape.channels;
        const Index step = shape.in_step;
        const float* const first = input + image * shape.y.size * shape.x.size * step;
        for (Index x = 0; x < shape.x.size; ++x)
            for (Index k = 0; k < channels; k += lanes)
                store_up_to(line + x * channels + k,
                            weighted_sum(first + x * step + k, shape.x.size * step, shape.y, y, channels - k), channels - k);
        float* to = output + number * shape.x.out_size * shape.out_step;
        for (Index x = 0; x < shape.x.out_size; ++x, to += shape.out_step)
            for (Index k = 0; k < channels; k += lanes) {
                const Vector sum = weighted_sum(line + k, channels, shape.x, x, channels - k);
                const Vector result = activate<activation>(sum, epilogue.slope);
                store_up_to(to + k, clamp(result, epilogue.low, epilogue.high), channels - k);
            }
    }
};

}  // namespace

void interpolate(const Interpolation& shape, const float* input, const Epilogue& epilogue, float* output, int threads) {
    const Pass pass{shape, input, epilogue, output};
    const Index of_line = ceil_div(shape.x.size * shape.channels, lanes) * lanes;
    float* const memory = scratch(threads * of_line);
    with_activation(epilogue.activation, [&](auto activation) {
        parallel_for(shape.batch * shape.y.out_size, threads,
                     [&](Index number, int thread) { pass.line_of<activation>(number, memory + thread * of_line); });
    });
}

}  // namespace svertka::INSTRUCTIONS
